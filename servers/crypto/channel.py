"""The HSM channel and its tokens, both sides of it.

The caller sends the public half of a fresh X-Wing key (1,216 B: ML-KEM-768 encapsulation key, X25519 public key), the
HSM answers with a ciphertext for it (1,120 B): an X25519MLKEM768 exchange, combined as X-Wing does. The channel's key
is HKDF-SHA256 (RFC 5869) of the shared secret, bound to both shares, the channel's id and the caller's workload name,
so that a token made for one caller is worth nothing to another.

Each call then carries a token, "<channel id>.<counter>.<base64url of HMAC-SHA256>", over the RPC's name, the counter
and the SHA-256 of the request as protobuf writes it deterministically (of no bytes for a stream of requests). The
counter goes up by one with each call; the HSM refuses one that was used before.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from servers.crypto.algorithms import Algorithm
from servers.crypto.errors import CryptoError

if TYPE_CHECKING:
    from servers.crypto.provider import CryptoProvider, KemPrivateKey

TOKEN_KEY: Final = "x-hsm-token"  # noqa: S105 -- the name of a header
"""Metadata that carries the token."""
CHANNEL_ID_SIZE: Final = 22
"""Characters of a channel's id: 16 random bytes in base64url without padding."""
COUNTER_MAX: Final = 2**63 - 1
WINDOW: Final = 1024
"""Calls overtake each other on the way: a counter this far behind the newest is still looked up, an older one is
refused unseen."""

_KEY_SIZE: Final = 32
_INFO: Final = b"BehaviorGuard HSM channel v1"
_TOKEN: Final = re.compile(r"([A-Za-z0-9_-]{22})\.(0|[1-9][0-9]{0,18})\.([A-Za-z0-9_-]{43})", re.ASCII)


class TokenError(CryptoError):
    """The text is not an HSM token."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token taken apart; nothing about it is checked yet."""

    channel_id: str
    counter: int
    mac: bytes = field(repr=False)


def parse_token(text: str) -> Token:
    """Take a token apart.

    Raises:
        TokenError: it is not of the form.
    """
    parts = _TOKEN.fullmatch(text)
    if parts is None:
        raise TokenError("an HSM token is <channel id>.<counter>.<MAC in base64url>")
    counter, mac = int(parts[2]), parts[3]
    raw = base64.urlsafe_b64decode(mac + "=")
    if counter > COUNTER_MAX or encode(raw) != mac:  # one spelling for one token
        raise TokenError("the HSM token's counter or MAC is not in its one right form")
    return Token(parts[1], counter, raw)


def token_mac(key: bytes, method: str, counter: int, request_hash: bytes) -> bytes:
    """What the token proves: HMAC-SHA256 over method (length first), counter (8 B, big-endian) and hash of the request.

    Args:
        key: the channel's.
        method: full name of the RPC, "/behaviorguard.hsm.v1.HsmService/Sign".
        counter: 0 to 2^63 - 1.
        request_hash: SHA-256 of the request, 32 B.
    """
    name = method.encode()
    return hmac.digest(key, len(name).to_bytes(2) + name + counter.to_bytes(8) + request_hash, "sha256")


def encode(raw: bytes) -> str:
    """Base64url without padding (RFC 4648, section 5)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


class ChannelOffer:
    """The caller's half of a channel that is being opened."""

    def __init__(self, provider: CryptoProvider) -> None:
        self._private: KemPrivateKey = provider.kem_private_key(Algorithm.X_WING, secrets.token_bytes(32))
        self.key_share = self._private.public_bytes
        """What the HSM needs, 1,216 B."""

    def accept(self, caller: str, channel_id: str, answer: bytes) -> CallerChannel:
        """The open channel.

        Args:
            caller: our workload name.
            channel_id: from the HSM.
            answer: the HSM's share, 1,120 B.

        Raises:
            CryptoError: the answer is not a share.
        """
        secret = self._private.decapsulate(answer)
        return CallerChannel(channel_id, _channel_key(secret, caller, channel_id, self.key_share, answer))


class CallerChannel:
    """A channel as its caller has it: makes tokens. Belongs to one event loop or thread."""

    __slots__ = ("_counter", "_key", "channel_id")

    def __init__(self, channel_id: str, key: bytes) -> None:
        self.channel_id = channel_id
        self._key = key
        self._counter = 0

    def token(self, method: str, request: bytes) -> str:
        """The token of the next call.

        Args:
            method: full name of the RPC, with its slash first.
            request: the request as protobuf writes it deterministically; empty for a stream of requests.
        """
        self._counter += 1
        mac = token_mac(self._key, method, self._counter, hashlib.sha256(request).digest())
        return f"{self.channel_id}.{self._counter}.{encode(mac)}"


def answer_offer(provider: CryptoProvider, caller: str, key_share: bytes) -> tuple[HsmChannel, bytes]:
    """Open the HSM's end of a channel; returns it with the share that the caller needs, 1,120 B.

    Raises:
        CryptoError: the caller's share is no public key.
    """
    secret, answer = provider.kem_public_key(Algorithm.X_WING, key_share).encapsulate()
    channel_id = encode(secrets.token_bytes(16))
    key = _channel_key(secret, caller, channel_id, key_share, answer)
    return HsmChannel(channel_id, caller, key), answer


class HsmChannel:
    """A channel as the HSM has it: checks tokens, each counter once."""

    __slots__ = ("_key", "_newest", "_seen", "caller", "channel_id")

    def __init__(self, channel_id: str, caller: str, key: bytes) -> None:
        self.channel_id = channel_id
        self.caller = caller
        self._key = key
        self._newest = 0
        self._seen = 1  # bit i: the counter `newest - i` was used; 0 is never used

    def proves(self, token: Token, method: str, request_hash: bytes) -> bool:
        """Whether the token is this channel's for the call; says nothing about replay."""
        return hmac.compare_digest(token.mac, token_mac(self._key, method, token.counter, request_hash))

    def use(self, counter: int) -> bool:
        """Use a counter whose token was proven; False when it was used before, or is too old to tell."""
        ahead = counter - self._newest
        if ahead > 0:
            self._seen = ((self._seen << min(ahead, WINDOW)) | 1) & ((1 << WINDOW) - 1)
            self._newest = counter
            return True
        if -ahead >= WINDOW or self._seen >> -ahead & 1:
            return False
        self._seen |= 1 << -ahead
        return True


def _channel_key(secret: bytes, caller: str, channel_id: str, offer: bytes, answer: bytes) -> bytes:
    shares = hashlib.sha256(offer + answer).digest()
    info = b"\x00".join((_INFO, channel_id.encode(), caller.encode())) + b"\x00" + shares
    return HKDF(hashes.SHA256(), _KEY_SIZE, salt=None, info=info).derive(secret)
