"""The JSON form of messages: round trips against protobuf's own mapping, and everything that must be refused."""

from __future__ import annotations

import base64
import json
import random
import struct
import uuid
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from behaviorguard.threat.v1 import behavior_pb2, records_pb2, threat_pb2, threat_service_pb2
from google.protobuf import json_format, timestamp_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.gateway.json_enums import enum_prefix, short_enum_name
from servers.gateway.json_values import JsonMismatchError
from servers.gateway.json_writers import shortest_float
from servers.gateway.transcoding import Codec

if TYPE_CHECKING:
    from google.protobuf.message import Message

CODEC = Codec()
MESSAGES: list[type[Message]] = [
    threat_service_pb2.AnalyzeRealtimeRequest,
    threat_service_pb2.StreamEventsRequest,
    threat_service_pb2.StreamEventsResponse,
    threat_service_pb2.WatchAlertsRequest,
    threat_service_pb2.WatchAlertsResponse,
    threat_service_pb2.ListThreatEventsResponse,
    threat_service_pb2.RecordVerdictRequest,
    threat_service_pb2.EraseBehaviorResponse,
    threat_pb2.ThreatEvent,
    behavior_pb2.ContextualData,
]
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
TEXTS = ["", "a", "é: \u2028", 'quote " colon : brace {', "\\", "\x00", "0", "\U0001f600"]
INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def _scalar(source: random.Random, field: FieldDescriptor) -> Any:
    kind = field.cpp_type
    if field.enum_type is not None:
        return source.choice([value.number for value in field.enum_type.values])
    if kind in INTEGERS:
        low, high = INTEGERS[kind]
        return source.choice([low, high, 0, 1, source.randint(low, high)])
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        largest = 3.4028234663852886e38 if kind == FieldDescriptor.CPPTYPE_FLOAT else 1.7976931348623157e308
        return source.choice([0.0, -0.0, 0.1, 1e-45, largest, -largest, source.gauss(0, 1e3), source.random()])
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return source.random() < 0.5
    return source.randbytes(7) if field.type == FieldDescriptor.TYPE_BYTES else source.choice(TEXTS)


def make_message(source: random.Random, descriptor: Any) -> Message:
    """Any message of a type; about half of its fields are set."""
    message = GetMessageClass(descriptor)()
    chosen: set[str] = set()
    for field in descriptor.fields:
        group = field.containing_oneof.name if field.containing_oneof is not None else field.name
        if group not in chosen and source.random() < 0.6:
            chosen.add(group)
            _set(source, message, field)
    return message


def _set(source: random.Random, message: Message, field: FieldDescriptor) -> None:
    child = field.message_type
    if child is not None and child.full_name == "google.protobuf.Timestamp":
        getattr(message, field.name).FromMicroseconds(source.randint(0, 4_000_000_000_000_000))
    elif child is not None and field.is_repeated:
        getattr(message, field.name).extend(make_message(source, child) for _ in range(source.randrange(3)))
    elif child is not None:
        getattr(message, field.name).CopyFrom(make_message(source, child))
    elif field.is_repeated:
        getattr(message, field.name).extend(_scalar(source, field) for _ in range(source.randrange(5)))
    else:
        setattr(message, field.name, _scalar(source, field))


anything = st.builds(
    lambda kind, seed: make_message(random.Random(seed), kind.DESCRIPTOR),  # noqa: S311 -- test data
    st.sampled_from(MESSAGES),
    st.integers(0, 2**32),
)


@settings(deadline=None)
@given(anything)
def test_what_protobuf_writes_is_read(message: Message) -> None:
    read = type(message)()
    CODEC.decode(json_format.MessageToJson(message).encode(), read)
    assert read == message


@settings(deadline=None)
@given(anything)
def test_what_is_written_is_read_again(message: Message) -> None:
    read = type(message)()
    CODEC.decode(CODEC.encode(message), read)
    assert read == message


@settings(deadline=None)
@given(anything)
def test_what_is_written_has_protobufs_form_but_for_enum_names(message: Message) -> None:
    expected = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    assert _long_names(orjson.loads(CODEC.encode(message)), message.DESCRIPTOR) == _plain(expected)


def _long_names(value: Any, descriptor: Any) -> Any:
    """Puts the contract's enum names back, so that the rest can be compared."""
    if descriptor.full_name == "google.protobuf.Timestamp":
        return value
    result = {}
    for name, item in value.items():
        field = next(field for field in descriptor.fields if field.json_name == name)
        items = item if isinstance(item, list) else [item]
        if field.enum_type is not None:
            prefix = enum_prefix(field.enum_type)
            items = [prefix + each.upper() for each in items]
        elif field.message_type is not None:
            items = [_long_names(each, field.message_type) for each in items]
        result[name] = items if isinstance(item, list) else items[0]
    return result


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


