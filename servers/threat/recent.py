"""Event ids seen lately: the same event twice counts once, one id for two events is refused.

This is the first, cheap line, in this process's bounded memory. Across restarts and instances the primary key of the
stored results decides: of all copies of an event, one result is stored.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class EventIdReusedError(Exception):
    """The id was used before with other content."""


@dataclass(slots=True)
class Accepted:
    """An event that was accepted, or is being accepted."""

    content: bytes
    """Digest of what was sent."""
    risk: float = 0.0
    """Preliminary risk, once computed."""
    durable: asyncio.Future[None] | None = None
    """Done when the broker has the event; None when it had it a while ago."""


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
