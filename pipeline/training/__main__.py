"""`python -m pipeline.training RECORDINGS`: train on everybody in the arrays and write the model repository.

The arrays come from `python -m infra.evaluation.prepare`. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from pipeline.backends.manifest import write
from pipeline.training.data import Recordings
from pipeline.training.networks import export
from pipeline.training.train import Settings, train


def main() -> None:
    """Train, export, write parameters and manifest."""
    arguments = _parser().parse_args()
    start = time.monotonic()
    recordings = Recordings.load(arguments.recordings)
    settings = Settings(arguments.seed, arguments.sessions, arguments.epochs)

    def say(what: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - start:6.1f} s] {what}\n")

    trained = train(
        recordings, range(len(recordings.typists.sample)), range(len(recordings.mouse.sample)), settings, say
    )
    figures = json.loads(arguments.accuracy.read_text()) if arguments.accuracy else {}
    parameters = dataclasses.replace(
        trained.parameters,
        version=arguments.version,
        digests=recordings.digests,
        accuracy=figures.get("balanced_accuracy", 0.0),
        model_accuracy=_by_model(figures) or trained.parameters.model_accuracy,
    )
    export(trained.nets, arguments.output)
    parameters.save(arguments.output)
    say(f"wrote {write(arguments.output)}")


def _by_model(figures: dict[str, object]) -> dict[str, float]:
    """Cross-validated balanced accuracy of each model alone after 20 events, from the JSON of
    `infra.evaluation.crossvalidate`."""
    ablation = figures.get("ablation")
    if not isinstance(ablation, dict):
        return {}
    names = {
        "anomaly-detection": "autoencoder",
        "sequence-analysis": "lstm_alone",
        "behavioral-transformer": "transformer_alone",
    }
    return {model: float(ablation["fused"][name]["20"]) for model, name in names.items()}


def _parser() -> argparse.ArgumentParser:
    usual = Settings()
    parser = argparse.ArgumentParser(prog="python -m pipeline.training", description="Train the models.")
    parser.add_argument("recordings", type=Path, help="arrays written by python -m infra.evaluation.prepare")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "models", help="model repository")
    parser.add_argument("--version", default="1.1.0", help="version of weights and parameters")
    parser.add_argument(
        "--accuracy", type=Path, help="JSON of infra.evaluation.crossvalidate, for the models' stated accuracy"
    )
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--sessions", type=int, default=usual.sessions)
    parser.add_argument("--epochs", type=int, default=usual.epochs)
    return parser


if __name__ == "__main__":
    main()
