"""Everything that a stranger can send has a rule, everything about a person is marked, and the rules hold."""

from __future__ import annotations

import importlib
import math
import time
from typing import TYPE_CHECKING, Any

import protovalidate
import pytest
from behaviorguard.hsm.v1 import hsm_service_pb2
from behaviorguard.identity.v1 import session_service_pb2
from behaviorguard.quantum.v1 import key_service_pb2, template_service_pb2
from behaviorguard.threat.v1 import behavior_pb2, threat_service_pb2
from google.protobuf import descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.model import is_map
from infra.contracts.schemas import type_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor import Descriptor, FieldDescriptor
    from google.protobuf.message import Message

    from infra.contracts.model import Contracts

UUID = "3f0c9a52-6f0e-4a58-9b3f-1f5f4b8f7c11"
# What a field of these names is about, whatever message it stands in.
SECRET_NAMES = {
    "biometric_data",
    "biometric_template",
    "current_password",
    "device_token",
    "hybrid_token",
    "classical_token",
    "new_password",
    "password",
    "plaintext",
    "session_handle",
    "share",
    "shares",
    "token",
    "front_image",
    "back_image",
    "frames",
}
PERSONAL_NAMES = {
    "birth_date",
    "contact_size",
    "device_fingerprint",
    "document_number",
    "email",
    "flight_ms",
    "given_names",
    "hold_ms",
    "ip_address",
    "keystroke_dynamics",
    "location",
    "mouse_dynamics",
    "network_fingerprint",
    "note",
    "pressure",
    "source_ip",
    "surname",
    "user_agent",
}
# Numbers called so are not what the name says elsewhere.
NOT_SECRET = {"behaviorguard.hsm.v1.InitializeRequest.shares"}


def sendable(contracts: Contracts) -> list[FieldDescriptor]:
    return [
        field for message in contracts.request_messages().values() for field in message.fields if not _entry(message)
    ]


def _entry(message: Descriptor) -> bool:
    return bool(message.GetOptions().map_entry)


def test_every_sendable_field_has_a_rule(contracts: Contracts) -> None:
    """Booleans and single messages need none of their own: there is nothing to check, or the message's fields are."""
    without = []
    for field in sendable(contracts):
        rules = contracts.rules(field)
        kind = rules.WhichOneof("type") if rules is not None else None
        if is_map(field):
            good = kind == "map" and rules.map.max_pairs > 0
        elif field.is_repeated:
            good = kind == "repeated" and rules.repeated.max_items > 0
        elif type_name(field) == "message":
            assert field.message_type is not None
            timestamp = field.message_type.full_name == "google.protobuf.Timestamp"
            good = not timestamp or kind == "timestamp"
        else:
            good = type_name(field) == "bool" or kind == type_name(field)
        if not good:
            without.append(field.full_name)
    assert without == []


def test_every_list_and_map_bounds_its_items(contracts: Contracts) -> None:
    without = []
    for field in sendable(contracts):
        if is_map(field):
            limits = contracts.rules(field).map
            good = limits.HasField("keys") and limits.HasField("values")
        elif field.is_repeated and type_name(field) != "message":
            good = contracts.rules(field).repeated.HasField("items")
        else:
            good = True
        if not good:
            without.append(field.full_name)
    assert without == []


def test_every_text_and_every_bytes_is_bounded(contracts: Contracts) -> None:
    """By a length, a closed set, a form of fixed length or a pattern with bounded repeats."""
    unbounded = []
    for field in sendable(contracts):
        if is_map(field) or type_name(field) not in ("string", "bytes"):
            continue
        rules = contracts.rules(field)
        limits = rules.repeated.items if field.is_repeated else rules
        detail = getattr(limits, type_name(field))
        closed = list(getattr(detail, "in")) or detail.WhichOneof("well_known") in ("uuid", "ip")
        pattern = getattr(detail, "pattern", "")
        if not (detail.max_len or detail.len or closed or (pattern and "*" not in pattern and "+" not in pattern)):
            unbounded.append(field.full_name)
    assert unbounded == []


