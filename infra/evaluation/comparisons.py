"""Error rates of a biometric comparison, in the terms of ISO/IEC 19795-1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt


class PlotError(RuntimeError):
    """A curve that cannot be drawn here; the text says what to install."""


@dataclass(frozen=True)
class ErrorRates:
    """False match and false non-match rates (0 to 1) at every threshold that makes a difference, rising.

    A comparison that could not be made because a sample gave no template has the score minus infinity: it is a
    rejection at every threshold, for genuine and impostor attempts alike (generalised rates of ISO/IEC 19795-1).
    """

    thresholds: npt.NDArray[np.float64]
    false_match: npt.NDArray[np.float64]
    false_non_match: npt.NDArray[np.float64]

    def equal_error_rate(self) -> float:
        """Where both rates cross; between two thresholds the middle of the nearer pair (as FVC2000 defines it)."""
        below = np.nonzero(self.false_non_match <= self.false_match)[0]
        # Where too few samples gave a template the rates never cross: then the lowest threshold comes nearest.
        before = below[-1] if len(below) else 0
        after = np.nonzero(self.false_non_match >= self.false_match)[0][0]
        nearer = min((before, after), key=lambda k: self.false_match[k] + self.false_non_match[k])
        return float(self.false_match[nearer] + self.false_non_match[nearer]) / 2

    def at_false_match(self, limit: float) -> tuple[float, float]:
        """Lowest false non-match rate with at most `limit` false matches, and the threshold that gives it."""
        first = np.nonzero(self.false_match <= limit)[0][0]
        return float(self.false_non_match[first]), float(self.thresholds[first])


def error_rates(genuine: Sequence[float], impostor: Sequence[float]) -> ErrorRates:
    """Rates for scores where more is more alike; a comparison is accepted at or above the threshold.

    Raises:
        ValueError: No genuine or no impostor score.
    """
    if not len(genuine) or not len(impostor):
        raise ValueError("error rates need genuine and impostor comparisons")
    same, other = np.sort(np.asarray(genuine, dtype=np.float64)), np.sort(np.asarray(impostor, dtype=np.float64))
    finite = np.concatenate((same, other))
    finite = np.unique(finite[np.isfinite(finite)])
    # Above the last score nothing matches.
    thresholds = np.append(finite, np.nextafter(finite[-1], np.inf) if len(finite) else 0.0)
    return ErrorRates(
        thresholds=thresholds,
        false_match=1 - np.searchsorted(other, thresholds, side="left") / len(other),
        false_non_match=np.searchsorted(same, thresholds, side="left") / len(same),
    )


def draw_det(rates: ErrorRates, title: str, path: Path) -> None:
    """Write the detection error trade-off curve as a PNG, both axes logarithmic.

    Raises:
        PlotError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - a development dependency, needed here alone
    except ImportError as error:
        raise PlotError("drawing needs matplotlib\n  -> pip install matplotlib, or leave out --out") from error
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    floor = 1e-3
    axes.step(np.maximum(rates.false_match, floor), np.maximum(rates.false_non_match, floor), where="post")
    axes.plot([floor, 1], [floor, 1], linestyle=":", color="grey", label="equal error")
    axes.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor, 1), title=title)
    axes.set(xlabel="false match rate", ylabel="false non-match rate")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, format="png")
