"""How large bodies may be follows from the contract and from who may send them."""

from __future__ import annotations

from pathlib import Path

import pytest
from behaviorguard.quantum.v1 import key_service_pb2, token_service_pb2
from starlette.datastructures import Headers

from servers.gateway.body_limits import BodyLimits, largest_json
from servers.gateway.contract import Operation, read_contract
from servers.gateway.exchange import Exchange
from servers.gateway.transcoding import Codec
from servers.mesh.errors import ErrorReason, MeshError

DESCRIPTORS = Path(__file__).parents[3] / "generated" / "descriptors.binpb"
QUANTUM = "behaviorguard.quantum.v1"
MIB = 1024 * 1024


def operation(service: str, name: str) -> Operation:
    full = f"{QUANTUM}.{service}"
    return next(each for each in read_contract(DESCRIPTORS, {full}) if each.rpc == f"/{full}/{name}")


def exchange(**headers: str) -> Exchange:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Exchange("", "POST", Headers(raw=raw), "", "", secure=True, host="localhost")


def test_the_largest_valid_requests_fit() -> None:
    sign = token_service_pb2.SignMessageRequest(key_id="a" * 36, message=b"x" * MIB, context=b"c" * 255)
    rewrap = key_service_pb2.RewrapEnvelopesRequest(key_id="a" * 36, envelopes=[b"x" * 81920] * 64)
    limits = BodyLimits(usual=256 * 1024, largest=8 * MIB, large_at_once=1)
    for message, where in ((sign, ("TokenService", "SignMessage")), (rewrap, ("KeyService", "RewrapEnvelopes"))):
        size = len(Codec().encode(message))
        assert size <= limits.limit(operation(*where)) < 1.2 * size + 20_000


def test_only_those_with_a_role_may_send_more() -> None:
    limits = BodyLimits(usual=1000, largest=8 * MIB, large_at_once=1)
    for service in ("KeyService", "TemplateService", "TokenService", "AuditService"):
        for each in read_contract(DESCRIPTORS, {f"{QUANTUM}.{service}"}):
            assert largest_json(each.request) > 0
            if each.policy.scope < 3:
                assert limits.limit(each) == 1000
    assert limits.limit(operation("TemplateService", "EncryptTemplate")) == 1000  # anybody's own


def test_few_large_ones_are_held_at_once() -> None:
    limits = BodyLimits(usual=1000, largest=8 * MIB, large_at_once=1)
    large, small = exchange(content_length="5000"), exchange(content_length="999")
    in_pieces, without = exchange(transfer_encoding="chunked"), exchange()
    with limits.held(large, 5000):
        for one in (large, in_pieces):
            with pytest.raises(MeshError) as error, limits.held(one, 5000):
                pass
            assert error.value.reason == ErrorReason.ERROR_REASON_OVERLOADED
        for one in (small, without):
            with limits.held(one, 5000):
                pass
        with limits.held(in_pieces, 1000):  # is cut off at the usual size anyway
            pass
    with limits.held(large, 5000):
        pass