def test_secrets_and_personal_data_are_marked(contracts: Contracts) -> None:
    for message in contracts.messages():
        for field in message.fields:
            if field.name in SECRET_NAMES and field.full_name not in NOT_SECRET:
                assert contracts.sensitivity(field) == "secret", field.full_name
            if field.name in PERSONAL_NAMES:
                assert contracts.sensitivity(field) in ("personal", "secret"), field.full_name


def test_no_answer_carries_a_private_key(contracts: Contracts) -> None:
    forbidden = ("private", "seed", "shared_secret", "raw_entropy", "content_key", "data_key")
    names = [field.full_name for message in contracts.messages() for field in message.fields]
    assert [name for name in names if any(word in name.rsplit(".", 1)[1] for word in forbidden)] == []


def test_all_rules_compile(contracts: Contracts) -> None:
    """A rule that does not compile would fail its first request, in production."""
    validator = protovalidate.Validator()
    for message in contracts.request_messages().values():
        if not _entry(message):
            validator.collect_violations(_new(message))


def _new(message: Descriptor) -> Message:
    importlib.import_module(message.file.name.removesuffix(".proto").replace("/", ".") + "_pb2")
    return GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(message.full_name))()


def typed(keys: int = 14) -> behavior_pb2.KeystrokePattern:
    return behavior_pb2.KeystrokePattern(
        prompt_id="sign-in",
        key_classes=[behavior_pb2.KEY_CLASS_LETTER_LEFT] * keys,
        hold_ms=[90.0] * keys,
        flight_ms=[140.0] * keys,
        pressure=[0.4] * keys,
        contact_size=[0.2] * keys,
    )


def moved(points: int = 40) -> behavior_pb2.MousePattern:
    return behavior_pb2.MousePattern(
        time_ms=range(0, 100 * points, 100),
        x_px=range(points),
        y_px=range(-points, 0),
        actions=[behavior_pb2.POINTER_ACTION_MOVE] * points,
    )


def request(**changes: Any) -> threat_service_pb2.AnalyzeRealtimeRequest:
    message = threat_service_pb2.AnalyzeRealtimeRequest(user_id=UUID, correlation_id=UUID)
    message.timestamp.GetCurrentTime()
    message.event_data.event_id = message.event_data.session_id = UUID
    metrics = message.event_data.behavioral_metrics
    metrics.keystroke_dynamics.append(typed())
    metrics.mouse_dynamics.append(moved())
    message.event_data.contextual_data.ip_address = "192.0.2.7"
    message.MergeFrom(threat_service_pb2.AnalyzeRealtimeRequest(**changes))
    return message


def broken(change: Callable[[Any], object]) -> list[str]:
    """Paths of the fields that are refused once `change` was made to a good request."""
    message = request()
    change(message)
    return [
        ".".join(part.field_name for part in found.proto.field.elements) if found.proto.field is not None else ""
        for found in protovalidate.collect_violations(message)
    ]


def test_a_typical_event_is_accepted() -> None:
    assert protovalidate.collect_violations(request()) == []


