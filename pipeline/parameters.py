"""Trained parameters beside the three networks: cohort statistics, discriminants of single events, scaling,
calibration.

All are arrays in one file of the model repository (`features/1/parameters.npz`), described in `docs/models/`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, get_type_hints

import numpy as np

from pipeline.features.layout import EVIDENCE_VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

PARAMETERS_FILE: Final = "features/1/parameters.npz"


@dataclass(frozen=True, slots=True)
class TypingCohort:
    """How people type the phrase that the cohort was recorded with; K keys make M = 4 K - 1 measures (hold, flight,
    pressure, size).

    Attributes:
        prompt: code of the phrase, as in a sample's first slot.
        columns: int64[M], the measures' places among `layout.MEASURES`.
        mean: [M] of the cohort.
        spread: [M], how far a person strays from themselves (pooled).
        project: [M, J], bases in which within-person and between-person covariance are diagonal, subset beside subset.
        between: [J], variance between people in those bases (within is 1).
        segment: [J, 7], which columns belong to which subset.
        member: [7, M], which measures belong to which subset, rows adding up to 1.
        centroids: [C, M], centres of clusters of people, in units of `spread`.
    """

    prompt: float
    columns: NDArray[np.int64]
    mean: Floats
    spread: Floats
    project: Floats
    between: Floats
    segment: Floats
    member: Floats
    centroids: Floats


@dataclass(frozen=True, slots=True)
class MouseCohort:
    """How people move the mouse: the background model. U measures.

    Attributes:
        mean: [U] of the cohort.
        spread: [U] of single events around a person's own mean.
        project: [U, U], whitens the pooled within-person covariance.
        between: [U], variance between people after whitening.
    """

    mean: Floats
    spread: Floats
    project: Floats
    between: Floats


@dataclass(frozen=True, slots=True)
class Discriminant:
    """Calibrated log odds that the owner and not somebody else produced one event: `(features - mean) / spread @
    weight + bias`."""

    mean: Floats
    spread: Floats
    weight: Floats
    bias: float

    def log_odds(self, features: Floats) -> Floats:
        """[N, F] to [N]; positive speaks for the owner."""
        scaled = np.clip((features - self.mean) / self.spread, -6.0, 6.0)
        odds: Floats = scaled @ self.weight + np.float32(self.bias)
        return odds


@dataclass(frozen=True, slots=True)
class Calibration:
    """From one model's raw log odds of takeover to a probability: straight lines between knots, in log odds, for each
    of the R regimes.

    Attributes:
        raw: [R, K] rising raw log odds.
        log_odds: [R, K] rising calibrated log odds.
    """

    raw: Floats
    log_odds: Floats

    def probability(self, raw: Floats, regime: NDArray[np.intp], shift: Floats | float = 0.0) -> Floats:
        """[N] to [N] in 0..1; `shift` is added to the calibrated log odds."""
        held = np.clip(np.nan_to_num(raw), -60.0, 60.0)
        odds = np.zeros(held.shape)
        for index, (knots, values) in enumerate(zip(self.raw, self.log_odds, strict=True)):
            chosen = regime == index
            if chosen.any():
                odds[chosen] = np.interp(held[chosen], knots, values)
        probability: Floats = (1.0 / (1.0 + np.exp(-(odds + shift)))).astype(np.float32)
        return probability


@dataclass(frozen=True, slots=True)
class Parameters:
    """What training found, apart from the networks' weights.

    Attributes:
        version: of the weights and of these parameters together.
        accuracy: balanced accuracy of the ensemble on people never trained on, 0..1 (cross-validated;
            `docs/accuracy.md`).
        model_accuracy: the same of each model alone, by the model's name.
        typing_full: discriminant for the cohort's phrase with touch readings.
        typing_timing: discriminant for the cohort's phrase without touch readings.
        typing_generic: discriminant for any other text.
        feature_mean: [256], of genuine behaviour.
        feature_spread: [256], of genuine behaviour.
        error_weight: [512, R], weights of the autoencoder's signed and squared errors, for each regime.
        error_bias: [R].
        digests: marks of the people who were trained on, so that an evaluation can say so.
    """

    version: str
    accuracy: float
    model_accuracy: dict[str, float]
    typing: TypingCohort
    mouse: MouseCohort
    typing_full: Discriminant
    typing_timing: Discriminant
    typing_generic: Discriminant
    mouse_event: Discriminant
    feature_mean: Floats
    feature_spread: Floats
    error_weight: Floats
    error_bias: Floats
    anomaly: Calibration
    sequence: Calibration
    pattern: Calibration
    digests: tuple[str, ...] = field(default=())

    @classmethod
    def load(cls, repository: Path) -> Parameters:
        """Read the parameters of a model repository.

        Raises:
            FileNotFoundError: there are none.
            ValueError: they belong to another layout of samples, or are damaged.
        """
        path = repository / PARAMETERS_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"no parameters at {path}: point the pipeline at a model repository (pipeline/models)"
            )
        with np.load(path, allow_pickle=False) as data:
            arrays = dict(data)
        meta = json.loads(str(arrays.pop("meta")))
        if meta["evidence_version"] != EVIDENCE_VERSION:
            raise ValueError(
                f"{path} is for evidence version {meta['evidence_version']}, not {EVIDENCE_VERSION}: train again"
            )
        try:
            loaded: Parameters = _read(cls, "", arrays, meta)
        except KeyError as error:
            raise ValueError(f"{path} lacks {error}: train again") from error
        return loaded

    def save(self, repository: Path) -> None:
        """Write the parameters into a model repository."""
        path = repository / PARAMETERS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, NDArray[Any]] = {}
        meta: dict[str, Any] = {"evidence_version": EVIDENCE_VERSION}
        _write(self, "", arrays, meta)
        # The marks stay inside the compressed file's own order, so that the same training writes the same bytes.
        np.savez_compressed(path, allow_pickle=False, meta=np.array(json.dumps(meta, sort_keys=True)), **arrays)


_PARTS: Final = (TypingCohort, MouseCohort, Discriminant, Calibration)


def _read(cls: type[Any], prefix: str, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Any:
    hints = get_type_hints(cls, {**globals(), "NDArray": np.ndarray, "Floats": np.ndarray})
    values: dict[str, Any] = {}
    for item in fields(cls):
        name, kind = prefix + item.name, hints[item.name]
        if kind in _PARTS:
            values[item.name] = _read(kind, name + ".", arrays, meta)
        elif name in arrays:
            values[item.name] = arrays[name]
        else:
            value = meta[name]
            values[item.name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _write(part: Any, prefix: str, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> None:
    for item in fields(part):
        value = getattr(part, item.name)
        if isinstance(value, _PARTS):
            _write(value, prefix + item.name + ".", arrays, meta)
        elif isinstance(value, np.ndarray):
            arrays[prefix + item.name] = value
        else:
            meta[prefix + item.name] = value
