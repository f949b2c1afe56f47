"""What the extractor saw, drawn: for a person who must judge a capture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageDraw

from servers.identity.fingerprint.grid import CELL
from servers.identity.fingerprint.template import Kind

if TYPE_CHECKING:
    import numpy.typing as npt

    from servers.identity.compiled import Bytes
    from servers.identity.fingerprint.extractor import Extraction
    from servers.identity.fingerprint.template import Template

    Pixels = npt.NDArray[np.uint8]

_ENDING: Final = (200, 30, 30)
_FORK: Final = (30, 60, 210)
_CORE: Final = (0, 130, 60)
_DELTA: Final = (170, 0, 150)
_CAPTION: Final = 16


def draw(image: Bytes, seen: Extraction) -> Image.Image:
    """Six panels: segmentation, ridge directions, quality map, enhanced ridges, skeleton, minutiae."""
    rows, columns = image.shape
    grey = Image.fromarray(image).convert("RGB")
    lines = np.where(seen.skeleton > 0, 0, 255).astype(np.uint8)[:rows, :columns]
    ridges = np.clip(128 - 110 * seen.clear, 0, 255).astype(np.uint8)[:rows, :columns]
    template = seen.template
    panels = (
        (f"segmentation: {int(seen.mask.sum())} cells of {CELL} pixels", _segmented(image, seen)),
        (f"ridge directions; {template.pattern.value.replace('_', ' ')}", _directions(grey.copy(), seen)),
        (f"quality, red 0 to green 1; overall {template.quality:.2f}", _quality(image, seen)),
        ("enhanced ridges", Image.fromarray(ridges).convert("RGB")),
        ("skeleton", Image.fromarray(lines).convert("RGB")),
        (_legend(template), _minutiae(grey.copy(), template)),
    )
    sheet = Image.new("RGB", (3 * columns, 2 * (rows + _CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (caption, panel) in enumerate(panels):
        x, y = number % 3 * columns, number // 3 * (rows + _CAPTION)
        pen.text((x + 3, y + 2), caption, fill="black")
        sheet.paste(panel, (x, y + _CAPTION))
    return sheet


def _legend(template: Template) -> str:
    kinds = template.minutiae.kind
    return (
        f"{int((kinds == Kind.ENDING).sum())} endings (red), {int((kinds == Kind.BIFURCATION).sum())} forks (blue), "
        f"{len(template.cores)} cores (green), {len(template.deltas)} deltas (violet)"
    )


def _pixels(cells: npt.NDArray[np.generic], image: Bytes) -> npt.NDArray[np.generic]:
    return np.repeat(np.repeat(cells, CELL, axis=0), CELL, axis=1)[: image.shape[0], : image.shape[1]]


def _segmented(image: Bytes, seen: Extraction) -> Image.Image:
    faded = (image // 3 + 160).astype(np.uint8)
    return Image.fromarray(np.where(_pixels(seen.mask, image), image, faded).astype(np.uint8)).convert("RGB")


def _quality(image: Bytes, seen: Extraction) -> Image.Image:
    quality = _pixels(np.where(seen.mask, seen.quality, 0).astype(np.float32), image).astype(np.float32)
    colours = np.stack((1 - quality, quality, np.zeros_like(quality)), axis=-1)
    shown = 0.5 * image[..., None] + 127 * colours
    shown[~_pixels(seen.mask, image).astype(bool)] = 235
    return Image.fromarray(shown.astype(np.uint8))


def _directions(panel: Image.Image, seen: Extraction) -> Image.Image:
    pen = ImageDraw.Draw(panel)
    angle = seen.field.angle
    for row, column in np.argwhere(seen.mask):
        x, y = column * CELL + CELL / 2, row * CELL + CELL / 2
        dx, dy = 4 * np.cos(angle[row, column]), 4 * np.sin(angle[row, column])
        pen.line((x - dx, y - dy, x + dx, y + dy), fill=(220, 120, 0))
    return panel


def _minutiae(panel: Image.Image, template: Template) -> Image.Image:
    pen = ImageDraw.Draw(panel)
    found = template.minutiae
    for x, y, angle, kind in zip(found.x, found.y, found.angle, found.kind, strict=True):
        colour = _ENDING if kind == Kind.ENDING else _FORK
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), outline=colour)
        pen.line((x, y, x + 10 * np.cos(angle), y - 10 * np.sin(angle)), fill=colour)
    for core in template.cores:
        pen.ellipse((core.x - 8, core.y - 8, core.x + 8, core.y + 8), outline=_CORE, width=2)
        if core.angle is not None:
            end = (core.x + 22 * np.cos(core.angle), core.y - 22 * np.sin(core.angle))
            pen.line((core.x, core.y, *end), fill=_CORE, width=2)
    for delta in template.deltas:
        corners = ((delta.x, delta.y - 9), (delta.x - 8, delta.y + 6), (delta.x + 8, delta.y + 6))
        pen.polygon(corners, outline=_DELTA, width=2)
    return panel