METRICS = "event_data.behavioral_metrics"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda r: setattr(r, "user_id", "me"), "user_id"),
        (lambda r: r.ClearField("timestamp"), "timestamp"),
        (lambda r: setattr(r.timestamp, "seconds", 10**12), "timestamp"),
        (lambda r: setattr(r.event_data, "source", 99), "event_data.source"),
        (
            lambda r: r.event_data.behavioral_metrics.keystroke_dynamics[0].hold_ms.__setitem__(3, math.nan),
            f"{METRICS}.keystroke_dynamics.hold_ms",
        ),
        (
            lambda r: r.event_data.behavioral_metrics.keystroke_dynamics[0].flight_ms.__setitem__(3, math.inf),
            f"{METRICS}.keystroke_dynamics.flight_ms",
        ),
        (
            lambda r: r.event_data.behavioral_metrics.keystroke_dynamics[0].pressure.__setitem__(0, -0.1),
            f"{METRICS}.keystroke_dynamics.pressure",
        ),
        (
            lambda r: r.event_data.behavioral_metrics.mouse_dynamics[0].x_px.__setitem__(0, 100_001),
            f"{METRICS}.mouse_dynamics.x_px",
        ),
        (
            lambda r: r.event_data.behavioral_metrics.mouse_dynamics[0].time_ms.__setitem__(0, 600_001),
            f"{METRICS}.mouse_dynamics.time_ms",
        ),
        (
            lambda r: r.event_data.behavioral_metrics.mouse_dynamics[0].actions.append(1),
            f"{METRICS}.mouse_dynamics",
        ),
        (
            lambda r: setattr(r.event_data.contextual_data.location, "latitude", math.nan),
            "event_data.contextual_data.location.latitude",
        ),
        (
            lambda r: setattr(r.event_data.contextual_data, "ip_address", "example"),
            "event_data.contextual_data.ip_address",
        ),
    ],
)
def test_bad_events_are_refused_at_the_field(change: Callable[[Any], object], path: str) -> None:
    assert path in broken(change)


@given(st.lists(st.floats(width=32), min_size=1, max_size=4))
def test_hold_times_are_finite_and_in_range(values: list[float]) -> None:
    pattern = typed(len(values))
    del pattern.hold_ms[:]
    pattern.hold_ms.extend(values)
    assert (protovalidate.collect_violations(pattern) == []) == all(0 <= value <= 10_000 for value in values)


def keygen(**changes: Any) -> key_service_pb2.GenerateKeyRequest:
    good = {"key_type": 1, "algorithm": "ML-KEM-768", "purpose": 1, "organization_id": UUID}
    return key_service_pb2.GenerateKeyRequest(**{**good, **changes})


def test_key_requests() -> None:
    validator = protovalidate.Validator()
    for good in (
        keygen(),
        keygen(algorithm="Kyber768"),
        keygen(key_type=2, service_id="threat", security_level="NIST-L3"),
    ):
        assert validator.collect_violations(good) == []
    for bad in (
        keygen(algorithm="RSA-2048"),
        keygen(security_level="NIST-L2"),
        keygen(organization_id=""),
        keygen(key_type=0),
        keygen(key_type=2),
        keygen(key_type=1, device_id="phone"),
        keygen(metadata={"note\n": "x"}),
    ):
        assert validator.collect_violations(bad) != [], bad


def test_sign_in_needs_a_factor() -> None:
    login = session_service_pb2.LoginRequest(email="a@example.org")
    assert protovalidate.collect_violations(login) != []
    login.password = "correct horse"
    assert protovalidate.collect_violations(login) == []
    login.biometric_data = b"image"
    assert [v.proto.rule_id for v in protovalidate.collect_violations(login)] == ["login.biometric_type"]


def test_envelopes_over_their_size_are_refused() -> None:
    ask = template_service_pb2.DecryptTemplateRequest(user_id=UUID, encrypted_template=b"x" * 81_921)
    assert len(protovalidate.collect_violations(ask)) == 1


def test_a_threshold_over_the_shares_is_refused() -> None:
    assert protovalidate.collect_violations(hsm_service_pb2.InitializeRequest(shares=3, threshold=4)) != []
    assert protovalidate.collect_violations(hsm_service_pb2.InitializeRequest(shares=5, threshold=3)) == []


def test_checking_a_typical_event_is_cheap() -> None:
    """14 keys and 40 mouse points in about 35 us of processor time; the limit leaves room for slow machines."""
    validator = protovalidate.Validator()
    message = request()
    validator.validate(message)
    best = math.inf
    for _ in range(5):
        start = time.process_time()
        for _ in range(300):
            validator.validate(message)
        best = min(best, (time.process_time() - start) / 300)
    assert best < 300e-6
