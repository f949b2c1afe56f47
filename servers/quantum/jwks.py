"""The platform's keys that sign tokens: which sign now, and which are still good to check with."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

from behaviorguard.client.tokens import ED_DSA, MAX_LIFETIME_S, ML_DSA_65, encode
from behaviorguard.quantum.v1 import token_service_pb2 as pb

from servers.crypto.algorithms import Algorithm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from servers.quantum.platform_keys import PlatformKey

TOKEN_SERVICE: Final = "token-signing"  # noqa: S105 -- a name
"""`service_id` of the platform's keys that sign tokens."""

ALGORITHMS: Final[Mapping[str, Algorithm]] = {ED_DSA: Algorithm.ED25519, ML_DSA_65: Algorithm.ML_DSA_65}
"""The algorithms of a hybrid token by their names in JOSE (RFC 8037, RFC 9964)."""

MAX_AGE_SECONDS: Final = 300
"""For how long a verifier elsewhere may keep the key set."""

_MARGIN_S: Final = 600  # of clocks, and of processes that have not noticed a rotation yet


class Platform(Protocol):
    """The platform's own keys: the part of `servers.quantum.platform_keys.PlatformKeys` that tokens need."""

    async def versions(self, service_id: str, algorithm: Algorithm) -> Sequence[PlatformKey]:
        """All versions of the key, newest first; made when there is none. Cheap when called often: from memory, which
        is told of changes by other processes.

        Raises:
            MeshError: DEPENDENCY_UNAVAILABLE, HSM_SEALED: there is none yet and it cannot be made or read.
        """


class TokenKeys:
    """Which versions sign and check tokens. Every method raises what `Platform.versions` does."""

    def __init__(self, platform: Platform, *, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since the Unix epoch."""
        self._platform = platform
        self._clock = clock

    async def signing(self, algorithm: Algorithm) -> PlatformKey:
        """The version that signs now."""
        return (await self._platform.versions(TOKEN_SERVICE, algorithm))[0]

    async def find(self, kid: str, jose_name: str) -> PlatformKey | None:
        """The version of a `kid` under exactly this algorithm; None when tokens by it are not to be accepted."""
        return next((key for key in await self._usable(ALGORITHMS[jose_name]) if kid_of(key) == kid), None)

    async def published(self) -> list[PlatformKey]:
        """The keys that a verifier elsewhere needs, newest first: older versions stay while tokens by them may hold."""
        keys = [key for algorithm in ALGORITHMS.values() for key in await self._usable(algorithm)]
        return sorted(keys, key=lambda key: key.created_at, reverse=True)

    async def _usable(self, algorithm: Algorithm) -> list[PlatformKey]:
        """The version that signs and those whose tokens may still hold: superseded less than a token's life ago."""
        versions = await self._platform.versions(TOKEN_SERVICE, algorithm)
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
