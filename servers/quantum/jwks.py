"""The platform's keys that sign tokens: which sign now, and which are still good to check with."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import psycopg
from behaviorguard.api.v1.errors_pb2 import ErrorReason
from behaviorguard.client.tokens import ED_DSA, MAX_LIFETIME_S, ML_DSA_65, encode
from behaviorguard.quantum.v1 import token_service_pb2 as pb

from servers.crypto.algorithms import Algorithm
from servers.mesh.errors import MeshError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

_log = logging.getLogger(__name__)

TOKEN_SERVICE: Final = "token-signing"  # noqa: S105 -- a name
"""`service_id` of the platform's keys that sign tokens."""

JOSE_NAMES: Final[Mapping[Algorithm, str]] = {Algorithm.ED25519: ED_DSA, Algorithm.ML_DSA_65: ML_DSA_65}
"""The algorithms of a hybrid token with their names in JOSE (RFC 8037, RFC 9964)."""

MAX_AGE_SECONDS: Final = 300
"""For how long a verifier elsewhere may keep the key set."""

_REFRESH_SECONDS: Final = 2.0
_UNKNOWN_SECONDS: Final = 0.5  # strangers' key ids must not become queries
_STALE_SECONDS: Final = 30.0
_MARGIN_S: Final = 600  # of clocks, and of processes that have not noticed a rotation yet


@dataclass(frozen=True, slots=True)
class TokenKey:
    """One version of a key that signs tokens."""

    algorithm: Algorithm
    """Ed25519 or ML-DSA-65."""
    key_id: str
    """UUID of the key."""
    version: int
    public_key: bytes = field(repr=False)
    key_handle: str
    """The HSM's name for the version."""
    organization_id: str
    """The platform's."""
    created_at: datetime

    @property
    def kid(self) -> str:
        """`kid` of tokens that it signed."""
        return f"{self.key_id}.{self.version}"


class PlatformKeys(Protocol):
    """The platform's own keys."""

    async def versions(self, service_id: str, algorithm: Algorithm) -> Sequence[TokenKey]:
        """All versions that were not revoked, newest first; the first one signs. Makes the key where there is none."""


@dataclass(frozen=True, slots=True)
class _KeySet:
    """What was known at a moment."""

    read_at: float
    """On the clock of `time.monotonic`."""
    newest: Mapping[Algorithm, TokenKey]
    by_kid: Mapping[tuple[str, str], TokenKey]
    """By `kid` and JOSE name, newest first for each algorithm."""


class TokenKeys:
    """The keys in memory, read again every few seconds: tokens are checked without asking the database for keys.

    A revoked version is gone from all processes within `_REFRESH_SECONDS` of its revocation, and at once in one that is
    told by `forget`.
    """

    def __init__(self, platform: PlatformKeys, *, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since the Unix epoch."""
        self._platform = platform
        self._clock = clock
        self._set: _KeySet | None = None
        self._reading = asyncio.Lock()

    async def signing(self, algorithm: Algorithm) -> TokenKey:
        """The version that signs now.

        Raises:
            MeshError: DEPENDENCY_UNAVAILABLE, HSM_SEALED: there is none yet and it cannot be made or read.
        """
        return (await self._known()).newest[algorithm]

    async def find(self, kid: str, jose_name: str) -> TokenKey | None:
        """The version of a `kid` under exactly this algorithm; None when tokens by it are not to be accepted.

        Raises:
            MeshError: DEPENDENCY_UNAVAILABLE, HSM_SEALED.
        """
        known = await self._known()
        found = known.by_kid.get((kid, jose_name))
        if found is None and time.monotonic() - known.read_at > _UNKNOWN_SECONDS:
            # Another process may have rotated the key a moment ago.
            found = (await self._read(_UNKNOWN_SECONDS)).by_kid.get((kid, jose_name))
        return found

    async def published(self) -> list[TokenKey]:
        """The keys that a verifier elsewhere needs, newest first: older versions stay while tokens by them may hold.

        Raises:
            MeshError: DEPENDENCY_UNAVAILABLE, HSM_SEALED.
        """
        keys = (await self._known()).by_kid.values()
        return sorted(keys, key=lambda key: (key.created_at, key.kid), reverse=True)

    def forget(self) -> None:
        """Read the keys again before the next use: one was rotated or revoked."""
        self._set = None

    async def run(self) -> None:
        """Keep the keys fresh for as long as the service runs."""
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            try:
                await self._read(_REFRESH_SECONDS / 2)
            except MeshError as error:
                _log.warning("the keys of tokens cannot be read", extra={"reason": error.reason_name})

    async def _known(self) -> _KeySet:
        known = self._set
        if known is not None and time.monotonic() - known.read_at < _STALE_SECONDS:
            return known
        return await self._read(_STALE_SECONDS)

    async def _read(self, within_seconds: float) -> _KeySet:
        """Read the keys, unless somebody has done so within the given time."""
        async with self._reading:
            known = self._set
            if known is not None and time.monotonic() - known.read_at < within_seconds:
                return known
            begun = time.monotonic()
            try:
                versions = {algorithm: await self._versions(algorithm) for algorithm in JOSE_NAMES}
            except psycopg.Error as error:
                raise _away("the keys of tokens cannot be read") from error
            self._set = _KeySet(
                begun,
                {algorithm: found[0] for algorithm, found in versions.items()},
                {(key.kid, JOSE_NAMES[algorithm]): key for algorithm, found in versions.items() for key in found},
            )
            return self._set

    async def _versions(self, algorithm: Algorithm) -> list[TokenKey]:
        """The version that signs and those whose tokens may still hold: superseded less than a token's life ago."""
        versions = await self._platform.versions(TOKEN_SERVICE, algorithm)
        if not versions:
            raise _away("there is no key to sign tokens with")
        oldest = self._clock() - MAX_LIFETIME_S - _MARGIN_S
        superseded = zip(versions[1:], versions, strict=False)
        return [versions[0], *(old for old, next_one in superseded if next_one.created_at.timestamp() > oldest)]


def json_web_key(key: TokenKey) -> pb.JsonWebKey:
    """The key as JOSE names it (RFC 8037 section 2, RFC 9964 section 3)."""
    public = encode(key.public_key)
    if key.algorithm is Algorithm.ED25519:
        return pb.JsonWebKey(kty="OKP", alg=ED_DSA, kid=key.kid, use="sig", crv="Ed25519", x=public)
    return pb.JsonWebKey(kty="AKP", alg=ML_DSA_65, kid=key.kid, use="sig", pub=public)


def _away(message: str) -> MeshError:
    return MeshError(ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, message, retry_after_s=1.0)
