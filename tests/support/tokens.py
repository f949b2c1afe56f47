"""Tokens without a service: an issuer whose keys are made from fixed seeds, and what stands in for the HSM; orders for
tokens of a service."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from behaviorguard.client.tokens import ED_DSA, ML_DSA_65, TokenClaims, VerificationKeys, encode
from behaviorguard.quantum.v1 import token_service_pb2 as pb
from google.protobuf.json_format import MessageToDict

from servers.crypto.algorithms import Algorithm
from servers.crypto.cryptography_provider import CryptographyProvider
from servers.mesh.settings import DEFAULT_ORGANIZATION_ID
from servers.quantum import jws
from servers.quantum.jwks import json_web_key, kid_of
from servers.quantum.platform_keys import PlatformKey
from servers.quantum.ports import Signed, SignItem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from servers.crypto.provider import SigningKey
    from servers.mesh.errors import MeshError

NOW = 1_800_000_000
AUDIENCE = "mobile"
DEVICE = "phone-of-anna-77"
USER = "3f0c9a52-6f0e-4a58-9b3f-1f5f4b8f7c11"
SESSION = "b3c1a1de-53a1-4d0b-8a52-6a8c0bb2a6f0"
ORGANIZATION = "00000000-0000-4000-8000-000000000001"
ALGORITHMS = (Algorithm.ED25519, Algorithm.ML_DSA_65)


def claims(**changes: Any) -> TokenClaims:
    """Claims that hold at `NOW`."""
    return replace(
        TokenClaims(
            issuer="behaviorguard",
            user_id=USER,
            audience=(AUDIENCE, "threat"),
            issued_at=NOW,
            not_before=NOW,
            expires_at=NOW + 3600,
            token_id="5b0e4c1f-8a8e-4f6c-9d55-0b4c2c1f7a10",
            session_id=SESSION,
            organization_id=ORGANIZATION,
            roles=("member",),
            authentication_methods=("pwd", "face"),
            device_id="",
        ),
        **changes,
    )


@dataclass
class LocalIssuer:
    """Signs like the service, with keys of its own; stands in for the platform's keys and for the HSM."""

    name: str = "one"
    held: dict[Algorithm, list[PlatformKey]] = field(default_factory=dict)
    """Versions, newest first."""
    keys: dict[str, SigningKey] = field(default_factory=dict)
    requests: list[int] = field(default_factory=list)
    """Sizes of the sign requests."""

    def __post_init__(self) -> None:
        for algorithm in ALGORITHMS:
            self.rotate(algorithm, datetime.fromtimestamp(NOW - 1000, UTC))

    def rotate(self, algorithm: Algorithm, at: datetime) -> PlatformKey:
        """Add a version."""
        known = self.held.setdefault(algorithm, [])
        number = len(known) + 1
        key_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.name}/{algorithm}"))
        handle = f"{key_id}/{number}"
        key = CryptographyProvider().signing_key(algorithm, hashlib.sha256(handle.encode()).digest())
        self.keys[handle] = key
        made = PlatformKey(
            algorithm=algorithm,
            key_id=key_id,
            version=number,
            key_handle=handle,
            public_key=key.public_bytes,
            organization_id=DEFAULT_ORGANIZATION_ID,
            created_at=at,
            decrypts=True,
        )
        known.insert(0, made)
        return made

    def newest(self, algorithm: Algorithm) -> PlatformKey:
        return self.held[algorithm][0]

    def sign(self, key: PlatformKey, message: bytes, context: bytes = b"") -> bytes:
        return self.keys[key.key_handle].sign(message, context)

    def signed_part(self, algorithm: Algorithm, header: str, payload: str) -> dict[str, str]:
        """One entry of `signatures`, over any header."""
        signature = self.sign(self.newest(algorithm), jws.signing_input(header, payload))
        return {"protected": header, "signature": encode(signature)}

    def parts(self, said: TokenClaims | bytes) -> tuple[str, dict[str, str], dict[str, str]]:
        """Payload and the two entries of a hybrid token."""
        payload = encode(said) if isinstance(said, bytes) else jws.claims_payload(said)
        ed, dsa = (self.newest(algorithm) for algorithm in ALGORITHMS)
        return (
            payload,
            self.signed_part(Algorithm.ED25519, jws.hybrid_header(ED_DSA, kid_of(ed)), payload),
            self.signed_part(Algorithm.ML_DSA_65, jws.hybrid_header(ML_DSA_65, kid_of(dsa)), payload),
        )

    def hybrid(self, said: TokenClaims | bytes) -> str:
        payload, *signatures = self.parts(said)
        return general(payload, signatures)

    def classical(self, said: TokenClaims) -> str:
        payload = jws.claims_payload(said)
        key = self.newest(Algorithm.ED25519)
        header = jws.classical_header(kid_of(key))
        return jws.classical_token(payload, header, self.sign(key, jws.signing_input(header, payload)))

    def jwks(self) -> dict[str, Any]:
        keys = [json_web_key(key) for versions in self.held.values() for key in versions]
        return {"keys": [MessageToDict(key) for key in keys]}

    def verification_keys(self) -> VerificationKeys:
        return VerificationKeys.from_jwks(self.jwks())

    # What the service asks of the platform's keys and of the HSM.

    async def versions(self, service_id: str, algorithm: Algorithm) -> Sequence[PlatformKey]:
        return list(self.held[algorithm])

    async def sign_many(self, items: Sequence[SignItem]) -> list[Signed | MeshError]:
        self.requests.append(len(items))
        await asyncio.sleep(0)
        return [Signed(self.keys[item.key_handle].sign(item.message, item.context), "op-1") for item in items]


def general(payload: str, signatures: Sequence[dict[str, str]], **more: Any) -> str:
    """JWS General JSON of any parts."""
    return json.dumps({"payload": payload, "signatures": list(signatures), **more}, separators=(",", ":"))


def order(session_id: str = "", organization_id: str = ORGANIZATION, **changes: Any) -> pb.GenerateTokenRequest:
    claims = pb.UserClaims(
        organization_id=organization_id,
        session_id=session_id or str(uuid.uuid4()),
        audience=[AUDIENCE, "threat"],
        roles=["member"],
        authentication_methods=["pwd"],
        device_id=DEVICE,
    )
    values: dict[str, Any] = {"user_id": USER, "claims": claims, "hybrid_mode": True}
    return pb.GenerateTokenRequest(**(values | changes))


def check(token: str, **changes: Any) -> pb.VerifyTokenRequest:
    values: dict[str, Any] = {"token": token, "audience": AUDIENCE}
    return pb.VerifyTokenRequest(**(values | changes))


async def eventually(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """What `condition`, awaited, is once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := await condition()):
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.005)
    return found
