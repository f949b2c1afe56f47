"""`python -m infra.evaluation.figure FIGURES.json PICTURE.svg`: balanced accuracy by number of events, and what each
model adds. Needs matplotlib."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import click

SIMPLE_BASELINE: Final = {"1": 0.931, "3": 0.954, "5": 0.963, "10": 0.968, "20": 0.971}
"""A logistic regression and gradient-boosted trees on deviations, fused, on the same recordings; the bar to pass."""

LABELS: Final = {
    "fused": "typing with touch + mouse (chimeric)",
    "typing": "typing with touch",
    "typing_without_touch": "typing, timing alone",
    "typing_of_other_text": "typing, a phrase the models never met",
    "mouse": "mouse",
}
PARTS: Final = {
    "distance": "distance from the baseline",
    "autoencoder": "+ autoencoder",
    "autoencoder_lstm": "+ LSTM",
    "autoencoder_lstm_transformer": "+ transformer",
}


def draw(figures: dict[str, Any], picture: Path) -> None:
    """Write the picture."""
    from matplotlib.figure import Figure  # noqa: PLC0415  matplotlib is a development tool

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label in LABELS.items():
        lengths = figures["modalities"][name]["by_events"]
        at = [int(length) for length in lengths]
        values = [100 * part["balanced_accuracy"] for part in lengths.values()]
        low, high = ([100 * part["ci95"][side] for part in lengths.values()] for side in (0, 1))
        left.plot(at, values, marker="o", label=label)
        left.fill_between(at, low, high, alpha=0.12)
    simple = {int(length): 100 * value for length, value in SIMPLE_BASELINE.items()}
    left.plot(list(simple), list(simple.values()), "k--", label="simple baseline, fused")
    left.set_title("People never trained on, 95 % intervals")
    for name, label in PARTS.items():
        values = figures["ablation"]["fused"][name]
        right.plot([int(n) for n in values], [100 * value for value in values.values()], marker="o", label=label)
    right.set_title("What each part adds (fused)")
    right.set_ylim(88, 100)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks([1, 3, 5, 10, 20], labels=["1", "3", "5", "10", "20"])
        axes.set_xlabel("events since the takeover")
        axes.set_ylabel("balanced accuracy, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower right")
    figure.savefig(picture, metadata={"Date": None})


@click.command()
@click.argument("figures", type=click.Path(exists=True, path_type=Path))
@click.argument("picture", type=click.Path(path_type=Path))
def main(figures: Path, picture: Path) -> None:
    """Draw the figures of a cross-validation."""
    draw(json.loads(figures.read_text()), picture)


if __name__ == "__main__":
    main()
