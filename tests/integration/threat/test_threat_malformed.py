"""Thousands of malformed requests: each is accepted or refused with a reason, and the service goes on."""

from __future__ import annotations

import random
import struct
import uuid
from typing import TYPE_CHECKING, Any, cast

import grpc
from behaviorguard.threat.v1 import threat_service_pb2 as pb
from google.protobuf.descriptor import FieldDescriptor
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from infra import pki
from tests.support.threat import Hand, running_threat

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from tests.support.threat import Stores

REQUESTS = 3000
METHOD = "/behaviorguard.threat.v1.ThreatService/AnalyzeRealtime"
# A caller's mistake always gets one of these; anything else is a fault of ours.
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"))
TEXTS = ("", "x", "x" * 10_000, "\x00", "é" * 200, "00000000-0000-0000-0000-000000000000", "::1", "10.0.0.1", "ZZ")


def _mutate(message: Message, chance: random.Random) -> None:
    """Change one field somewhere in the message to something that its type allows."""
    while True:
        field = cast("FieldDescriptor", chance.choice(list(message.DESCRIPTOR.fields)))
        if field.type == FieldDescriptor.TYPE_MESSAGE and chance.random() < 0.9:
            if not field.is_repeated:
                message = getattr(message, field.name)
                message.SetInParent()
            else:
                items = getattr(message, field.name)
                message = chance.choice(items) if len(items) and chance.random() < 0.7 else items.add()
            continue
        break
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        message.ClearField(field.name)
    elif field.is_repeated:
        items = getattr(message, field.name)
        kind = chance.randrange(3)
        if kind == 0 and len(items):
            del items[chance.randrange(len(items)) :]
        else:
            items.extend([_value(field, chance)] * chance.choice((1, 2, 600)))
    else:
        setattr(message, field.name, _value(field, chance))


def _value(field: FieldDescriptor, chance: random.Random) -> Any:
    kind = field.cpp_type
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return chance.choice(FLOATS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return chance.choice(TEXTS)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return chance.choice((0, 1, 2, 99, -1))
    least, most = {
        FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    }[kind]
    return min(most, max(least, chance.choice(NUMBERS)))


def _scramble(data: bytes, chance: random.Random) -> bytes:
    """Damage the bytes themselves."""
    kind = chance.randrange(4)
    if kind == 0:
        return data[: chance.randrange(len(data))]
    if kind == 1:
        return chance.randbytes(chance.randrange(200))
    if kind == 2:
        return data + struct.pack(">Q", chance.getrandbits(64))
    damaged = bytearray(data)
    for _ in range(chance.randrange(1, 20)):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return bytes(damaged)


async def test_malformed_requests_are_refused_with_a_reason_and_harm_nobody(stores: Stores) -> None:
    anna, session = stores.person(), str(uuid.uuid4())
    chance = random.Random(20260101)  # noqa: S311 - the same mistakes in every run
    hand = Hand(1)
    files = pki.issue(stores.pki, "operator")
    credentials = grpc.ssl_channel_credentials(files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes())
    outcomes: dict[str, int] = {}
    async with running_threat(stores) as service:
        async with aio.secure_channel(f"localhost:{service.port}", credentials) as channel:
            call: Any = channel.unary_unary(METHOD)
            stream: Any = channel.stream_stream("/behaviorguard.threat.v1.ThreatService/StreamEvents")()
            for number in range(REQUESTS):
                request = hand.event(anna, session)
                for _ in range(chance.choice((1, 1, 1, 2, 5))):
                    _mutate(request, chance)
                data = request.SerializeToString()
                if number % 5 == 4:
                    data = _scramble(data, chance)
                elif number % 5 == 3:
                    # In a stream a refused event must not end the others.
                    await stream.write(pb.StreamEventsRequest(event=request).SerializeToString())
                    answer = pb.StreamEventsResponse.FromString(await stream.read())
                    assert answer.WhichOneof("result")
                    if answer.HasField("refused"):
                        assert answer.refused.reason.startswith("ERROR_REASON_")
                        assert answer.refused.code in {code.value[0] for code in REFUSALS}, answer.refused
                    continue
                outcome = await _outcome(call, data)
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
            await stream.done_writing()
            assert await stream.code() is grpc.StatusCode.OK
        # Still there, for everybody.
        answer = await service.stub().AnalyzeRealtime(hand.event(anna, session))
        assert 0 <= answer.preliminary_risk <= 1
    assert outcomes.get("accepted", 0) > REQUESTS // 100, outcomes
    assert outcomes.get("ERROR_REASON_INVALID_FIELD", 0) > REQUESTS // 10, outcomes


async def _outcome(call: Any, data: bytes) -> str:
    try:
        await call(data, timeout=10)
    except aio.AioRpcError as error:
        assert error.code() in REFUSALS or _is_unreadable(error), error  # noqa: PT017 - accepting it is right as well
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
        if details is None:
            return "unreadable"
        status, info = status_pb2.Status.FromString(details), error_details_pb2.ErrorInfo()
        next(detail for detail in status.details if detail.Is(info.DESCRIPTOR)).Unpack(info)
        return info.reason
    return "accepted"


def _is_unreadable(error: aio.AioRpcError) -> bool:
    """gRPC itself refuses bytes that are no message, before any of our code sees them."""
    return (
        error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
        and "serializ" in str(error.details()).lower()
    )
