"""Error rates in the terms of ISO/IEC 19795: what share of owners' events is called somebody else's (false alarm,
FRR) and what share of attackers' is taken for the owner (miss, FAR), by person, with intervals from resampling people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from infra.evaluation.protocol import Played

    Doubles = NDArray[np.float64]
    Mask = NDArray[np.bool_]

LENGTHS: Final = (1, 3, 5, 10, 20)
"""Events after which balanced accuracy is stated."""

SUSPICIOUS: Final = 0.3
"""Score at which both errors weigh the same: balanced accuracy is counted here."""

THREAT: Final = 0.7
"""Score that raises the alarm: false alarms and events to detection are counted here."""

RESAMPLES: Final = 500


def equal_error_rate(own: Doubles, other: Doubles) -> float:
    """The rate at which both errors are equal; `other` scores higher. NaN where either is empty."""
    own, other = np.sort(own[np.isfinite(own)]), np.sort(other[np.isfinite(other)])
    if not len(own) or not len(other):
        return float("nan")
    thresholds = np.unique(np.concatenate((own, other)))
    false_alarm = 1.0 - np.searchsorted(own, thresholds, "left") / len(own)
    miss = np.searchsorted(other, thresholds, "left") / len(other)
    at = int(np.argmin(np.abs(false_alarm - miss)))
    return float((false_alarm[at] + miss[at]) / 2)


def after(values: Doubles, takeover: NDArray[np.int64], length: int) -> Doubles:
    """[Q] values at the `length`-th event of the attacker, or of the session where there is none; NaN beyond the
    end."""
    at = np.maximum(takeover, 0) + length - 1
    inside = at < values.shape[1]
    found = values[np.arange(len(values)), np.minimum(at, values.shape[1] - 1)].astype(np.float64)
    return np.where(inside, found, np.nan)


def correct(played: Played, values: Doubles, length: int, threshold: float) -> Doubles:
    """[Q] 1 where the decision after `length` events is right, 0 where wrong, NaN where the session is shorter."""
    found = after(values, played.takeover, length)
    right = np.where(played.takeover >= 0, found >= threshold, found < threshold).astype(np.float64)
    return np.where(np.isfinite(found), right, np.nan)


def balanced(right: Doubles, attacked: Mask, weight: Doubles | None = None) -> float:
    """Mean of the shares of owners' and attackers' sessions that were decided rightly."""
    weight = np.ones(len(right)) if weight is None else weight
    weight = np.where(np.isfinite(right), weight, 0.0)
    right = np.nan_to_num(right)
    shares = [
        float((right * weight)[chosen].sum() / total) if (total := weight[chosen].sum()) else float("nan")
        for chosen in (attacked, ~attacked)
    ]
    return (shares[0] + shares[1]) / 2


def interval(played: Played, right: Doubles, seed: int = 5) -> list[float]:
    """95 % interval of balanced accuracy: typists and mouse users are drawn anew, with all sessions they are the
    victim of."""
    random = np.random.default_rng(seed)
    attacked = played.takeover >= 0
    found = []
    for _ in range(RESAMPLES):
        weight = np.ones(len(right))
        for column in (0, 1):
            people = played.sessions[:, column]
            if people.min() < 0:
                continue
            count = int(people.max()) + 1
            drawn = np.bincount(random.integers(count, size=count), minlength=count)
            weight = weight * drawn[people]
        found.append(balanced(right, attacked, weight))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return [round(float(low), 4), round(float(high), 4)]


def modality(played: Played) -> dict[str, Any]:
    """All figures of one modality."""
    score = played.scores[:, :, 0].astype(np.float64)
    attacked = played.takeover >= 0
    from_start, midway = played.takeover == 0, played.takeover > 0
    own = ~attacked
    # Where there are fewer entries than a session has events, the longest sessions count.
    events = np.isfinite(score).sum(1)
    whole = own & (events == events[own].max())
    lengths = {}
    for length in LENGTHS:
        right = correct(played, score, length, SUSPICIOUS)
        lengths[str(length)] = {
            "balanced_accuracy": _round(balanced(right, attacked)),
            "ci95": interval(played, right),
            "from_start": _round(balanced(right[own | from_start], attacked[own | from_start])),
            "mid_session": _round(balanced(right[own | midway], attacked[own | midway])),
            "false_alarm_rate": _round(1 - float(np.nanmean(right[own]))),
            "miss_rate": _round(1 - float(np.nanmean(right[attacked]))),
            "eer": _round(
                equal_error_rate(*(after(score, played.takeover, length)[side] for side in (own, from_start)))
            ),
        }
    return {
        "by_events": lengths,
        "eer_event": lengths["1"]["eer"],
        "events_to_detect_median": detection(score[attacked], played.takeover[attacked])["median"],
        "detection": {
            "from_start": detection(score[from_start], played.takeover[from_start]),
            "mid_session": detection(score[midway], played.takeover[midway]),
        },
        "false_alarms_per_session": _round(float((np.nanmax(score[whole], 1) >= THREAT).mean())),
        "false_alarms_ci95": _alarm_interval(played.where(whole)),
        "sessions": {"own": int(own.sum()), "attacked": int(attacked.sum())},
    }


def detection(score: Doubles, takeover: NDArray[np.int64]) -> dict[str, float | None]:
    """Events until the level 'threat', from the attacker's first: median and share found; sessions never found count
    as endless."""
    event = np.arange(score.shape[1])[None]
    hit = (np.nan_to_num(score) >= THREAT) & (event >= takeover[:, None])
    needed = np.where(hit.any(1), hit.argmax(1) - takeover + 1.0, np.inf)
    middle = float(np.median(needed)) if len(needed) else float("nan")
    return {
        "median": middle if np.isfinite(middle) else None,
        "p90": quantile if np.isfinite(quantile := float(np.quantile(needed, 0.9, method="higher"))) else None,
        "found_within_20": _round(float(np.isfinite(needed).mean())),
    }


def worst(played: Played, names: list[str], column: int, length: int, count: int = 5) -> list[dict[str, Any]]:
    """The victims with the lowest balanced accuracy after `length` events."""
    right = correct(played, played.scores[:, :, 0].astype(np.float64), length, SUSPICIOUS)
    attacked, people = played.takeover >= 0, played.sessions[:, column]
    found = []
    for person in np.unique(people):
        chosen = people == person
        found.append((balanced(right[chosen], attacked[chosen]), names[person]))
    return [{"person": name, "balanced_accuracy": _round(value)} for value, name in sorted(found)[:count]]


def ablation(played: Played) -> dict[str, dict[str, float]]:
    """Balanced accuracy by number of events of what the ensemble is made of, each counted at 0.3 like the ensemble
    itself.

    `distance` is the service's preliminary distance, averaged over the session; its threshold is chosen on the same
    data, which favours it. `odds` are the event discriminants' log odds, averaged over the session, counted at 0.
    """
    anomaly, sequence, pattern = (played.scores[:, :, index].astype(np.float64) for index in (1, 2, 3))
    candidates = {
        "odds_averaged": (-_running_mean(played.odds, played.takeover), 0.0),
        "autoencoder": (anomaly, SUSPICIOUS),
        "autoencoder_lstm": ((0.4 * anomaly + 0.3 * sequence) / 0.7, SUSPICIOUS),
        "autoencoder_lstm_transformer": (0.4 * anomaly + 0.3 * sequence + 0.3 * pattern, SUSPICIOUS),
        "lstm_alone": (sequence, SUSPICIOUS),
        "transformer_alone": (pattern, SUSPICIOUS),
    }
    attacked = played.takeover >= 0
    found = {
        name: {
            str(length): _round(balanced(correct(played, values, length, threshold), attacked)) for length in LENGTHS
        }
        for name, (values, threshold) in candidates.items()
    }
    simple = _running_mean(played.simple, played.takeover)
    found["distance"] = {
        str(length): _round(
            max(
                balanced(correct(played, simple, length, threshold), attacked)
                for threshold in np.linspace(0.05, 0.95, 91)
            )
        )
        for length in LENGTHS
    }
    return found


def _running_mean(values: Any, takeover: NDArray[np.int64]) -> Doubles:
    """Mean since the attacker's first event (which a system cannot know: this favours the simple methods)."""
    filled = np.nan_to_num(values).astype(np.float64)
    total = np.cumsum(filled, 1)
    start = np.maximum(takeover, 0)
    before = np.where(start > 0, total[np.arange(len(total)), np.maximum(start - 1, 0)], 0.0)
    count = np.arange(1, values.shape[1] + 1)[None] - start[:, None]
    mean = (total - before[:, None]) / np.maximum(count, 1)
    return np.where(np.isfinite(values), mean, np.nan)


def _alarm_interval(own: Played) -> list[float]:
    alarm = (np.nanmax(own.scores[:, :, 0], 1) >= THREAT).astype(np.float64)
    random = np.random.default_rng(6)
    found = []
    for _ in range(RESAMPLES):
        weight = np.ones(len(alarm))
        for column in (0, 1):
            people = own.sessions[:, column]
            if people.min() >= 0:
                count = int(people.max()) + 1
                weight = weight * np.bincount(random.integers(count, size=count), minlength=count)[people]
        found.append(float((alarm * weight).sum() / weight.sum()) if weight.sum() else np.nan)
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return [_round(float(low)), _round(float(high))]


def _round(value: float) -> float:
    return round(float(value), 4)