@settings(deadline=None)
@given(FLOAT32)
def test_floats_are_as_short_as_they_can_be_and_read_back(value: float) -> None:
    short = shortest_float(value)
    assert isinstance(short, float)
    assert struct.pack("<f", short) == struct.pack("<f", value)
    assert len(repr(short)) <= len(repr(value))


def event(**behaviour: Any) -> dict[str, Any]:
    """A request in the document's form."""
    return {
        "userId": str(uuid.UUID(int=1)),
        "timestamp": "2026-11-22T12:00:00.000Z",
        "eventData": {
            "sessionId": str(uuid.UUID(int=2)),
            "source": "behavioral",
            "behavioralMetrics": {
                "keystrokeDynamics": [
                    {
                        "promptId": "phrase",
                        "keyClasses": ["letter_left", "space"],
                        "holdMs": [90, 80.5],
                        "flightMs": [0, 120],
                    }
                ],
                "mouseDynamics": [{"timeMs": [0, 16], "xPx": [0, -3], "yPx": [0, 2], "actions": ["move", "press"]}],
                "sessionDuration": 12,
                **behaviour,
            },
        },
    }


def refusal(body: bytes | dict[str, Any]) -> JsonMismatchError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(JsonMismatchError) as caught:
        CODEC.decode(raw, threat_service_pb2.AnalyzeRealtimeRequest())
    return caught.value


def test_the_documents_request_is_read() -> None:
    request = threat_service_pb2.AnalyzeRealtimeRequest()
    CODEC.decode(json.dumps(event()).encode(), request)
    metrics = request.event_data.behavioral_metrics
    assert list(metrics.keystroke_dynamics[0].hold_ms) == [90.0, 80.5]
    assert list(metrics.mouse_dynamics[0].x_px) == [0, -3]
    assert metrics.mouse_dynamics[0].actions[1] == behavior_pb2.POINTER_ACTION_PRESS


def test_the_documents_answer_is_written() -> None:
    answer = threat_service_pb2.AnalyzeRealtimeResponse(
        event_id="e", preliminary_risk=0.1, processing_status=threat_service_pb2.PROCESSING_STATUS_QUEUED_FOR_MORPHEUS
    )
    assert CODEC.encode(answer) == b'{"eventId":"e","preliminaryRisk":0.1,"processingStatus":"queued_for_morpheus"}'


@pytest.mark.parametrize(
    ("behaviour", "path"),
    [
        ({"sessionDuration": -1}, "sessionDuration"),
        ({"sessionDuration": 1.5}, "sessionDuration"),
        ({"sessionDuration": 2**32}, "sessionDuration"),
        ({"sessionDuration": True}, "sessionDuration"),
        ({"sessionDuration": "12"}, "sessionDuration"),
        ({"apiCallFrequency": "fast"}, "apiCallFrequency"),
        ({"apiCallFrequency": 1e39}, "apiCallFrequency"),
        ({"keystrokeDynamics": {}}, "keystrokeDynamics"),
        ({"keystrokeDynamics": [[]]}, "keystrokeDynamics[0]"),
        ({"keystrokeDynamics": [None]}, "keystrokeDynamics[0]"),
        ({"keystrokeDynamics": [{"holdMs": [1, None]}]}, "keystrokeDynamics[0].holdMs[1]"),
        ({"keystrokeDynamics": [{"holdMs": [1, True]}]}, "keystrokeDynamics[0].holdMs[1]"),
        ({"keystrokeDynamics": [{"keyClasses": ["letter_left", "nose"]}]}, "keystrokeDynamics[0].keyClasses[1]"),
        ({"keystrokeDynamics": [{"keyClasses": [1]}]}, "keystrokeDynamics[0].keyClasses[0]"),
        ({"mouseDynamics": [{"timeMs": [0, -16]}]}, "mouseDynamics[0].timeMs[1]"),
        ({"unheard": 1}, "unheard"),
        ({"session_duration": 1}, "session_duration"),
    ],
)
def test_values_that_do_not_fit_are_named(behaviour: dict[str, Any], path: str) -> None:
    assert refusal(event(**behaviour)).path == f"eventData.behavioralMetrics.{path}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"{} {}",
        b'{"userId":NaN}',
        b'{"userId":Infinity}',
        b'{"userId":"\xff"}',
        b'{"userId":"\\ud800"}',
        b"\xef\xbb\xbf{}",
        b'{"userId":"a",}',
        b'{"eventData":' * 2000,
        b'{"userId":"a","userId":"b"}',
        b'{"eventData":{"sessionId":"a","sessionId":"a"}}',
        b'{"eventData":{"source":"a"},"eventData":{}}',
    ],
)
def test_what_is_not_one_well_formed_document_is_refused(body: bytes) -> None:
    refusal(body)


