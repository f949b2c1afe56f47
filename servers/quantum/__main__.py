"""`python -m servers.quantum`: the quantum service as a process."""

from __future__ import annotations

import sys

from servers.mesh.server import run
from servers.quantum.app import quantum_app

if __name__ == "__main__":
    sys.exit(run(quantum_app))
