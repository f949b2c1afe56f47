"""Event ids seen lately: the same event twice counts once, one id for two events is refused.

This is the first, cheap line, in this process's bounded memory. Across restarts and instances the primary key of the
stored results decides: of all copies of an event, one result is stored.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field


class EventIdReusedError(Exception):
    """The id was used before with other content."""


@dataclass(slots=True)
class Accepted:
    """An event that was accepted, or is being accepted."""

    content: bytes
    """Digest of what was sent."""
    risk: float = 0.0
    """Preliminary risk, once computed."""
    settled: bool = False
    """True once it is known what became of the event."""
    error: Exception | None = None
    """Why the event was not accepted after all."""
    _waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def settle(self, error: Exception | None) -> None:
        """The broker has the event, or did not take it."""
        if self.settled:
            return
        self.settled, self.error = True, error
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()

    async def wait(self) -> None:
        """Wait until the broker has the event. A caller who gives up changes nothing for others who sent it too.

        Raises:
            Exception: what `settle` was given.
        """
        if not self.settled:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        if self.error is not None:
            raise self.error


class RecentEvents:
    """The last accepted event ids, in order of first use."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._events: OrderedDict[str, Accepted] = OrderedDict()

    def __len__(self) -> int:
        return len(self._events)

    def find(self, event_id: str, content: bytes) -> Accepted | None:
        """What is known of an event, or None when it is new.

        Raises:
            EventIdReusedError: the id is known with other content.
        """
        known = self._events.get(event_id)
        if known is not None and known.content != content:
            raise EventIdReusedError
        return known

    def add(self, event_id: str, accepted: Accepted) -> None:
        """Remember an event; the oldest is forgotten when there are too many."""
        self._events[event_id] = accepted
        if len(self._events) > self._capacity:
            self._events.popitem(last=False)

    def forget(self, event_id: str, accepted: Accepted) -> None:
        """The event was not accepted after all: it may be sent again."""
        if self._events.get(event_id) is accepted:
            del self._events[event_id]