def test_numbers_beyond_a_double_are_refused() -> None:
    assert refusal(b'{"eventData":{"behavioralMetrics":{"apiCallFrequency":1e400}}}').path == ""


def test_a_repeated_name_is_named() -> None:
    assert '"userId"' in refusal(b'{"userId":"a","userId":"b"}').description


def test_colons_and_quotes_in_text_do_not_look_like_names() -> None:
    request = threat_service_pb2.RecordVerdictRequest()
    note = 'he said: "it: was me" \\ : {"a":1}'
    CODEC.decode(json.dumps({"verdict": {"kind": "genuine", "note": note}}).encode(), request)
    assert request.verdict.note == note


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31T12:00:00Z",
        "2026-01-31T12:00:00.123Z",
        "2026-01-31T12:00:00.123456789Z",
        "2026-01-31T12:00:00+02:00",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999Z",
        "1969-12-31T23:59:59.500Z",
        "2026-02-30T00:00:00Z",
        "2026-01-31T24:00:00Z",
        "2026-01-31T12:00:60Z",
        "2026-01-31",
        "٢026-01-31T12:00:00Z",
        "",
    ],
)
def test_times_are_read_as_protobuf_reads_them(text: str) -> None:
    expected, request = timestamp_pb2.Timestamp(), threat_service_pb2.AnalyzeRealtimeRequest()
    body = json.dumps({"timestamp": text}).encode()
    try:
        expected.FromJsonString(text)
    except ValueError:
        assert refusal(body).path == "timestamp"
    else:
        CODEC.decode(body, request)
        assert request.timestamp == expected


def test_two_members_of_a_choice_are_refused() -> None:
    with pytest.raises(JsonMismatchError) as caught:
        CODEC.decode(b'{"accepted":{},"refused":{}}', threat_service_pb2.StreamEventsResponse())
    assert caught.value.path == "refused"


def test_null_leaves_a_field_unset() -> None:
    request = threat_service_pb2.AnalyzeRealtimeRequest()
    CODEC.decode(b'{"userId":null,"eventData":null}', request)
    assert request == threat_service_pb2.AnalyzeRealtimeRequest()


@pytest.mark.parametrize("name", ["critical", "THREAT_LEVEL_CRITICAL"])
def test_both_names_of_an_enum_value_are_read(name: str) -> None:
    request = threat_service_pb2.WatchAlertsRequest()
    CODEC.decode(json.dumps({"minimumLevel": name}).encode(), request)
    assert request.minimum_level == threat_pb2.THREAT_LEVEL_CRITICAL
    assert short_enum_name(threat_pb2.ThreatLevel.DESCRIPTOR, request.minimum_level) == "critical"


def test_an_enum_value_of_a_newer_contract_is_written_as_its_number() -> None:
    assert short_enum_name(threat_pb2.ThreatLevel.DESCRIPTOR, 99) == 99


def test_bytes_are_strict_base64() -> None:
    record = records_pb2.ThreatEventRecord()
    CODEC.decode(json.dumps({"sample": base64.b64encode(b"\xff\xfe").decode()}).encode(), record)
    assert record.sample == b"\xff\xfe"
    with pytest.raises(JsonMismatchError):
        CODEC.decode(b'{"sample":"not base64!"}', records_pb2.ThreatEventRecord())


@settings(max_examples=1000, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_a_mutated_body_is_read_or_refused_but_never_breaks(source: random.Random, edits: int) -> None:
    body = bytearray(json.dumps(event()).encode())
    for _ in range(edits):
        where = source.randrange(len(body))
        match source.randrange(4):
            case 0:
                body[where] = source.randrange(256)
            case 1:
                del body[where : where + source.randrange(1, 20)]
            case 2:
                body[where:where] = body[source.randrange(len(body)) :][: source.randrange(1, 40)]
            case _:
                body[where:where] = source.choice(
                    [b"NaN", b"1e999", b"null", b"{}", b"[", b'"', b"-", b"\\u0000", b"99999999999"]
                )
        body = body or bytearray(b" ")
    request = threat_service_pb2.AnalyzeRealtimeRequest()
    try:
        CODEC.decode(bytes(body), request)
    except JsonMismatchError:
        return
    again = threat_service_pb2.AnalyzeRealtimeRequest()
    CODEC.decode(CODEC.encode(request), again)
    assert again == request
