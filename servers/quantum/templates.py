"""Templates into envelopes and out again.

Closing takes a public key at hand and no other service. Opening is the HSM's. Whatever keeps an envelope from opening
gives one answer, ENVELOPE_INVALID: an envelope goes to the HSM before its owner is compared, so that neither the answer
nor the time tells whether it was made for somebody else or was changed. What the answer does depend on is no secret:
whether the bytes have an envelope's form, and whether the organisation has the key that they name.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from servers.crypto.algorithms import Algorithm, Kind, require_level
from servers.crypto.errors import SecurityLevelError
from servers.crypto.sealing import seal
from servers.mesh.errors import ErrorReason, MeshError
from servers.quantum import envelope as envelopes
from servers.quantum.envelope import SUITES, EnvelopeError, Header
from servers.quantum.key_ring import key_revoked, require_usable
from servers.quantum.keys import KeyStatus
from servers.quantum.ports import SealedItem

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from servers.quantum.envelope import Envelope
    from servers.quantum.key_cache import KeyCache
    from servers.quantum.key_ring import HeldKey, KeyRing
    from servers.quantum.keys import Key
    from servers.quantum.ports import Hsm, Opened
    from servers.quantum.use_limits import UseLimits

_log = logging.getLogger(__name__)

DEFAULT_ALGORITHM: Final = Algorithm.ML_KEM_768
_SLICE_SECONDS: Final = 0.001


@dataclass(frozen=True, slots=True)
class Clear:
    """A template to be encrypted."""

    user_id: str
    template: bytes = field(repr=False)
    device_id: str = field(default="", repr=False)
    """Empty binds to none."""
    algorithm: Algorithm | None = None
    """None: the key's; without a key ML-KEM-768."""
    key_id: str = ""
    """Empty takes the newest active service key for the algorithm."""
    security_level: str = ""
    """Least level; empty takes what the algorithm gives."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A template in its envelope."""

    envelope: bytes = field(repr=False)
    key: Key
    kem_ciphertext: bytes = field(repr=False)
    tag: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Request:
    """An envelope to be opened, and whom it must belong to."""

    user_id: str
    envelope: bytes = field(repr=False)
    device_id: str = field(default="", repr=False)
    """Empty when it must be bound to none."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A template out of its envelope."""

    template: bytes = field(repr=False)
    key_id: str
    key_version: int
    hsm_operation_id: str


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An envelope that has the right form, on its way to the HSM."""

    envelope: Envelope
    key: Key
    item: SealedItem
    matches: bool
    """Whether it names whom it must belong to; asked after it was opened."""


class Templates:
    """Encrypts and decrypts for one organisation at a time, the caller's."""

    def __init__(self, ring: KeyRing, hsm: Hsm, limits: UseLimits, cache: KeyCache) -> None:
        self._ring = ring
        self._hsm = hsm
        self._limits = limits
        self._cache = cache

    async def encrypt(self, organization_id: str, clear: Clear) -> Closed:
        """Close a template.

        Raises:
            MeshError: NOT_FOUND, UNSUPPORTED_ALGORITHM, SECURITY_LEVEL_NOT_MET, KEY_EXPIRED, KEY_REVOKED,
                KEY_USES_EXHAUSTED, DEPENDENCY_UNAVAILABLE.
        """
        begun = time.perf_counter()
        held = await self._key_for(organization_id, clear)
        await self._limits.take(held.key)
        closed = _close(held, clear.user_id, clear.device_id, clear.template)
        self._cache.count("encrypt", held.key.algorithm, time.perf_counter() - begun)
        return closed

    async def encrypt_many(self, organization_id: str, clears: Iterable[Clear]) -> AsyncGenerator[Closed | MeshError]:
        """Close each, or say why not, in order; others get their turn in between, and before the first."""
        pace = _Pace()
        await asyncio.sleep(0)
        for clear in clears:
            try:
                yield await self.encrypt(organization_id, clear)
            except MeshError as error:
                yield error
            await pace.keep()
        await asyncio.sleep(0)

    async def decrypt(self, organization_id: str, request: Request) -> Taken:
        """Open an envelope.

        Raises:
            MeshError: ENVELOPE_INVALID whatever is wrong with it; KEY_REVOKED; KEY_VERSION_TOO_OLD of a genuine one;
                HSM_SEALED, DEPENDENCY_UNAVAILABLE.
        """
        begun = time.perf_counter()
        waiting = await self._prepare(organization_id, request)
        try:
            opened: Opened | MeshError = await self._hsm.decrypt(waiting.item)
        except MeshError as error:
            opened = error
        taken = _taken(waiting, opened)
        self._cache.count("decrypt", waiting.key.algorithm, time.perf_counter() - begun)
        if isinstance(taken, MeshError):
            raise taken
        return taken

    async def decrypt_many(self, organization_id: str, requests: Iterable[Request]) -> list[Taken | MeshError]:
        """Open each, or say why not, in order; others get their turn in between."""
        begun, pace = time.perf_counter(), _Pace()
        prepared: list[_Waiting | MeshError] = []
        await asyncio.sleep(0)
        for request in requests:
            try:
                prepared.append(await self._prepare(organization_id, request))
            except MeshError as error:
                prepared.append(error)
            await pace.keep()
        results = await self._open(prepared)
        for algorithm in Algorithm:
            times = sum(isinstance(each, _Waiting) and each.key.algorithm is algorithm for each in prepared)
            if times:
                self._cache.count("decrypt", algorithm, time.perf_counter() - begun, times)
        return results

    async def rewrap(self, organization_id: str, key_id: str, items: Sequence[bytes]) -> list[bytes | MeshError]:
        """Open envelopes under a key and close them again under its newest version; each by itself, in order.

        Raises:
            MeshError: NOT_FOUND, KEY_EXPIRED, KEY_REVOKED, UNSUPPORTED_ALGORITHM, KEY_USES_EXHAUSTED, HSM_SEALED.
        """
        begun, pace = time.perf_counter(), _Pace()
        held = await self._ring.get(organization_id, key_id)
        _require_kem(held.key)
        require_usable(held.key, datetime.now(UTC))
        prepared: list[_Waiting | MeshError] = []
        for item in items:
            prepared.append(_prepare_rewrap(held.key, item))
            await pace.keep()
        opened = await self._open(prepared)
        count = sum(isinstance(each, Taken) for each in opened)
        if count:
            await self._limits.take(held.key, count)
        results: list[bytes | MeshError] = []
        for waiting, taken in zip(prepared, opened, strict=True):
            if isinstance(taken, MeshError) or isinstance(waiting, MeshError):
                results.append(taken if isinstance(taken, MeshError) else refused())
            else:
                header = waiting.envelope.header
                results.append(_close(held, header.user_id, header.device_id, taken.template).envelope)
            await pace.keep()
        self._cache.count("rewrap", held.key.algorithm, time.perf_counter() - begun, len(items))
        return results

    async def _key_for(self, organization_id: str, clear: Clear) -> HeldKey:
        now = datetime.now(UTC)
        if clear.key_id:
            held = await self._ring.get(organization_id, clear.key_id)
        else:
            algorithm = clear.algorithm or DEFAULT_ALGORITHM
            held = await self._ring.newest_service_key(organization_id, algorithm)
            if held.key.status_at(now) is not KeyStatus.ACTIVE:  # its end came since the look-up
                self._ring.drop(organization_id, held.key.key_id)
                held = await self._ring.newest_service_key(organization_id, algorithm)
        _require_kem(held.key)
        if clear.algorithm not in (None, held.key.algorithm):
            raise MeshError(
                ErrorReason.ERROR_REASON_UNSUPPORTED_ALGORITHM,
                f"the key is for {held.key.algorithm}, not for {clear.algorithm}",
            )
        if clear.security_level:
            try:
                require_level(held.key.algorithm, clear.security_level)
            except SecurityLevelError as error:
                raise MeshError(ErrorReason.ERROR_REASON_SECURITY_LEVEL_NOT_MET, str(error)) from None
        require_usable(held.key, now)
        return held

    async def _prepare(self, organization_id: str, request: Request) -> _Waiting:
        envelope = _parse(request.envelope)
        header = envelope.header
        held = await self._ring.find(organization_id, header.key_id)
        if held is None:
            raise refused()
        expected = Header(
            header.suite, header.key_id, header.key_version, organization_id, request.user_id, request.device_id
        ).encode()
        return _waiting(held.key, envelope, matches=hmac.compare_digest(expected, envelope.header_bytes))

    async def _open(self, prepared: Sequence[_Waiting | MeshError]) -> list[Taken | MeshError]:
        going = [each for each in prepared if isinstance(each, _Waiting)]
        opened = iter(await self._hsm.decrypt_many([each.item for each in going]) if going else [])
        return [each if isinstance(each, MeshError) else _taken(each, next(opened)) for each in prepared]


