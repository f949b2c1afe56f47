"""The life of keys: made, rotated, changed, ended. Every step is one transaction with its audit record.

A new key is announced before the HSM is asked and stored afterwards, if the announcement still stands: what was made
and not stored is found and destroyed (`rotation.KeyUpkeep`), and what is being destroyed cannot be stored any more. A
next version needs no announcement: the HSM answers a repeated request with the same key.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg_pool import PoolTimeout

from servers.mesh.errors import ErrorReason, FieldProblem, MeshError
from servers.quantum import key_changes
from servers.quantum.key_ring import database, key_revoked
from servers.quantum.key_rows import OwnedKey
from servers.quantum.keys import Key, KeyPurpose, KeyStatus, KeyType, NewKey, ends_at, purpose_of
from servers.quantum.recording import Action

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from servers.quantum.key_cache import KeyCache
    from servers.quantum.key_changes import KeyChanges
    from servers.quantum.key_ring import KeyRing
    from servers.quantum.key_store import KeyStore
    from servers.quantum.ports import GeneratedKey, Hsm
    from servers.quantum.recording import Recorder


_REFUSALS: Final = frozenset(
    {
        ErrorReason.ERROR_REASON_HSM_SEALED,
        ErrorReason.ERROR_REASON_ENTROPY_FAILED,
        ErrorReason.ERROR_REASON_CIRCUIT_OPEN,
        ErrorReason.ERROR_REASON_OVERLOADED,
    }
)


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A key that was made, and the companion that was made with it."""

    key_id: str
    order: NewKey
    made: GeneratedKey
    expires_at: datetime
    companion_key_id: str


