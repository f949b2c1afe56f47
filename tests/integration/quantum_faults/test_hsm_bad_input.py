"""Every field of every request of the HSM, changed in every way: a typed answer, and the HSM lives on."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from behaviorguard.hsm.v1 import hsm_service_pb2 as pb
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from infra import pki
from servers.crypto.algorithms import Algorithm
from servers.crypto.channel import TOKEN_KEY, CallerChannel, ChannelOffer
from servers.crypto.provider import provider_named
from tests.support.hsm import ORGANIZATION, RunningHsm, running_hsm, sealed_for
from tests.support.mesh import reason_of
from tests.support.mutations import mutations

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.hsm import HsmRig

SERVICE = "behaviorguard.hsm.v1.HsmService"
CALLERS = {"GetStatus": "quantum", "OpenChannel": "quantum", "GenerateKey": "quantum", "Decrypt": "quantum"}
CALLERS |= {"Sign": "quantum", "DestroyKey": "quantum", "ListKeys": "quantum"}
FAULTS = (
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
)


def methods() -> list[Any]:
    return list(descriptor_pool.Default().FindServiceByName(SERVICE).methods)


class Caller:
    """Sends bytes with a valid token for them, as a workload that may."""

    def __init__(self, channel: aio.Channel, tokens: CallerChannel, method: Any) -> None:
        self._path = f"/{SERVICE}/{method.name}"
        self._tokens = tokens
        self._method = method
        kind: Any = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
        }[method.client_streaming, method.server_streaming]
        self._call: Callable[..., Any] = kind(self._path)

    async def send(self, body: bytes) -> aio.AioRpcError | None:
        """One call; returns the refusal, if it was refused."""
        metadata = ((TOKEN_KEY, self._tokens.token(self._path, self._canonical(body))),)
        request = one(body) if self._method.client_streaming else body
        made = self._call(request, timeout=20, metadata=metadata)
        try:
            if self._method.server_streaming:
                async for _ in made:
                    pass
            else:
                await made
        except aio.AioRpcError as error:
            return error
        return None

    def _canonical(self, body: bytes) -> bytes:
        """What the token is made over."""
        if self._method.client_streaming:
            return b""
        message = GetMessageClass(self._method.input_type)()
        try:
            message.ParseFromString(body)
        except DecodeError:
            return body
        return message.SerializeToString(deterministic=True)


async def one(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def valid_request(running: RunningHsm, method: Any) -> Message:
    """A request that would be answered, on keys that are there."""
    client = await running.client()
    kem, signing = str(uuid.uuid4()), str(uuid.uuid4())
    made = await client.generate(kem, 1, "ML-KEM-768", ORGANIZATION)
    signer = await client.generate(signing, 1, "ML-DSA-65", ORGANIZATION)
    sealed = sealed_for(made, Algorithm.ML_KEM_768, b"a face")
    box = pb.DecryptItem(
        key_handle=sealed.key_handle,
        organization_id=ORGANIZATION,
        kem_ciphertext=sealed.kem_ciphertext,
        info=sealed.info,
        nonce=sealed.nonce,
        ciphertext=sealed.ciphertext,
        associated_data=sealed.associated_data,
    )
    paper = pb.SignItem(key_handle=signer.key_handle, organization_id=ORGANIZATION, message=b"said", context=b"here")
    offer = ChannelOffer(provider_named("cryptography"))
    requests: dict[str, Message] = {
        "OpenChannel": pb.OpenChannelRequest(key_share=offer.key_share),
        "GenerateKey": pb.GenerateKeyRequest(
            key_id=str(uuid.uuid4()),
            version=1,
            algorithm="X-Wing",
            entropy_sources=["os"],
            organization_id=ORGANIZATION,
        ),
        "Decrypt": pb.DecryptRequest(items=[box]),
        "Sign": pb.SignRequest(items=[paper]),
        "DestroyKey": pb.DestroyKeyRequest(key_id=kem, organization_id=ORGANIZATION),
        "ListKeys": pb.ListKeysRequest(validate=True, page_size=5),
        "Initialize": pb.InitializeRequest(shares=5, threshold=3),
        "Unseal": pb.UnsealRequest(share=running.rig.share),
        "RestoreBackup": pb.RestoreBackupRequest(chunk=b"no backup"),
    }
    return requests.get(method.name) or GetMessageClass(method.input_type)()


async def open_caller(running: RunningHsm, method: Any) -> tuple[aio.Channel, Caller]:
    caller = CALLERS.get(method.name, "operator")
    files = pki.issue(running.rig.pki, caller)
    credentials = grpc.ssl_channel_credentials(files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes())
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    channel = aio.secure_channel(f"localhost:{running.port}", credentials, options)
    offer = ChannelOffer(provider_named("cryptography"))
    opening: Any = channel.unary_unary(
        f"/{SERVICE}/OpenChannel",
        request_serializer=pb.OpenChannelRequest.SerializeToString,
        response_deserializer=pb.OpenChannelResponse.FromString,
    )
    answer = await opening(pb.OpenChannelRequest(key_share=offer.key_share), timeout=10)
    return channel, Caller(channel, offer.accept(caller, answer.channel_id, answer.key_share), method)


@pytest.mark.parametrize("method", methods(), ids=lambda method: str(method.name))
async def test_changed_requests_are_answered(rig: HsmRig, method: Any) -> None:
    # Opened channels must not push the test's own out.
    async with running_hsm(rig, channels_per_caller=1000) as running:
        request = await valid_request(running, method)
        channel, caller = await open_caller(running, method)
        async with channel:
            for change, body in mutations(request):
                refusal = await caller.send(body)
                if refusal is not None:
                    assert refusal.code() not in FAULTS, f"{change}: {refusal.code()}: {refusal.details()}"
                    assert reason_of(refusal).startswith("ERROR_REASON_"), change
        # And it lives on: sealed only where it was told to seal itself.
        status = await running.operator.status()
        if status.state == pb.SEAL_STATE_SEALED:
            assert method.name in ("Seal", "Unseal")
            await running.operator.unseal(rig.share)
        client = await running.client()
        made = await client.generate(str(uuid.uuid4()), 1, "ML-KEM-768", ORGANIZATION)
        assert (await client.decrypt(sealed_for(made, Algorithm.ML_KEM_768, b"after"))).plaintext == b"after"