class _Pace:
    """Gives others their turn when a piece of work has held the event loop for a millisecond."""

    def __init__(self) -> None:
        self._until = time.perf_counter() + _SLICE_SECONDS

    async def keep(self) -> None:
        if time.perf_counter() > self._until:
            await asyncio.sleep(0)
            self._until = time.perf_counter() + _SLICE_SECONDS


def refused() -> MeshError:
    """The one answer to an envelope that does not open."""
    return MeshError(
        ErrorReason.ERROR_REASON_ENVELOPE_INVALID,
        "the envelope is damaged, or belongs to another person, device, organisation or key",
    )


def _close(held: HeldKey, user_id: str, device_id: str, template: bytes) -> Closed:
    key = held.key
    suite = SUITES[key.algorithm.value]
    header = Header(suite, key.key_id, key.newest.number, key.organization_id, user_id, device_id).encode()
    sealed = seal(held.public_key, suite.info, header, template)
    return Closed(
        envelopes.join(header, sealed.kem_ciphertext, sealed.nonce, sealed.ciphertext),
        key,
        sealed.kem_ciphertext,
        sealed.ciphertext[-envelopes.TAG_SIZE :],
    )


def _prepare_rewrap(key: Key, data: bytes) -> _Waiting | MeshError:
    """The owner stays whom the envelope names; the key and the organisation must be the ones asked for."""
    try:
        envelope = _parse(data)
        if envelope.header.key_id != key.key_id:
            return refused()
        return _waiting(key, envelope, matches=envelope.header.organization_id == key.organization_id)
    except MeshError as error:
        return error


