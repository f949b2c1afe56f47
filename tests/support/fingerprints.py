"""Fingers that nobody has: ridges grown from noise along a flow with known cores and deltas.

The flow is the zero-pole model of Sherlock and Monro (1993); growing ridges by filtering noise again and again with
oriented filters is the idea of SFinGe (Cappelli, Maio and Maltoni, 2000).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from servers.identity.fingerprint.enhancement import enhance
from servers.identity.fingerprint.fields import Orientation
from servers.identity.fingerprint.grid import CELL
from servers.identity.fingerprint.template import Pattern

if TYPE_CHECKING:
    from servers.identity.compiled import Bytes, Floats

WIDTH, HEIGHT = 288, 352
_POINTS: dict[Pattern, tuple[list[tuple[float, float]], list[tuple[float, float]]]] = {
    Pattern.LEFT_LOOP: ([(144, 150)], [(224, 270)]),
    Pattern.RIGHT_LOOP: ([(144, 150)], [(64, 270)]),
    Pattern.WHORL: ([(144, 140), (144, 190)], [(80, 262), (208, 262)]),
    Pattern.ARCH: ([], []),
}


@dataclass(frozen=True, eq=False)
class Finger:
    """An image with white ground, and where its cores and deltas (x, y) are."""

    image: Bytes
    cores: list[tuple[float, float]]
    deltas: list[tuple[float, float]]


@functools.cache
def finger(seed: int, pattern: Pattern = Pattern.LEFT_LOOP) -> Finger:
    """The same finger for the same seed."""
    cores, deltas = _POINTS[pattern]
    rows, columns = HEIGHT // CELL, WIDTH // CELL
    y, x = np.mgrid[:rows, :columns].astype(np.float64) * CELL + CELL / 2
    doubled = np.zeros_like(x)
    for cx, cy in cores:
        doubled += np.arctan2(y - cy, x - cx)
    for dx, dy in deltas:
        doubled -= np.arctan2(y - dy, x - dx)
    if not cores:
        doubled = 1.2 * np.sin(2 * np.pi * (x - WIDTH / 2) / WIDTH) * np.sin(np.pi * y / HEIGHT)
    cosine, sine = np.cos(doubled).astype(np.float32), np.sin(doubled).astype(np.float32)
    flow = Orientation(cosine, sine, np.ones_like(cosine))
    everywhere = np.ones((rows, columns), dtype=np.bool_)
    distance = np.full((rows, columns), 9.0, dtype=np.float32)
    ridges: Floats = np.random.default_rng(seed).normal(0, 1, (HEIGHT, WIDTH)).astype(np.float32)
    for _ in range(16):
        ridges = np.clip(3 * enhance(ridges, everywhere, flow, distance), -1, 1).astype(np.float32)
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    shown = ((u - WIDTH / 2) / 132) ** 2 + ((v - HEIGHT / 2) / 164) ** 2 < 1
    image = np.where(shown, 140 - 90 * ridges, 245).astype(np.uint8)
    return Finger(image, cores, deltas)


def impression(
    image: Bytes,
    *,
    turn: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    stretch: float = 0.0,
    noise: float = 8.0,
    seed: int = 0,
) -> Bytes:
    """Another capture of a finger: turned (degrees anticlockwise), shifted (pixels), stretched (part of its size, along
    one diagonal) and noisy (grey values).
    """
    rows, columns = image.shape
    angle = np.radians(turn)
    there = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    there = np.array([[1 + stretch, stretch / 2], [stretch / 2, 1 - stretch / 2]]) @ there
    back = np.linalg.inv(there)
    middle = np.array([columns / 2, rows / 2])
    offset = middle - back @ (middle + np.array(shift))
    picture = Image.fromarray(image).transform(
        (columns, rows),
        Image.Transform.AFFINE,
        (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1]),
        resample=Image.Resampling.BICUBIC,
        fillcolor=245,
    )
    specks = np.random.default_rng(seed).normal(0, noise, image.shape)
    return np.clip(np.asarray(picture, dtype=np.float64) + specks, 0, 255).astype(np.uint8)


def encoded(image: Bytes, kind: str = "PNG") -> bytes:
    """The image as the bytes of a file."""
    into = BytesIO()
    Image.fromarray(image).save(into, format=kind)
    return into.getvalue()
