"""Fingerprint accuracy on a folder of impressions, after the protocol of the Fingerprint Verification Competitions."""

from __future__ import annotations

import itertools
import re
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from infra.evaluation.comparisons import ErrorRates, error_rates
from servers.identity.fingerprint.cylinders import Cylinders, describe
from servers.identity.fingerprint.extractor import MAX_PIXELS, CaptureError, extract
from servers.identity.fingerprint.matcher import compare
from servers.identity.images import ImageError, decode_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

NAME: Final = re.compile(r"([^_]+)_(\d+)\.(?:png|jpe?g|bmp)", re.IGNORECASE)
"""`FINGER_IMPRESSION.png`, as FVC names its files."""


class ImpressionsError(RuntimeError):
    """A folder that cannot be measured; the text says what to do."""


@dataclass(frozen=True)
class Measured:
    """What was found: `figures` as printed, and the rates to draw."""

    figures: dict[str, Any]
    rates: ErrorRates


def find_impressions(folder: Path) -> dict[str, dict[int, Path]]:
    """Impressions by finger and number.

    Raises:
        ImpressionsError: No such folder, no images of that naming, or too few of them to compare.
    """
    if not folder.is_dir():
        raise ImpressionsError(f"{folder} is not a folder\n  -> give the folder that holds 101_1.png and so on")
    fingers: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        named = NAME.fullmatch(path.name)
        if named and path.is_file():
            fingers.setdefault(named[1], {})[int(named[2])] = path
    if not fingers:
        raise ImpressionsError(
            f"{folder} holds no image named FINGER_IMPRESSION.png\n  -> name them 101_1.png, 101_2.png, 102_1.png, ..."
        )
    if len(fingers) < 2 or all(len(impressions) < 2 for impressions in fingers.values()):
        raise ImpressionsError(
            f"{folder} cannot be compared: it takes two fingers, and two impressions of one of them\n"
            "  -> add impressions"
        )
    return fingers


def evaluate(folder: Path, step: Callable[[str, int, int], None]) -> Measured:
    """Compare every two impressions of a finger, and the first impressions of every two fingers.

    `step` is told what is done: a name, how much, of how much.

    Raises:
        ImpressionsError: As `find_impressions`.
    """
    fingers = find_impressions(folder)
    total = sum(len(impressions) for impressions in fingers.values())
    described: dict[Path, Cylinders] = {}
    failures: dict[str, str] = {}
    extracting: list[float] = []
    for impressions in fingers.values():
        for path in impressions.values():
            started = time.thread_time()
            try:
                described[path] = describe(extract(decode_file(path, MAX_PIXELS)).template.minutiae)
            except (CaptureError, ImageError) as error:
                failures[path.name] = str(error)
            extracting.append(time.thread_time() - started)
            step("extracting", len(extracting), total)
    genuine = [pair for found in fingers.values() for pair in itertools.combinations(found.values(), 2)]
    impostor = list(itertools.combinations([found[min(found)] for found in fingers.values()], 2))
    scores: list[float] = []
    matching: list[float] = []
    for first, second in (*genuine, *impostor):
        scores.append(_score(described, first, second, matching))
        step("comparing", len(scores), len(genuine) + len(impostor))
    rates = error_rates(scores[: len(genuine)], scores[len(genuine) :])
    at_100, threshold_100 = rates.at_false_match(0.01)
    at_1000, threshold_1000 = rates.at_false_match(0.001)
    figures = {
        "fingers": len(fingers),
        "impressions": total,
        "genuine": len(genuine),
        "impostor": len(impostor),
        "eer": rates.equal_error_rate(),
        "fmr100": at_100,
        "fmr1000": at_1000,
        "threshold_fmr100": threshold_100,
        "threshold_fmr1000": threshold_1000,
        "failure_to_acquire": len(failures) / total,
        "failures": failures,
        "extract_ms": _milliseconds(extracting),
        "match_ms": _milliseconds(matching),
    }
    if len(impostor) < 1000:
        figures["note"] = (
            f"{len(impostor)} impostor comparisons: the smallest false match rate that shows is"
            f" {1 / len(impostor):.2g}, so fmr100 and fmr1000 may both stand for none at all"
        )
    return Measured(figures, rates)


def _score(described: Mapping[Path, Cylinders], first: Path, second: Path, matching: list[float]) -> float:
    if first not in described or second not in described:
        return float("-inf")
    started = time.thread_time()
    score = compare(described[first], described[second]).score
    matching.append(time.thread_time() - started)
    return score


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    """Processor time. The first one compiles or loads the kernels: it is left out."""
    kept = seconds[1:] or [0.0]
    return {"median": 1000 * statistics.median(kept), "max": 1000 * max(kept)}