def _parse(data: bytes) -> Envelope:
    try:
        return envelopes.parse(data)
    except EnvelopeError:
        raise refused() from None


def _waiting(key: Key, envelope: Envelope, *, matches: bool) -> _Waiting:
    header = envelope.header
    version = key.version(header.key_version)
    if version is None or header.suite.algorithm != key.algorithm.value:
        raise refused()
    if key.status is KeyStatus.REVOKED:
        raise key_revoked()
    item = SealedItem(
        version.key_handle,
        key.organization_id,
        envelope.kem_ciphertext,
        header.suite.info,
        envelope.nonce,
        envelope.ciphertext,
        envelope.header_bytes,
    )
    return _Waiting(envelope, key, item, matches)


def _taken(waiting: _Waiting, opened: Opened | MeshError) -> Taken | MeshError:
    """What the HSM's answer means for the caller."""
    if isinstance(opened, MeshError):
        if opened.reason == ErrorReason.ERROR_REASON_NOT_FOUND:
            _log.error("the HSM lacks a key version that the database has", extra={"key_id": waiting.key.key_id})
        lost = (ErrorReason.ERROR_REASON_ENVELOPE_INVALID, ErrorReason.ERROR_REASON_NOT_FOUND)
        return refused() if opened.reason in lost else opened
    if not waiting.matches:
        return refused()
    number = waiting.envelope.header.key_version
    if number < waiting.key.min_decrypt_version:
        return MeshError(
            ErrorReason.ERROR_REASON_KEY_VERSION_TOO_OLD, "the envelope is under a version that is not opened any more"
        )
    return Taken(opened.plaintext, waiting.key.key_id, number, opened.operation_id)


def _require_kem(key: Key) -> None:
    if key.algorithm.kind is not Kind.KEM:
        raise MeshError(
            ErrorReason.ERROR_REASON_UNSUPPORTED_ALGORITHM, f"the key is for {key.algorithm}, which does not encrypt"
        )
