"""A person's own normal: what each slot of a sample usually is for them, how far it usually strays, and how far they
usually are from themselves.

The profile holds running sums alone, never a recording. Statistics of key positions belong to a known text (`prompt`)
and are kept for the few texts that the person typed last; all others belong to the person.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from servers.threat import behavior
from servers.threat.behavior import MOUSE, POSITIONS, PROMPT, SLOTS, TYPING
from servers.threat.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from servers.threat.behavior import Floats

    Doubles = NDArray[np.float64]

SAMPLES_NEEDED: Final = 12
"""Typing or mouse samples that a profile needs before its deviations mean something."""

MEMORY: Final = 100.0
"""Samples over which a mean is taken at most; older ones fade, so that a baseline follows a person's slow drift."""

PROMPTS_KEPT: Final = 4
"""Known texts whose key positions are kept."""

GROUPS: Final = ("hold", "flight", "pressure", "size", "typing", "mouse")
"""Groups of slots whose distance from the person's mean is followed (`self_*` in the header)."""

HEADER: Final = (
    "typing_samples",
    "mouse_samples",
    "prompt_samples",
    "prompt",
    *(f"self_mean_{group}" for group in GROUPS),
    *(f"self_spread_{group}" for group in GROUPS),
)
MEASURES: Final = SLOTS[1:]
"""Slots that have a mean and a spread: all but the prompt."""

BASELINE_SIZE: Final = len(HEADER) + 2 * len(MEASURES)
"""Length of a packed baseline: the header, the mean of every measure, the spread of every measure."""

_N: Final = len(MEASURES)
_KEYS: Final = behavior.KEYS
_GROUP_SLICES: Final = (
    slice(0, _KEYS),
    slice(_KEYS, 2 * _KEYS - 1),
    slice(2 * _KEYS - 1, 3 * _KEYS - 1),
    slice(3 * _KEYS - 1, 4 * _KEYS - 1),
    slice(TYPING.start - 1, TYPING.stop - 1),
    slice(MOUSE.start - 1, MOUSE.stop - 1),
)
_POSITIONS: Final = slice(POSITIONS.start - 1, POSITIONS.stop - 1)
_LEARN_FROM: Final = 5
_SPREAD_PRIOR: Final = 4.0
_SELF_PRIOR: Final = 0.25
_CLIP: Final = 4.0
_MOUSE_GROUP: Final = GROUPS.index("mouse")
_POSITION_COUNT: Final = POSITIONS.stop - POSITIONS.start
_GROUP_OF: Final = np.concatenate(
    [np.full(part.stop - part.start, group) for group, part in enumerate(_GROUP_SLICES)]
).astype(np.int64)
"""Group of each measure."""


def _prior_spread() -> Doubles:
    """Spread assumed before anything was learnt, in each slot's unit (most are natural logarithms)."""
    prior = np.full(_N, 0.30)
    prior[_GROUP_SLICES[0]] = 0.20
    shares = ("share", "direction", "rate", "straightness")
    for index, name in enumerate(MEASURES):
        if any(word in name for word in shares):
            prior[index] = 0.12
        elif index >= MOUSE.start - 1:
            prior[index] = 0.45
    return prior


_PRIOR: Final = _prior_spread()


class _Moments:
    """Running count, mean and sum of squared deviations per slot, the rows of one table [3, N]; NaN inputs are
    skipped."""

    __slots__ = ("table",)

    def __init__(self, table: Doubles) -> None:
        self.table = table

    @classmethod
    def empty(cls, size: int) -> _Moments:
        return cls(np.zeros((3, size)))

    @property
    def count(self) -> Doubles:
        row: Doubles = self.table[0]
        return row

    @property
    def mean(self) -> Doubles:
        row: Doubles = self.table[1]
        return row

    @property
    def square(self) -> Doubles:
        row: Doubles = self.table[2]
        return row

    def add(self, values: Doubles) -> None:
        count, mean, square = self.table
        seen = np.isfinite(values)
        # Beyond MEMORY samples, the old ones fade: the same update as if only MEMORY had been seen.
        square *= np.where(seen & (count >= MEMORY), (MEMORY - 1.0) / MEMORY, 1.0)
        np.minimum(count + seen, MEMORY, out=count)
        delta = np.where(seen, values - mean, 0.0)
        mean += delta / np.maximum(count, 1.0)
        square += delta * np.where(seen, values - mean, 0.0)

    def spread(self, prior: Doubles | float) -> Doubles:
        """Standard deviation, drawn towards the prior while little is known."""
        spread: Doubles = np.sqrt(
            (self.square + _SPREAD_PRIOR * np.square(prior)) / (np.maximum(self.count - 1.0, 0.0) + _SPREAD_PRIOR)
        )
        return spread

    def copy(self) -> _Moments:
        return _Moments(self.table.copy())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Moments) and np.array_equal(self.table, other.table)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def to_json(self) -> list[list[float]]:
        rows: list[list[float]] = self.table.tolist()
        return rows

    @classmethod
    def from_json(cls, data: list[list[float]], size: int) -> _Moments:
        columns = [np.asarray(column, np.float64) for column in data]
        if len(columns) != 3 or any(column.shape != (size,) or not np.isfinite(column).all() for column in columns):
            raise ValueError("the profile's statistics have the wrong size: start the person's enrolment again")
        return cls(np.array(columns))


