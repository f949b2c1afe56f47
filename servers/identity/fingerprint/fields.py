"""Where the finger is, which way its ridges run and how far apart they are, cell by cell.

Segmentation by local contrast; orientation from the averaged squared gradients (Bazen and Gerez, "Systematic methods
for the computation of the directional fields and singular points of fingerprints", IEEE TPAMI 24(7), 2002); ridge
distance from the signature across the ridges (Hong, Wan and Jain, "Fingerprint image enhancement: algorithm and
performance evaluation", IEEE TPAMI 20(8), 1998), read by its spectrum instead of its peaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from servers.identity.compiled import compiled
from servers.identity.fingerprint.grid import CELL, smooth

if TYPE_CHECKING:
    from servers.identity.compiled import Floats

Mask = npt.NDArray[np.bool_]

MIN_DEVIATION: Final = 8.0
"""Grey values: less contrast than this is no ridge, whatever the rest of the image."""
RELATIVE_DEVIATION: Final = 0.2
"""A cell shows the finger when its contrast is this part of that of the image's best cells."""
WAVELENGTHS: Final = np.geomspace(4.5, 16.0, 32).astype(np.float32)
"""Ridge distances looked for, in pixels at 500 an inch: people have 5 to 15 (Hong et al.: 3 to 25)."""
_HALF_ACROSS: Final = 16
_HALF_ALONG: Final = 8


@dataclass(frozen=True)
class Orientation:
    """Which way ridges run: the doubled angle's cosine and sine (unit vectors), and how surely (0 to 1), per cell."""

    cosine: Floats
    sine: Floats
    coherence: Floats

    @property
    def angle(self) -> Floats:
        """Radians in (-pi/2, pi/2], clockwise on the screen (y grows downwards)."""
        return (np.arctan2(self.sine, self.cosine) / 2).astype(np.float32)


def segment(deviation: Floats) -> Mask:
    """Cells that show the finger: enough contrast, ragged edges smoothed, holes closed, the largest patch only."""
    strong = np.percentile(deviation[1:-1, 1:-1], 95)
    inside = deviation > max(MIN_DEVIATION, RELATIVE_DEVIATION * float(strong))
    # Sensors draw lines along the border.
    inside[[0, -1]] = False
    inside[:, [0, -1]] = False
    # A majority among neighbours: opens and closes at once.
    inside = smooth(inside.astype(np.float32), 1.5) > 0.5
    return filled(largest_patch(inside))


def orientation(flat: Floats, mask: Mask, sigma: float) -> Orientation:
    """Ridge directions of a normalised image, squared gradients averaged by a Gaussian of `sigma` cells."""
    xx, yy, xy = _squared_gradients(flat)
    weight = mask.astype(np.float32) + np.float32(0.01)
    difference = smooth((xx - yy) * weight, sigma)
    product = smooth(2 * xy * weight, sigma)
    energy = smooth((xx + yy) * weight, sigma) + np.float32(1e-6)
    length = np.hypot(difference, product) + np.float32(1e-9)
    # Ridges run across the gradient: half a turn of the doubled angle.
    return Orientation(-difference / length, -product / length, np.minimum(length / energy, np.float32(1.0)))


def wavelengths(flat: Floats, mask: Mask, field: Orientation) -> Floats:
    """Distance of neighbouring ridges in pixels for every cell, smoothed over the finger."""
    measured, weight = _signatures(flat, mask, field.angle, WAVELENGTHS)
    total = smooth(weight, 3.0)
    common = float((measured * weight).sum() / max(float(weight.sum()), 1e-6)) or 9.0
    near = smooth(measured * weight, 3.0) + np.float32(0.02 * common)
    return (near / (total + np.float32(0.02))).astype(np.float32)


def largest_patch(inside: Mask) -> Mask:
    """The largest 4-connected patch, and others at least a third of it."""
    labels, sizes = _patches(inside)
    if len(sizes) < 2:
        return inside
    keep = np.nonzero(sizes[1:] >= sizes[1:].max() / 3)[0] + 1
    return np.isin(labels, keep)


def filled(inside: Mask) -> Mask:
    """Holes closed: everything that the border does not reach."""
    outside = np.pad(~inside, 1, constant_values=True)
    labels, _ = _patches(outside)
    reached: Mask = labels == labels[0, 0]
    return ~reached[1:-1, 1:-1]


