"""The last steps of every user, in memory of fixed size.

The rings of all users lie in one array, from which the windows of a whole batch are copied in one compiled loop. The
array is reserved for all users at once, and the operating system backs only the pages that were written: memory
grows with the users seen, up to `memory_bytes`, and nothing is ever copied to grow. When every ring is taken, those
unused for longest are given up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.compiled import compiled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

WINDOW_LENGTH = 50
"""Steps in a window: the document's 50-step sequence."""

_EVICTED_AT_ONCE = 256
"""Rings freed together, so that the search for the oldest is paid once for many users."""


@dataclass(frozen=True, slots=True)
class Windows:
    """What the wanted events of a batch see. Arrays are views of buffers that the next `push` overwrites."""

    rows: NDArray[np.intp]
    """Index in the batch of each window's event, ascending: wanted, and not seen before."""
    window: NDArray[np.float32]
    """[M, length, width]: oldest step first, the event's own step last, zeros before the first of `lengths` steps."""
    lengths: NDArray[np.int32]
    """[M]: steps in each window, 1 to `length`."""
    duplicates: int
    """Events of the batch that the user's window held already: they entered nothing."""


class UserWindows:
    """Rings of the last `length` steps for up to `users` users.

    Not safe for threads: one owner pushes. An event is known by its id as long as it is in its user's ring.
    """

    def __init__(self, users: int, width: int, batch: int, length: int = WINDOW_LENGTH) -> None:
        if users < batch + _EVICTED_AT_ONCE:
            msg = f"windows for {users} users cannot hold a batch of {batch}: allow at least {batch + _EVICTED_AT_ONCE}"
            raise ValueError(msg)
        self._length, self._width, self._batch = length, width, batch
        self._steps = np.zeros((users, length, width), np.float32)
        self._marks = np.zeros((users, length), np.int64)
        self._counts = np.zeros(users, np.int64)
        self._used = np.zeros(users, np.int64)
        self._partitions = np.full(users, -1, np.int32)
        self._clock = 0
        self._slots: dict[str, int] = {}
        self._owners: list[str | None] = [None] * users
        self._free = list(range(users - 1, -1, -1))
        self._gathered = np.zeros((batch, length, width), np.float32)

    @property
    def length(self) -> int:
        """Steps in a window."""
        return self._length

    @property
    def users(self) -> int:
        """Users with a window now."""
        return len(self._slots)

    @property
    def memory_bytes(self) -> int:
        """Upper bound of what the arrays take when every ring is full."""
        arrays = (self._steps, self._marks, self._counts, self._used, self._partitions, self._gathered)
        return sum(array.nbytes for array in arrays)

    def forget(self, partitions: Iterable[int]) -> None:
        """Drop the windows of users whose last event came from one of `partitions`: somebody else continues them."""
        for slot in np.flatnonzero(np.isin(self._partitions, list(partitions))).tolist():
            self._release(slot)

    def push(
        self,
        user_ids: Sequence[str],
        event_ids: Sequence[str],
        partitions: NDArray[np.int32],
        steps: NDArray[np.float32],
        wanted: NDArray[np.bool_],
    ) -> Windows:
        """Append `steps` [N, width] in order, and gather the window of each `wanted` event as of its own step."""
        total = len(user_ids)
        if total > self._batch:
            raise ValueError(f"a batch of {total} events exceeds {self._batch}")
        # A keyed hash of this process: 8 bytes instead of 36 in the ring, and no sender can craft a collision.
        marks = np.fromiter(map(hash, event_ids), np.int64, total)
        slots = self._claim(user_ids, partitions)
        fresh = self._fresh(slots, marks)
        kept = np.flatnonzero(fresh)
        slots, marks, steps = slots[kept], marks[kept], steps[kept]
        order, before, together = _occurrences(slots)
        chosen = np.flatnonzero(wanted[kept])
        window, lengths = self._gather(slots, before, order, steps, chosen)
        # Of a user with more steps in the batch than a ring holds only the last fill it, so no cell is written twice.
        last = np.flatnonzero(together - before <= self._length)
        cells = (slots[last], (self._counts[slots[last]] + before[last]) % self._length)
        self._steps[cells] = steps[last]
        self._marks[cells] = marks[last]
        self._counts[slots] += together
        return Windows(rows=kept[chosen], window=window, lengths=lengths, duplicates=total - len(kept))

    def _claim(self, user_ids: Sequence[str], partitions: NDArray[np.int32]) -> NDArray[np.intp]:
        """[N] the ring of each event's user; a new user takes a free one."""
        self._clock += 1
        slots = np.fromiter((self._slots.get(user, -1) for user in user_ids), np.intp, len(user_ids))
        known = slots >= 0
        self._used[slots[known]] = self._clock
        for index in np.flatnonzero(~known).tolist():
            user = user_ids[index]
            slot = self._slots.get(user, -1)  # the user may stand twice in this batch
            if slot < 0:
                slot = self._slots[user] = self._take_free()
                self._owners[slot] = user
                self._used[slot] = self._clock
            slots[index] = slot
        self._partitions[slots] = partitions
        return slots

    def _take_free(self) -> int:
        if not self._free:
            for slot in np.argpartition(self._used, _EVICTED_AT_ONCE)[:_EVICTED_AT_ONCE].tolist():
                self._release(slot)
        return self._free.pop()

    def _release(self, slot: int) -> None:
        owner = self._owners[slot]
        if owner is not None:
            del self._slots[owner]
            self._owners[slot] = None
            self._counts[slot] = 0
            self._marks[slot] = 0
            self._used[slot] = 0
            self._partitions[slot] = -1
            self._free.append(slot)

    def _fresh(self, slots: NDArray[np.intp], marks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[N] whether the event is neither in its user's ring nor earlier in this batch."""
        fresh = _unknown(self._marks, self._counts, slots, marks)
        if len(np.unique(marks)) != len(marks):
            seen: set[tuple[int, int]] = set()
            for index, pair in enumerate(zip(slots.tolist(), marks.tolist(), strict=True)):
                fresh[index] &= pair not in seen
                seen.add(pair)
        return fresh

    def _gather(
        self,
        slots: NDArray[np.intp],
        before: NDArray[np.intp],
        order: NDArray[np.intp],
        steps: NDArray[np.float32],
        chosen: NDArray[np.intp],
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Windows of the `chosen` events: what the rings hold, then the steps of the same user earlier in the batch."""
        window = self._gathered[: len(chosen)]
        place = np.empty(len(slots), np.intp)
        place[order] = np.arange(len(slots))
        _copy_windows(self._steps, self._counts, slots, before, order, place, steps, chosen, window)
        seen = self._counts[slots[chosen]] + before[chosen] + 1
        return window, np.minimum(seen, self._length).astype(np.int32)


@compiled
def _unknown(
    rings: NDArray[np.int64], counts: NDArray[np.int64], slots: NDArray[np.intp], marks: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """[N] whether the event's mark is not in its user's ring."""
    unknown = np.ones(len(slots), np.bool_)
    for event in range(len(slots)):
        slot = slots[event]
        for cell in range(min(counts[slot], rings.shape[1])):
            if rings[slot, cell] == marks[event]:
                unknown[event] = False
    return unknown


@compiled
def _copy_windows(  # noqa: PLR0913, PLR0917 - a compiled loop takes arrays, not the objects that hold them
    rings: NDArray[np.float32],
    counts: NDArray[np.int64],
    slots: NDArray[np.intp],
    before: NDArray[np.intp],
    order: NDArray[np.intp],
    place: NDArray[np.intp],
    steps: NDArray[np.float32],
    chosen: NDArray[np.intp],
    window: NDArray[np.float32],
) -> None:
    """Fill `window` [M, length, width]: zeros, then what the ring holds, then steps of this batch. `order` sorts the
    batch by user, `place` is where an event stands in it.
    """
    length = rings.shape[1]
    for row in range(len(chosen)):
        event = chosen[row]
        slot, count = slots[event], counts[slots[event]]
        # Number, in the user's whole history, of the first step of the window: negative before the first there was.
        first = count + before[event] + 1 - length
        for column in range(length):
            number = first + column
            if number < 0:
                window[row, column] = 0.0
            elif number < count:
                window[row, column] = rings[slot, number % length]
            else:
                window[row, column] = steps[order[place[event] - (length - 1 - column)]]


def _occurrences(slots: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Batch positions grouped by slot in arrival order; for each event, how many of its slot precede it and how many
    there are."""
    order = np.argsort(slots, kind="stable")
    grouped = slots[order]
    starts = np.flatnonzero(np.diff(grouped, prepend=-1))
    sizes = np.diff(starts, append=len(slots))
    before, together = np.empty_like(slots), np.empty_like(slots)
    before[order] = np.arange(len(slots)) - np.repeat(starts, sizes)
    together[order] = np.repeat(sizes, sizes)
    return order, before, together
