"""Private keys that were opened lately, so that each use need not open the seed again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")


class InUse(Generic[T]):
    """Keeps something by key handle, bounded; the least recently used goes first. Safe for several threads."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, T] = OrderedDict()

    def get(self, handle: str) -> T | None:
        """What is kept for a handle."""
        with self._lock:
            found = self._kept.get(handle)
            if found is not None:
                self._kept.move_to_end(handle)
            return found

    def keep(self, handle: str, value: T) -> None:
        """Keep something for a handle."""
        with self._lock:
            self._kept[handle] = value
            self._kept.move_to_end(handle)
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)

    def forget(self, handles: Iterable[str]) -> None:
        """Drop what is kept for these."""
        with self._lock:
            for handle in handles:
                self._kept.pop(handle, None)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._kept.clear()
