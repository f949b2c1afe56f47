"""What a process can do so that its memory stays its own. Linux alone knows all of it; elsewhere the rest is done."""

from __future__ import annotations

import ctypes
import logging
import resource
from typing import Final

_log = logging.getLogger(__name__)

_PR_SET_DUMPABLE: Final = 4
_MCL_CURRENT_AND_FUTURE: Final = 3


def harden() -> dict[str, bool]:
    """Forbid core dumps and debuggers of the same user, keep memory out of the swap; tells what worked.

    Locking memory needs a limit (`ulimit -l`, systemd's `LimitMEMLOCK`) above what the process uses; without, the swap
    must be encrypted or off.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    done = {"no_core_files": True, "not_dumpable": False, "memory_locked": False}
    try:
        library = ctypes.CDLL(None, use_errno=True)
        done["not_dumpable"] = library.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0
        unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
        # With a limit, locking would succeed now and a later allocation fail.
        done["memory_locked"] = unlimited and library.mlockall(_MCL_CURRENT_AND_FUTURE) == 0
    except (OSError, AttributeError):
        _log.warning("this system cannot protect the process's memory")
    _log.info("memory protection", extra=dict(done))
    return done
