"""The grid of cells that fields live on: statistics of 8 by 8 pixels, smoothing, values between the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from servers.identity.compiled import compiled

if TYPE_CHECKING:
    from servers.identity.compiled import Bytes, Floats

CELL: Final = 8
"""Side of a cell in pixels: a little less than the distance of two ridges at 500 pixels an inch."""


def padded(image: Bytes) -> Bytes:
    """The image with its last row and column repeated until both sides are whole cells."""
    rows, columns = image.shape
    return np.pad(image, ((0, -rows % CELL), (0, -columns % CELL)), mode="edge")


def smooth(field: Floats, sigma: float) -> Floats:
    """Gaussian of `sigma` cells over a field; beyond the border the border goes on."""
    radius = max(1, int(np.ceil(3 * sigma)))
    steps = np.arange(-radius, radius + 1, dtype=np.float32)
    weights = np.exp(-(steps**2) / np.float32(2 * sigma * sigma)).astype(np.float32)
    return _convolve(np.ascontiguousarray(field, dtype=np.float32), weights / weights.sum())


@compiled
def _convolve(field: Floats, weights: Floats) -> Floats:
    rows, columns = field.shape
    radius = len(weights) // 2
    across = np.empty_like(field)
    for y in range(rows):
        for x in range(columns):
            total = np.float32(0.0)
            for k in range(-radius, radius + 1):
                total += weights[k + radius] * field[y, min(max(x + k, 0), columns - 1)]
            across[y, x] = total
    both = np.empty_like(field)
    for y in range(rows):
        for x in range(columns):
            total = np.float32(0.0)
            for k in range(-radius, radius + 1):
                total += weights[k + radius] * across[min(max(y + k, 0), rows - 1), x]
            both[y, x] = total
    return both


@compiled
def cell_statistics(image: Bytes) -> tuple[Floats, Floats]:
    """Mean and mean square of the grey values of each cell."""
    rows, columns = image.shape[0] // CELL, image.shape[1] // CELL
    mean = np.zeros((rows, columns), dtype=np.float32)
    square = np.zeros((rows, columns), dtype=np.float32)
    for y in range(rows * CELL):
        for x in range(columns * CELL):
            value = np.float32(image[y, x])
            mean[y // CELL, x // CELL] += value
            square[y // CELL, x // CELL] += value * value
    mean /= np.float32(CELL * CELL)
    square /= np.float32(CELL * CELL)
    return mean, square


@compiled
def normalised(image: Bytes, mean: Floats, deviation: Floats) -> Floats:
    """Ridges positive, valleys negative, of about the same strength everywhere: the image less its local mean, over its
    local deviation, both read between the cells' centres. Clipped at 3 deviations, so that specks weigh little.
    """
    rows, columns = image.shape
    flat = np.empty((rows, columns), dtype=np.float32)
    last_row, last_column = mean.shape[0] - 1, mean.shape[1] - 1
    for y in range(rows):
        v = min(max((y + 0.5) / CELL - 0.5, 0.0), float(last_row))
        top = min(int(v), max(last_row - 1, 0))
        below = min(top + 1, last_row)
        b = np.float32(v - top)
        for x in range(columns):
            u = min(max((x + 0.5) / CELL - 0.5, 0.0), float(last_column))
            left = min(int(u), max(last_column - 1, 0))
            right = min(left + 1, last_column)
            a = np.float32(u - left)
            w00, w01 = (1 - a) * (1 - b), a * (1 - b)
            w10, w11 = (1 - a) * b, a * b
            m = w00 * mean[top, left] + w01 * mean[top, right] + w10 * mean[below, left] + w11 * mean[below, right]
            d = (
                w00 * deviation[top, left]
                + w01 * deviation[top, right]
                + w10 * deviation[below, left]
                + w11 * deviation[below, right]
            )
            flat[y, x] = min(max((m - np.float32(image[y, x])) / d, np.float32(-3.0)), np.float32(3.0))
    return flat
