"""Numeric kernels: plain Python loops over arrays, compiled on first use and kept beside the source.

A batch is a thousand events of a few hundred numbers: NumPy walks through it once for every operation, a compiled loop
once for all of them. `NUMBA_DISABLE_JIT=1` runs the same code as plain Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., object]")


def compiled(function: F) -> F:
    """Compile `function` when it is first called; the machine code is kept on disk. It runs without the interpreter's
    lock. A division by zero gives an infinity or NaN, as NumPy's does. Sums may be taken in another order than written,
    so that they are computed several at a time; NaN and infinities keep their meaning.
    """
    kernel = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})(function)
    return cast("F", kernel)