@compiled
def _squared_gradients(flat: Floats) -> tuple[Floats, Floats, Floats]:
    """Sums over each cell of gx*gx, gy*gy and gx*gy, with Sobel's gradients."""
    rows, columns = flat.shape
    xx = np.zeros((rows // CELL, columns // CELL), dtype=np.float32)
    yy = np.zeros_like(xx)
    xy = np.zeros_like(xx)
    for y in range(1, rows - 1):
        for x in range(1, columns - 1):
            left = flat[y - 1, x - 1] + 2 * flat[y, x - 1] + flat[y + 1, x - 1]
            right = flat[y - 1, x + 1] + 2 * flat[y, x + 1] + flat[y + 1, x + 1]
            above = flat[y - 1, x - 1] + 2 * flat[y - 1, x] + flat[y - 1, x + 1]
            below = flat[y + 1, x - 1] + 2 * flat[y + 1, x] + flat[y + 1, x + 1]
            gx, gy = right - left, below - above
            xx[y // CELL, x // CELL] += gx * gx
            yy[y // CELL, x // CELL] += gy * gy
            xy[y // CELL, x // CELL] += gx * gy
    return xx, yy, xy


@compiled
def _signatures(flat: Floats, mask: Mask, angle: Floats, candidates: Floats) -> tuple[Floats, Floats]:
    """Per cell: the candidate distance that explains most of the signature across the ridges, and how much (0 to 1)."""
    rows, columns = mask.shape
    best = np.zeros((rows, columns), dtype=np.float32)
    share = np.zeros((rows, columns), dtype=np.float32)
    span = 2 * _HALF_ACROSS
    signature = np.zeros(span, dtype=np.float32)
    window = np.hanning(span + 2)[1:-1].astype(np.float32)
    places = (np.arange(span) - _HALF_ACROSS) * 2 * np.pi
    cosines = np.empty((len(candidates), span), dtype=np.float32)
    sines = np.empty((len(candidates), span), dtype=np.float32)
    for k in range(len(candidates)):
        cosines[k] = np.cos(places / candidates[k])
        sines[k] = np.sin(places / candidates[k])
    for row in range(rows):
        for column in range(columns):
            if not mask[row, column]:
                continue
            _read_signature(flat, row, column, angle[row, column], signature)
            mean = signature.mean()
            energy = np.float32(1e-6)
            for i in range(span):
                signature[i] = (signature[i] - mean) * window[i]
                energy += signature[i] * signature[i]
            top, power = _strongest(signature, cosines, sines)
            if 0 < top < len(candidates) - 1:
                best[row, column] = candidates[top]
                share[row, column] = min(power / float(energy) * 2 / span, 1.0) * min(float(energy) / 2, 1.0)
    return best, share


@compiled
def _read_signature(flat: Floats, row: int, column: int, angle: float, signature: Floats) -> None:
    """Averages along the ridges, one for each step across them, through the middle of a cell."""
    height, width = flat.shape
    cos, sin = np.cos(angle), np.sin(angle)
    cy, cx = row * CELL + CELL / 2, column * CELL + CELL / 2
    for i in range(len(signature)):
        total = np.float32(0.0)
        across = i - _HALF_ACROSS + 0.5
        for j in range(-_HALF_ALONG, _HALF_ALONG):
            x = int(cx + j * cos - across * sin)
            y = int(cy + j * sin + across * cos)
            total += flat[min(max(y, 0), height - 1), min(max(x, 0), width - 1)]
        signature[i] = total / (2 * _HALF_ALONG)


@compiled
def _strongest(signature: Floats, cosines: Floats, sines: Floats) -> tuple[int, float]:
    """The wave that a signature holds most of, and its power."""
    top, power = 0, -1.0
    for k in range(len(cosines)):
        real = np.float32(0.0)
        imaginary = np.float32(0.0)
        for i in range(len(signature)):
            real += signature[i] * cosines[k, i]
            imaginary += signature[i] * sines[k, i]
        if real * real + imaginary * imaginary > power:
            top, power = k, float(real * real + imaginary * imaginary)
    return top, power


@compiled
def _patches(inside: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """A number from 1 for every 4-connected patch of true cells, and the patches' sizes (index 0: the rest)."""
    rows, columns = inside.shape
    labels = np.zeros((rows, columns), dtype=np.int32)
    stack = np.empty((rows * columns, 2), dtype=np.int32)
    sizes = np.zeros(rows * columns + 1, dtype=np.int64)
    label = 0
    for y in range(rows):
        for x in range(columns):
            if not inside[y, x] or labels[y, x]:
                continue
            label += 1
            labels[y, x] = label
            stack[0, 0], stack[0, 1] = y, x
            depth = 1
            while depth:
                depth -= 1
                cy, cx = stack[depth, 0], stack[depth, 1]
                sizes[label] += 1
                for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                    ny, nx = cy + dy, cx + dx
                    if 0 <= ny < rows and 0 <= nx < columns and inside[ny, nx] and not labels[ny, nx]:
                        labels[ny, nx] = label
                        stack[depth, 0], stack[depth, 1] = ny, nx
                        depth += 1
    sizes[0] = rows * columns - sizes.sum()
    return labels, sizes[: label + 1]
