"""`behaviorguard identity`: look into what the identity service sees."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import click

from infra.evaluation.fingerprint_picture import draw
from servers.identity.fingerprint.extractor import MAX_PIXELS, CaptureError, Extraction, extract
from servers.identity.fingerprint.template import Kind
from servers.identity.images import ImageError, decode_file


@click.group()
def identity() -> None:
    """See what the biometric extractors see."""


@identity.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Write the picture here, a PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as one JSON object.")
def explain(image: Path, out: Path, as_json: bool) -> None:
    """Draw what is seen of a finger: segmentation, ridge directions, quality, ridges, minutiae, cores and deltas.

    \b
    Example:
      behaviorguard identity explain finger.png --out seen.png

    Exit codes: 0 drawn; 1 the image cannot be used, the message says why; 2 wrong options.
    """
    try:
        pixels = decode_file(image, MAX_PIXELS)
        seen = extract(pixels)
        draw(pixels, seen).save(out, format="PNG")
    except (CaptureError, ImageError) as error:
        raise click.ClickException(f"{image.name}: {error}") from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or image}: {error.strerror or error}") from error
    found = _found(seen)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(
        f"{out}: {found['endings']} endings, {found['bifurcations']} bifurcations, {found['cores']} cores,"
        f" {found['deltas']} deltas, pattern {found['pattern']}, quality {found['quality']:.2f}"
    )


def _found(seen: Extraction) -> dict[str, int | float | str]:
    template = seen.template
    kinds = Counter(int(kind) for kind in template.minutiae.kind)
    return {
        "endings": kinds[Kind.ENDING],
        "bifurcations": kinds[Kind.BIFURCATION],
        "cores": len(template.cores),
        "deltas": len(template.deltas),
        "pattern": template.pattern.value,
        "quality": template.quality,
        "ridge_distance": float(seen.distance[seen.mask].mean()),
    }