class Deviations(NamedTuple):
    """How far a sample is from a person's normal, 0 (own) to 1; 0.5 where nothing was observed or learnt."""

    typing: float = 0.5
    mouse: float = 0.5
    overall: float = 0.5


@dataclass(slots=True)
class Profile:
    """A person's own normal. `learn` only from events judged normal, or while `enrolling`."""

    typing_samples: int = 0
    mouse_samples: int = 0
    _all: _Moments = field(default_factory=lambda: _Moments.empty(_N))
    _prompts: dict[int, _Moments] = field(default_factory=dict)
    _self: _Moments = field(default_factory=lambda: _Moments.empty(len(GROUPS)))
    _vectors: dict[int, Floats] = field(default_factory=dict, repr=False, compare=False)

    @property
    def enrolling(self) -> bool:
        """True until enough was seen of the typing or of the mouse."""
        return max(self.typing_samples, self.mouse_samples) < SAMPLES_NEEDED

    def learn(self, sample: Floats) -> None:
        """Take a sample (float32[len(SLOTS)]) into the person's normal."""
        values = sample[1:].astype(np.float64)
        prompt = _prompt_of(sample)
        mean, spread, count = self._normal(prompt)
        settled = count >= _LEARN_FROM
        distance = np.where(settled, (values - mean) / spread, np.nan)
        self._self.add(_group_distances(distance))
        # One wild value must not move a mean far: hold it to the edge of what has been usual.
        values = np.where(settled, np.clip(values, mean - _CLIP * spread, mean + _CLIP * spread), values)
        positions = values[_POSITIONS]
        if prompt:
            moments = self._prompts.pop(prompt, None) or _Moments.empty(positions.size)
            moments.add(positions)
            self._prompts[prompt] = moments
            while len(self._prompts) > PROMPTS_KEPT:
                self._prompts.pop(next(iter(self._prompts)))
        values[_POSITIONS] = np.nan
        self._all.add(values)
        self.typing_samples += bool(np.isfinite(sample[TYPING]).any())
        self.mouse_samples += bool(np.isfinite(sample[MOUSE]).any())
        self._vectors.clear()

    def copy(self) -> Profile:
        """An independent copy."""
        prompts = {prompt: moments.copy() for prompt, moments in self._prompts.items()}
        return Profile(self.typing_samples, self.mouse_samples, self._all.copy(), prompts, self._self.copy())

    def vector(self, sample: Floats | None = None) -> Floats:
        """The packed baseline for the text that `sample` typed: float32[BASELINE_SIZE], NaN where nothing was learnt.
        Do not change it in
        place: it is kept until the next `learn`.
        """
        prompt = _prompt_of(sample) if sample is not None else next(reversed(self._prompts), 0)
        cached = self._vectors.get(prompt)
        if cached is None:
            cached = self._pack(prompt)
            if prompt in self._prompts or not prompt:
                self._vectors[prompt] = cached
        return cached

    def _pack(self, prompt: int) -> Floats:
        mean, spread, count = self._normal(prompt)
        known = count > 0
        learnt = self._prompts.get(prompt)
        self_known = self._self.count > 0
        return np.concatenate(
            [
                [self.typing_samples, self.mouse_samples, learnt.count.max() if learnt else 0.0, prompt],
                np.where(self_known, self._self.mean, np.nan),
                np.where(self_known, self._self.spread(_SELF_PRIOR), np.nan),
                np.where(known, mean, np.nan),
                np.where(known, spread, np.nan),
            ]
        ).astype(np.float32)

    def _normal(self, prompt: int) -> tuple[Doubles, Doubles, Doubles]:
        """Mean, spread and count of every measure, key positions being those of the given text."""
        mean, count = self._all.mean.copy(), self._all.count.copy()
        spread = self._all.spread(_PRIOR)
        learnt = self._prompts.get(prompt)
        if learnt is not None:
            mean[_POSITIONS], count[_POSITIONS] = learnt.mean, learnt.count
            spread[_POSITIONS] = learnt.spread(_PRIOR[_POSITIONS])
        return mean, spread, count

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form; `from_json` reads it."""
        return {
            "version": behavior.EVIDENCE_VERSION,
            "typing_samples": self.typing_samples,
            "mouse_samples": self.mouse_samples,
            "all": self._all.to_json(),
            "prompts": {str(prompt): moments.to_json() for prompt, moments in self._prompts.items()},
            "self": self._self.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Profile:
        """The profile that `to_json` wrote.

        Raises:
            ValueError: it was written for another layout of samples, or is damaged.
        """
        try:
            if data["version"] != behavior.EVIDENCE_VERSION:
                raise ValueError(
                    f"the profile has layout {data['version']}, not {behavior.EVIDENCE_VERSION}: enrol the person again"
                )
            positions = _POSITIONS.stop - _POSITIONS.start
            return cls(
                int(data["typing_samples"]),
                int(data["mouse_samples"]),
                _Moments.from_json(data["all"], _N),
                {int(prompt): _Moments.from_json(moments, positions) for prompt, moments in data["prompts"].items()},
                _Moments.from_json(data["self"], len(GROUPS)),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"the profile is damaged ({error!r}): start the person's enrolment again") from error


def deviations(profile: Profile, sample: Floats) -> Deviations:
    """How far `sample` is from the person's normal, in the person's own usual distance from themselves."""
    everything = profile._all.table
    learnt = profile._prompts.get(_prompt_of(sample))
    positions = learnt.table if learnt is not None else everything
    return Deviations(*_scores(sample, everything, positions, profile._self.table))


@compiled
def _scores(sample: Floats, everything: Doubles, positions: Doubles, itself: Doubles) -> tuple[float, float, float]:
    """The three values of `Deviations`. The tables are those of `_Moments`; key positions come first."""
    total, seen = np.zeros(len(GROUPS)), np.zeros(len(GROUPS))
    for slot in range(len(_PRIOR)):
        learnt = positions if slot < _POSITION_COUNT else everything
        value = sample[slot + 1]
        if learnt[0, slot] >= _LEARN_FROM and math.isfinite(value):
            group = _GROUP_OF[slot]
            spread = _spread(learnt[0, slot], learnt[2, slot], _PRIOR[slot])
            total[group] += min(abs((value - learnt[1, slot]) / spread), _CLIP)
            seen[group] += 1
    typing = mouse = 0.5
    excess, known = 0.0, 0
    for group in range(len(GROUPS)):
        if not seen[group] or not itself[0, group] > 0:
            continue
        stray = _spread(itself[0, group], itself[2, group], _SELF_PRIOR)
        beyond = (total[group] / seen[group] - itself[1, group]) / stray
        if group == _MOUSE_GROUP:
            mouse = _unit(beyond)
        else:
            excess, known = excess + beyond, known + 1
            typing = _unit(excess / known)
    overall = max(typing if known else 0.0, mouse if seen[_MOUSE_GROUP] and itself[0, _MOUSE_GROUP] > 0 else 0.0)
    return typing, mouse, overall if overall > 0.0 else 0.5


@compiled
def _spread(count: float, square: float, prior: float) -> float:
    """See `_Moments.spread`."""
    return math.sqrt((square + _SPREAD_PRIOR * prior * prior) / (max(count - 1.0, 0.0) + _SPREAD_PRIOR))


@compiled
def _unit(excess: float) -> float:
    """Own distance beyond the usual, in own spreads, to 0..1: the usual is 0.12, two spreads beyond it 0.5."""
    return 1.0 / (1.0 + math.exp(-min(max(excess - 2.0, -30.0), 30.0)))


def _prompt_of(sample: Floats) -> int:
    code = float(sample[PROMPT])
    return int(code) if 0 < code < math.inf else 0


def _group_distances(scaled: Doubles) -> Doubles:
    """Mean absolute scaled deviation of each group, values beyond `_CLIP` held there; NaN for a group that is not
    there."""
    size = np.minimum(np.abs(scaled), _CLIP)
    seen = np.isfinite(size)
    size = np.where(seen, size, 0.0)
    return np.array(
        [size[part].sum() / total if (total := np.count_nonzero(seen[part])) else np.nan for part in _GROUP_SLICES]
    )
