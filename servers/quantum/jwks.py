"""The platform's keys that sign tokens: which sign now, and which are still good to check with."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from behaviorguard.client.tokens import ED_DSA, MAX_LIFETIME_S, ML_DSA_65, encode
from behaviorguard.quantum.v1 import token_service_pb2 as pb

from servers.crypto.algorithms import Algorithm
from servers.mesh.errors import MeshError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from servers.quantum.platform_keys import PlatformKey

_log = logging.getLogger(__name__)

TOKEN_SERVICE: Final = "token-signing"  # noqa: S105 -- a name
"""`service_id` of the platform's keys that sign tokens."""

ALGORITHMS: Final[Mapping[str, Algorithm]] = {ED_DSA: Algorithm.ED25519, ML_DSA_65: Algorithm.ML_DSA_65}
"""The algorithms of a hybrid token by their names in JOSE (RFC 8037, RFC 9964)."""

MAX_AGE_SECONDS: Final = 300
"""For how long a verifier elsewhere may keep the key set."""

_REFRESH_SECONDS: Final = 2.0
_UNKNOWN_SECONDS: Final = 0.5  # strangers' key ids must not become queries
_STALE_SECONDS: Final = 30.0
_MARGIN_S: Final = 600  # of clocks, and of processes that have not noticed a rotation yet


class Platform(Protocol):
    """The platform's own keys: the part of `servers.quantum.platform_keys.PlatformKeys` that tokens need."""

    async def ensure(self, service_id: str, algorithm: Algorithm) -> PlatformKey:
        """The newest version; made when there is none. Cheap, and told of changes by other processes."""

    async def versions(self, service_id: str, algorithm: Algorithm) -> Sequence[PlatformKey]:
        """All versions of the key, newest first, from the database."""


@dataclass(frozen=True, slots=True)
class _Versions:
    """What was known of one algorithm's key at a moment."""

    read_at: float
    """On the clock of `time.monotonic`."""
    newest: PlatformKey
    by_kid: Mapping[str, PlatformKey]
    """Newest first."""


class TokenKeys:
    """The versions in memory: tokens are checked without a query.

    They are read again when the newest one is another (rotated, or revoked and replaced: the database tells all
    processes at once) and every two seconds (somebody raised `min_decrypt_version`).
    """

    def __init__(self, platform: Platform, *, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since the Unix epoch."""
        self._platform = platform
        self._clock = clock
        self._known: dict[Algorithm, _Versions] = {}
        self._reading = asyncio.Lock()

    async def signing(self, algorithm: Algorithm) -> PlatformKey:
        """The version that signs now.

        Raises:
            MeshError: DEPENDENCY_UNAVAILABLE, HSM_SEALED: there is none yet and it cannot be made or read.
        """
        return await self._platform.ensure(TOKEN_SERVICE, algorithm)

    async def find(self, kid: str, jose_name: str) -> PlatformKey | None:
        """The version of a `kid` under exactly this algorithm; None when tokens by it are not to be accepted.

        Raises:
            MeshError: DEPENDENCY_UNAVAILABLE, HSM_SEALED.
        """
        algorithm = ALGORITHMS.get(jose_name)
        if algorithm is None:
            return None
        known = await self._current(algorithm)
        found = known.by_kid.get(kid)
        if found is None and time.monotonic() - known.read_at > _UNKNOWN_SECONDS:
            found = (await self._read(algorithm, known.newest, _UNKNOWN_SECONDS)).by_kid.get(kid)
        return found

    async def published(self) -> list[PlatformKey]:
        """The keys that a verifier elsewhere needs, newest first: older versions stay while tokens by them may hold.

        Raises:
            MeshError: DEPENDENCY_UNAVAILABLE, HSM_SEALED.
        """
        keys = [key for algorithm in ALGORITHMS.values() for key in (await self._current(algorithm)).by_kid.values()]
        return sorted(keys, key=lambda key: key.created_at, reverse=True)

    async def run(self) -> None:
        """Keep the versions fresh for as long as the service runs."""
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            try:
                for algorithm, known in list(self._known.items()):
                    await self._read(algorithm, known.newest, _REFRESH_SECONDS / 2)
            except MeshError as error:
                _log.warning("the keys of tokens cannot be read", extra={"reason": error.reason_name})

    async def _current(self, algorithm: Algorithm) -> _Versions:
        newest = await self._platform.ensure(TOKEN_SERVICE, algorithm)
        known = self._known.get(algorithm)
        if (
            known is not None
            and kid_of(known.newest) == kid_of(newest)
            and time.monotonic() - known.read_at < _STALE_SECONDS
        ):
            return known
        return await self._read(algorithm, newest, _STALE_SECONDS)

    async def _read(self, algorithm: Algorithm, newest: PlatformKey, within_seconds: float) -> _Versions:
        """Read the versions, unless somebody has done so within the given time and seen this newest one."""
        async with self._reading:
            known = self._known.get(algorithm)
            if (
                known is not None
                and kid_of(known.newest) == kid_of(newest)
                and time.monotonic() - known.read_at < within_seconds
            ):
                return known
            begun = time.monotonic()
            versions = await self._platform.versions(TOKEN_SERVICE, algorithm)
            usable = self._usable(versions)
            self._known[algorithm] = _Versions(begun, newest, {kid_of(key): key for key in usable})
            return self._known[algorithm]

    def _usable(self, versions: Sequence[PlatformKey]) -> list[PlatformKey]:
        """The version that signs and those whose tokens may still hold: superseded less than a token's life ago."""
        oldest = self._clock() - MAX_LIFETIME_S - _MARGIN_S
        superseded_at = [float("inf"), *(key.created_at.timestamp() for key in versions)]
        return [key for key, at in zip(versions, superseded_at, strict=False) if key.decrypts and at > oldest]


def kid_of(key: PlatformKey) -> str:
    """`kid` of what the version signs: "<UUID of the key>.<version>"."""
    return f"{key.key_id}.{key.version}"


def json_web_key(key: PlatformKey) -> pb.JsonWebKey:
    """The key as JOSE names it (RFC 8037 section 2, RFC 9964 section 3)."""
    public = encode(key.public_key)
    if key.algorithm is Algorithm.ED25519:
        return pb.JsonWebKey(kty="OKP", alg=ED_DSA, kid=kid_of(key), use="sig", crv="Ed25519", x=public)
    return pb.JsonWebKey(kty="AKP", alg=ML_DSA_65, kid=kid_of(key), use="sig", pub=public)
