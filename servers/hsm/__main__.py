"""`python -m servers.hsm`: the HSM as a process."""

from __future__ import annotations

import sys

from servers.hsm.app import hsm_app
from servers.mesh.server import run

if __name__ == "__main__":
    sys.exit(run(hsm_app))