class KeyKeeper:
    """Changes keys."""

    def __init__(self, store: KeyStore, hsm: Hsm, ring: KeyRing, cache: KeyCache, recorder: Recorder) -> None:
        self._store = store
        self._hsm = hsm
        self._ring = ring
        self._cache = cache
        self._recorder = recorder

    async def generate(self, order: NewKey) -> MadeKey:
        """Make a key, and a companion when it is for both purposes.

        Raises:
            MeshError: WRONG_STATE without an active parent of the organisation that stands above; what the HSM refuses;
                AUDIT_UNAVAILABLE, DEPENDENCY_UNAVAILABLE.
            psycopg.errors.UniqueViolation: a platform key that is there already.
        """
        begun = time.perf_counter()
        order = replace(order, parent_key_id=await self._parent(order))
        orders = [order]
        if order.purpose is KeyPurpose.BOTH:
            orders = [replace(order, purpose=purpose_of(order.algorithm)), order.companion()]
        owned = [OwnedKey(order.organization_id, str(uuid.uuid4())) for _ in orders]
        with database():
            await self._store.open_intents(owned)
        made: list[GeneratedKey] = []
        try:
            for key, each in zip(owned, orders, strict=True):
                made.append(await self._hsm.generate(key.key_id, 1, each.algorithm.value, key.organization_id))
            await self._store_new(owned, orders, made)
        except BaseException as error:
            perhaps_made = len(made) if _made_nothing(error) else len(made) + 1
            await self._give_up(owned[:perhaps_made], never_made=owned[perhaps_made:])
            raise
        for key in owned:
            self._ring.drop(key.organization_id, key.key_id)
        await self._remember(owned[0])
        self._cache.count("keygen", order.algorithm, time.perf_counter() - begun, len(orders))
        companion = owned[1].key_id if len(owned) > 1 else ""
        expires = ends_at(made[0].generated_at, order.lifetime_days)
        return MadeKey(owned[0].key_id, orders[0], made[0], expires, companion)

    async def rotate(self, key: Key, *, min_decrypt_version: int = 0, scheduled: bool = False) -> Key:
        """Give a key its next version; its life and its uses begin again.

        Args:
            key: as it was read.
            min_decrypt_version: 0 leaves it; at most the new version.
            scheduled: True when its time had come; for the record.

        Raises:
            MeshError: KEY_REVOKED, WRONG_STATE when somebody else rotates it at the same time; what the HSM refuses.
        """
        if key.status is KeyStatus.REVOKED:
            raise key_revoked()
        begun = time.perf_counter()
        number = key.newest.number + 1
        if min_decrypt_version > number:
            raise wrong_field("min_decrypt_version", f"must be at most the new version, {number}")
        made = await self._hsm.generate(key.key_id, number, key.algorithm.value, key.organization_id)

        async def change(connection: AsyncConnection[Any]) -> Key:
            after = await key_changes.add_version(connection, key, made, min_decrypt_version)
            if after is None:
                raise MeshError(
                    ErrorReason.ERROR_REASON_WRONG_STATE, "the key was rotated or revoked by somebody else meanwhile"
                )
            return after

        data = {"algorithm": key.algorithm.value, "version": number, "entropy": made.entropy, "scheduled": scheduled}
        action = Action("rotate", key.organization_id, key.key_id, data, made.operation_id)
        after = await self._recorder.commit(action, change)
        self._changed(after)
        self._cache.count("rotate", key.algorithm, time.perf_counter() - begun)
        return after

    async def change(self, owned: OwnedKey, changes: KeyChanges) -> Key:
        """Change a key's limits.

        Raises:
            MeshError: KEY_REVOKED; INVALID_FIELD, the least version is above the newest.
        """

        async def change(connection: AsyncConnection[Any]) -> Key:
            after = await key_changes.change_key(connection, owned, changes)
            if after is None:
                raise wrong_field("min_decrypt_version", "must be at most the newest version")
            return after

        after = await self._recorder.commit(
            Action("manage", owned.organization_id, owned.key_id, {"changed": _names(changes)}), change
        )
        self._changed(after)
        return after

    async def revoke(self, key: Key, reason: str) -> tuple[Key, list[str]]:
        """End a key and all below it; the HSM destroys the private halves at once, or as soon as it can.

        Returns:
            The key after it, and the ids of the other keys that ended now.
        """
        owned = OwnedKey(key.organization_id, key.key_id)

        async def change(connection: AsyncConnection[Any]) -> tuple[list[str], Key]:
            ended = await key_changes.revoke(connection, owned, reason)
            return ended, await key_changes.current(connection, owned)

        data = {"reason": reason, "key_type": key.key_type.value}
        ended, after = await self._recorder.commit(Action("revoke", owned.organization_id, owned.key_id, data), change)
        for key_id in ended:
            self._ring.drop(owned.organization_id, key_id)
            self._cache.remove(key_id)
        return after, [key_id for key_id in ended if key_id != owned.key_id]

    async def _parent(self, order: NewKey) -> str:
        """The id of the key that the new one stands under; empty for a master key."""
        if order.key_type is KeyType.MASTER:
            if order.parent_key_id:
                raise wrong_field("parent_key_id", "a master key has no key above it")
            return ""
        with database():
            if order.parent_key_id:
                parent = await self._store.get(order.organization_id, order.parent_key_id.lower())
            else:
                parent = await self._store.newest(order.organization_id, KeyType.MASTER, None)
        if parent is None and not order.parent_key_id:
            raise _wrong_parent("the organisation has no active master key: generate one first")
        # One answer, whether the parent is unknown or another organisation's.
        if parent is None or parent.status_at(datetime.now(UTC)) is not KeyStatus.ACTIVE:
            raise _wrong_parent("the organisation has no active key of the id parent_key_id")
        if not parent.key_type.stands_above(order.key_type):
            raise _wrong_parent(f"a {parent.key_type} key cannot stand above a {order.key_type} key")
        return parent.key_id

    async def _store_new(self, owned: list[OwnedKey], orders: list[NewKey], made: list[GeneratedKey]) -> None:
        async def change(connection: AsyncConnection[Any]) -> None:
            parent = orders[0].parent_key_id
            if parent and not await key_changes.hold_parent(connection, OwnedKey(owned[0].organization_id, parent)):
                raise _wrong_parent("the key above was ended meanwhile")
            for number, (key, order, each) in enumerate(zip(owned, orders, made, strict=True)):
                companion = owned[1 - number].key_id if len(owned) > 1 else ""
                if not await key_changes.insert_key(connection, order, key.key_id, each, companion):
                    raise MeshError(
                        ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                        "making the key took too long; it was given up",
                        retry_after_s=1.0,
                    )

        order = orders[0]
        data: dict[str, Any] = {
            "key_type": order.key_type.value,
            "algorithm": order.algorithm.value,
            "purpose": order.purpose.value,
            "security_level": order.algorithm.security_level,
            "entropy": made[0].entropy,
        }
        if order.parent_key_id:
            data["parent_key_id"] = order.parent_key_id
        if len(owned) > 1:
            data["companion"] = {"key_id": owned[1].key_id, "hsm_operation_id": made[1].operation_id}
        action = Action("keygen", owned[0].organization_id, owned[0].key_id, data, made[0].operation_id)
        await self._recorder.commit(action, change)

    async def _give_up(self, owned: list[OwnedKey], never_made: list[OwnedKey]) -> None:
        """Destroy what was made, or may have been, and not stored. What cannot be done now is done by
        `rotation.KeyUpkeep`.
        """
        try:
            for key in never_made:
                await self._store.withdraw_intent(key)
            for key in owned:
                # Waits for a transaction that is still being committed: what it stored is not given up.
                if await self._store.abandon_intent(key):
                    await self._hsm.destroy(key.key_id, key.organization_id)
                    await self._store.close_intent(key)
        except (MeshError, psycopg.Error, PoolTimeout):
            return

    async def _remember(self, owned: OwnedKey) -> None:
        """Put a new key into the caches; it is stored already, so that a fault here is none of the caller's."""
        try:
            self._cache.put((await self._ring.get(owned.organization_id, owned.key_id)).key)
        except MeshError:
            return

    def _changed(self, key: Key) -> None:
        self._ring.drop(key.organization_id, key.key_id)
        self._cache.put(key)


def _made_nothing(error: BaseException) -> bool:
    """Whether the HSM refused: then there is nothing to destroy. Any other failure may have come after the making."""
    return isinstance(error, MeshError) and error.reason in _REFUSALS


def wrong_field(field: str, description: str) -> MeshError:
    """A field that does not fit the key that it is about."""
    message = f"{field}: {description}"
    return MeshError(ErrorReason.ERROR_REASON_INVALID_FIELD, message, fields=(FieldProblem(field, description),))


def _names(changes: KeyChanges) -> list[str]:
    names = ("min_decrypt_version", "expires_at", "rotation_days", "use_limit", "metadata")
    return [name for name in names if getattr(changes, name) is not None]


def _wrong_parent(message: str) -> MeshError:
    return MeshError(ErrorReason.ERROR_REASON_WRONG_STATE, message)
