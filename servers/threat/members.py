"""Who exists: the answer to "is this user known to this organisation", remembered for a short while."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol

from behaviorguard.api.v1.errors_pb2 import ErrorReason

from servers.mesh.errors import MeshError

if TYPE_CHECKING:
    from collections.abc import Callable

    from servers.threat.rows import Member

_NOBODY_SECONDS: Final = 1.0  # somebody who does not exist may be created any moment


class MemberStore(Protocol):
    """Where people lie."""

    async def member(self, user_id: str) -> Member | None:
        """A person, or None."""


class Members:
    """Known people, at most `capacity` of them."""

    def __init__(
        self, store: MemberStore, *, capacity: int, believed_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._capacity = capacity
        self._believed_s = believed_s
        self._clock = clock
        self._known: OrderedDict[str, tuple[Member | None, float]] = OrderedDict()

    def admit_known(self, user_id: str, organization_id: str) -> Member | None:
        """The person if the answer is known, without waiting; None when somebody must ask the store.

        Raises:
            MeshError: UNKNOWN_USER, see `admit`.
        """
        found = self._known.get(user_id)
        if found is None or found[1] < self._clock():
            return None
        return _admitted(found[0], organization_id)

    async def admit(self, user_id: str, organization_id: str) -> Member:
        """The person, if they exist, are active and belong to the organisation.

        Raises:
            MeshError: UNKNOWN_USER. Another organisation's people are as unknown as those who do not exist.
            psycopg.Error: the store is away.
        """
        known = self.admit_known(user_id, organization_id)
        if known is not None:
            return known
        member = await self._store.member(user_id)
        believed = self._believed_s if member is not None else min(_NOBODY_SECONDS, self._believed_s)
        self._known.pop(user_id, None)
        self._known[user_id] = (member, self._clock() + believed)
        if len(self._known) > self._capacity:
            self._known.popitem(last=False)
        return _admitted(member, organization_id)

    def forget(self, user_id: str) -> None:
        """The person was changed or erased."""
        self._known.pop(user_id, None)


def _admitted(member: Member | None, organization_id: str) -> Member:
    if member is None or not member.active or member.organization_id != organization_id:
        raise MeshError(ErrorReason.ERROR_REASON_UNKNOWN_USER, "the user is not known to this organisation")
    return member
