"""Windows against a naive model: a deque a user."""

from __future__ import annotations

from collections import OrderedDict, deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.state.windows import UserWindows

LENGTH, WIDTH, BATCH = 5, 3, 24

Event = tuple[int, int, bool]  # user, event id, wanted
batches = st.lists(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 60), st.booleans()), max_size=BATCH), min_size=1, max_size=8
)


def windows(users: int = 300) -> UserWindows:
    return UserWindows(users=users, width=WIDTH, batch=BATCH, length=LENGTH)


class Naive:
    """What `UserWindows` must do, written the slow way."""

    def __init__(self) -> None:
        self.rings: dict[str, deque[tuple[str, np.ndarray]]] = {}

    def push(
        self, users: list[str], events: list[str], steps: np.ndarray, wanted: np.ndarray
    ) -> list[tuple[int, np.ndarray, int]]:
        # An event counts as seen while it is in the ring as the batch finds it, or earlier in the batch.
        known = {user: {event for event, _ in ring} for user, ring in self.rings.items()}
        seen = []
        for row, (user, event) in enumerate(zip(users, events, strict=True)):
            ring = self.rings.setdefault(user, deque(maxlen=LENGTH))
            if event in known.setdefault(user, set()):
                continue
            known[user].add(event)
            ring.append((event, steps[row]))
            if wanted[row]:
                window = np.zeros((LENGTH, WIDTH), np.float32)
                window[LENGTH - len(ring) :] = [step for _, step in ring]
                seen.append((row, window, len(ring)))
        return seen


@settings(max_examples=300, deadline=None)
@given(batches)
def test_windows_are_those_of_the_naive_model(given_batches: list[list[Event]]) -> None:
    rings, naive, rng = windows(), Naive(), np.random.default_rng(0)
    for batch in given_batches:
        users = [f"user-{user}" for user, _, _ in batch]
        events = [f"event-{event}" for _, event, _ in batch]
        steps = rng.normal(size=(len(batch), WIDTH)).astype(np.float32)
        wanted = np.array([w for _, _, w in batch], np.bool_)
        got = rings.push(users, events, np.zeros(len(batch), np.int32), steps, wanted)
        expected = naive.push(users, events, steps, wanted)
        assert got.rows.tolist() == [row for row, _, _ in expected]
        assert got.lengths.tolist() == [length for _, _, length in expected]
        for window, (_, reference, _) in zip(got.window, expected, strict=True):
            np.testing.assert_array_equal(window, reference)


def push(rings: UserWindows, users: list[str], events: list[str], partition: int = 0) -> list[int]:
    steps = np.ones((len(users), WIDTH), np.float32)
    partitions = np.full(len(users), partition, np.int32)
    lengths: list[int] = rings.push(users, events, partitions, steps, np.ones(len(users), np.bool_)).lengths.tolist()
    return lengths


def test_the_users_unused_for_longest_are_given_up() -> None:
    rings = windows(users=300)
    order: OrderedDict[str, None] = OrderedDict()
    for start in range(0, 600, BATCH):
        users = [f"user-{number}" for number in range(start, start + BATCH)]
        push(rings, [*users[:-1], "regular"], [f"event-{start}-{n}" for n in range(BATCH)])
        order.update(dict.fromkeys(users))
    assert rings.users <= 300
    assert push(rings, ["regular"], ["again"]) == [LENGTH]
    assert push(rings, ["user-0"], ["again"]) == [1]


def test_forgotten_partitions_start_anew() -> None:
    rings = windows()
    push(rings, ["a", "b"], ["1", "2"], partition=0)
    push(rings, ["c"], ["3"], partition=1)
    rings.forget([0])
    assert rings.users == 1
    assert push(rings, ["a", "c"], ["1", "4"]) == [1, 2]


def test_an_event_may_enter_again_once_it_left_the_window() -> None:
    rings = windows()
    assert push(rings, ["a"], ["1"]) == [1]
    assert push(rings, ["a"], ["1"]) == []
    push(rings, ["a"] * LENGTH, [str(n) for n in range(2, 2 + LENGTH)])
    assert push(rings, ["a"], ["1"]) == [LENGTH]


def test_bounds_are_said() -> None:
    with pytest.raises(ValueError, match="allow at least"):
        UserWindows(users=BATCH, width=WIDTH, batch=BATCH)
    with pytest.raises(ValueError, match="exceeds"):
        push(windows(), ["a"] * (BATCH + 1), [str(n) for n in range(BATCH + 1)])


def test_a_hundred_thousand_users_stay_under_two_gibibytes() -> None:
    # The arrays are reserved, not written: asking for their size costs no memory.
    assert UserWindows(users=100_000, width=64, batch=1024).memory_bytes < 1.6 * 2**30
