"""`python -m servers.threat`: the threat service as a process."""

from __future__ import annotations

import sys

from servers.mesh.server import run
from servers.threat.app import threat_app

if __name__ == "__main__":
    sys.exit(run(threat_app))
