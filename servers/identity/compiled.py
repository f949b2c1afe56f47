"""Numeric kernels: plain Python loops over arrays, compiled on first use and kept beside the source.

A fingerprint is some hundred thousand pixels, each with a filter of its own: NumPy would walk through the picture once
for every step, a compiled loop looks only where there is a finger. `NUMBA_DISABLE_JIT=1` runs the same code as plain
Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., object]")

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint64]


def compiled(function: F) -> F:
    """Compile `function` when it is first called; the machine code is kept on disk. It runs without the interpreter's
    lock. A division by zero gives an infinity or NaN, as NumPy's does. Sums may be taken in another order than written,
    so that they are computed several at a time; NaN and infinities keep their meaning.
    """
    kernel = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})(function)
    return cast("F", kernel)
