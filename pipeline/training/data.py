"""Recorded behaviour as arrays, and sequences of events simulated from it.

Typing and mouse come from different people, so that an event of both is *chimeric*: a typist and a mouse user are
joined by chance into one person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.features.layout import BASELINE_HEADER, BASELINE_SIZE, GROUP_SLICES, GROUPS, MEASURES, SAMPLE_SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.parameters import Floats


@dataclass(frozen=True, slots=True)
class Typists:
    """P people, each with T entries of one phrase.

    Attributes:
        sample: [P, T, S], in the order they were typed.
        baseline: [P, K, T + 1, B]; `baseline[p, k, t]` is the person's baseline after entries `start[k]` to `t - 1`.
        start: [K], where each enrolment begins.
    """

    sample: Floats
    baseline: Floats
    start: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MouseUsers:
    """People at the mouse.

    Attributes:
        sample: per person, per session, [W, S] in order.
        baseline: per person, [K, B], enrolled from different sessions and numbers of windows.
        enrolled: per person, [K] index of the first session that enrolment k did not see.
        sizes: [K] windows enrolled.
    """

    sample: list[list[Floats]]
    baseline: list[Floats]
    enrolled: list[NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Recordings:
    """All that training sees."""

    typists: Typists
    mouse: MouseUsers
    digests: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write as one npz file."""
        arrays: dict[str, NDArray[np.generic]] = {
            "typing_sample": self.typists.sample,
            "typing_baseline": self.typists.baseline,
            "typing_start": self.typists.start,
            "digests": np.array(self.digests),
            "mouse_people": np.array(len(self.mouse.sample)),
        }
        for person, sessions in enumerate(self.mouse.sample):
            arrays[f"mouse_{person}_sample"] = np.concatenate(sessions)
            arrays[f"mouse_{person}_length"] = np.array([len(session) for session in sessions])
            arrays[f"mouse_{person}_baseline"] = self.mouse.baseline[person]
            arrays[f"mouse_{person}_enrolled"] = self.mouse.enrolled[person]
        np.savez_compressed(path, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Recordings:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as data:
            people = range(int(data["mouse_people"]))
            mouse = MouseUsers(
                [np.split(data[f"mouse_{p}_sample"], np.cumsum(data[f"mouse_{p}_length"])[:-1]) for p in people],
                [data[f"mouse_{p}_baseline"] for p in people],
                [data[f"mouse_{p}_enrolled"] for p in people],
            )
            typists = Typists(data["typing_sample"], data["typing_baseline"], data["typing_start"])
            return cls(typists, mouse, tuple(str(mark) for mark in data["digests"]))


_MEASURE_IS_MOUSE = np.zeros(len(MEASURES), bool)
_MEASURE_IS_MOUSE[GROUP_SLICES[5]] = True
_HEADER_IS_MOUSE = np.array(["mouse" in name for name in BASELINE_HEADER])
BASELINE_IS_MOUSE = np.concatenate((_HEADER_IS_MOUSE, _MEASURE_IS_MOUSE, _MEASURE_IS_MOUSE))
"""Which values of a baseline speak of the mouse."""
SAMPLE_IS_MOUSE = np.concatenate(([False], _MEASURE_IS_MOUSE))
"""Which slots of a sample speak of the mouse."""
assert len(BASELINE_IS_MOUSE) == BASELINE_SIZE and len(SAMPLE_IS_MOUSE) == SAMPLE_SIZE  # noqa: S101, PT018
assert len(GROUPS) == len(GROUP_SLICES)  # noqa: S101


def join(typing: Floats, mouse: Floats, is_mouse: NDArray[np.bool_]) -> Floats:
    """One person's typing and another's mouse as one: rows of samples or of baselines."""
    return np.where(is_mouse, mouse, typing)
