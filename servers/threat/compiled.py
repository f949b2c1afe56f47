"""Numeric kernels: plain Python loops over arrays, compiled on first use and kept beside the source.

One event is a few dozen numbers. NumPy would pay its price of about a microsecond a call for each of some two hundred
steps; a compiled loop does all of them in a few microseconds. `NUMBA_DISABLE_JIT=1` runs the same code as plain Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., object]")


def compiled(function: F) -> F:
    """Compile `function` when it is first called; the machine code is kept on disk. The kernels
    take microseconds, so they keep the interpreter's lock: giving it away would cost more than they do. A division by
    zero gives an infinity or NaN, as NumPy's does.
    """
    return cast("F", numba.njit(cache=True, error_model="numpy")(function))
