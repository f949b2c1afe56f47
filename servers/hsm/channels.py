"""The open channels of the HSM: bounded in number, bound to their caller, ending by themselves."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from servers.crypto.channel import Token, TokenError, answer_offer, parse_token
from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from collections.abc import Callable

    from servers.crypto.channel import HsmChannel
    from servers.crypto.provider import CryptoProvider


class Channels:
    """Belongs to one event loop.

    Args:
        provider: makes shares.
        per_caller: channels that one workload has at most; one more ends its oldest, so that a caller that was killed
            often cannot lock itself out, nor others.
        seconds: life of a channel.
        clock: `time.monotonic`.
    """

    def __init__(
        self,
        provider: CryptoProvider,
        *,
        per_caller: int,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._provider = provider
        self._per_caller = per_caller
        self._seconds = seconds
        self._clock = clock
        self._open: dict[str, OrderedDict[str, tuple[HsmChannel, float]]] = {}
        self.replays = 0
        """Tokens that came a second time."""

    def __len__(self) -> int:
        """Channels that have not ended."""
        now = self._clock()
        return sum(end > now for own in self._open.values() for _, end in own.values())

    def open(self, caller: str, key_share: bytes) -> tuple[str, bytes, float]:
        """Open a channel for a caller: its id, our share (1,120 B) and its life in seconds.

        Raises:
            CryptoError: the caller's share is no public key.
        """
        channel, answer = answer_offer(self._provider, caller, key_share)
        now = self._clock()
        own = self._open.setdefault(caller, OrderedDict())  # callers are few: the contract names them
        for channel_id in [channel_id for channel_id, (_, end) in own.items() if end <= now]:
            del own[channel_id]
        while len(own) >= self._per_caller:
            own.popitem(last=False)
        own[channel.channel_id] = channel, now + self._seconds
        return channel.channel_id, answer, self._seconds

    def check(self, caller: str, token: str, method: str, request_hash: bytes) -> None:
        """Check a call's token and use it up.

        Raises:
            MeshError: HSM_TOKEN_INVALID; `ReplayError` when a token that was right came a second time.
        """
        try:
            parsed = parse_token(token)
        except TokenError as error:
            raise MeshError(ErrorReason.ERROR_REASON_HSM_TOKEN_INVALID, str(error)) from None
        channel = self._find(caller, parsed)
        if channel is None or not channel.proves(parsed, method, request_hash):
            raise MeshError(
                ErrorReason.ERROR_REASON_HSM_TOKEN_INVALID,
                "the HSM token is not for this call, or its channel has ended",
            )
        if not channel.use(parsed.counter):
            self.replays += 1
            raise ReplayError

    def _find(self, caller: str, token: Token) -> HsmChannel | None:
        found = self._open.get(caller, OrderedDict()).get(token.channel_id)
        return None if found is None or found[1] <= self._clock() else found[0]


class ReplayError(MeshError):
    """A token that was right came a second time: somebody repeats calls."""

    def __init__(self) -> None:
        super().__init__(ErrorReason.ERROR_REASON_HSM_TOKEN_INVALID, "the HSM token was used before")
