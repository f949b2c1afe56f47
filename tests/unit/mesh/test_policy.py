"""The contract's rules, applied to its own RPCs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import behaviorguard
import pytest
from behaviorguard.threat.v1 import threat_service_pb2 as threat
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from servers.mesh.context import EndUser, Scope
from servers.mesh.errors import MeshError
from servers.mesh.identity import end_user, on_behalf_of
from servers.mesh.policy import (
    MethodPolicy,
    NamedIds,
    RateClass,
    authorize,
    authorize_message,
    named_ids,
    read_policies,
)

SERVICE = "behaviorguard.threat.v1.ThreatService"
ANNA, BELA = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
HOME, AWAY = "33333333-3333-4333-8333-333333333333", "44444444-4444-4444-8444-444444444444"


def policy(name: str) -> MethodPolicy:
    return read_policies(SERVICE)[f"/{SERVICE}/{name}"]


def person(scope: Any) -> EndUser:
    return EndUser(ANNA, HOME, scope)


def refusal(check: Any, *arguments: Any) -> str:
    try:
        check(*arguments)
    except MeshError as error:
        return error.reason_name.removeprefix("ERROR_REASON_")
    return ""


def contract_services() -> list[str]:
    names = []
    for root in map(Path, behaviorguard.__path__):
        for file in root.glob("*/v1/*_pb2.py"):
            module = importlib.import_module(".".join(["behaviorguard", *file.with_suffix("").relative_to(root).parts]))
            names += [service.full_name for service in module.DESCRIPTOR.services_by_name.values()]
    return sorted(names)


@pytest.mark.parametrize("service", contract_services())
def test_every_rpc_of_the_contract_says_who_may_call(service: str) -> None:
    rpcs = descriptor_pool.Default().FindServiceByName(service).methods
    policies = read_policies(service)
    for rpc in rpcs:
        assert policies[f"/{service}/{rpc.name}"].callers, rpc.full_name


def test_an_unknown_service_is_a_mistake() -> None:
    with pytest.raises(LookupError, match="import its generated module"):
        read_policies("behaviorguard.threat.v1.Nothing")


def test_nobody_may_call_what_declares_nothing() -> None:
    assert refusal(authorize, None, "gateway", None) == "CALLER_NOT_ALLOWED"
    empty = MethodPolicy(
        frozenset(), Scope.SCOPE_ANONYMOUS, RateClass.RATE_CLASS_READ, False, NamedIds(()), NamedIds(())
    )
    assert refusal(authorize, empty, "gateway", None) == "CALLER_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("rpc", "caller", "scope", "expected"),
    [
        ("AnalyzeRealtime", "operator", None, ""),
        ("AnalyzeRealtime", "pipeline", None, "CALLER_NOT_ALLOWED"),
        ("AnalyzeRealtime", "gateway", None, "SESSION_REQUIRED"),
        ("AnalyzeRealtime", "gateway", Scope.SCOPE_SELF, ""),
        ("ListThreatEvents", "gateway", Scope.SCOPE_SELF, "SCOPE_NOT_ALLOWED"),
        ("ListThreatEvents", "gateway", Scope.SCOPE_ANALYST, ""),
        ("ListThreatEvents", "gateway", Scope.SCOPE_ADMIN, ""),
        ("ListThreatEvents", "mobile", None, "CALLER_NOT_ALLOWED"),
        ("StartTrial", "gateway", None, ""),
    ],
)
def test_callers_and_scopes(rpc: str, caller: str, scope: Any, expected: str) -> None:
    assert refusal(authorize, policy(rpc), caller, person(scope) if scope else None) == expected


@pytest.mark.parametrize("scope", [None, Scope.SCOPE_SELF, Scope.SCOPE_ADMIN])
def test_workloads_only_means_no_person(scope: Any) -> None:
    rules = MethodPolicy(
        frozenset({"gateway"}), Scope.SCOPE_UNSPECIFIED, RateClass.RATE_CLASS_READ, False, NamedIds(()), NamedIds(())
    )
    expected = "SCOPE_NOT_ALLOWED" if scope else ""
    assert refusal(authorize, rules, "gateway", person(scope) if scope else None) == expected


@pytest.mark.parametrize(
    ("rpc", "request_message", "allowed"),
    [
        ("AnalyzeRealtime", threat.AnalyzeRealtimeRequest(user_id=BELA), ()),
        ("StreamEvents", threat.StreamEventsRequest(event=threat.AnalyzeRealtimeRequest(user_id=BELA)), ()),
        ("GetRiskProfile", threat.GetRiskProfileRequest(user_id=BELA), (Scope.SCOPE_ANALYST, Scope.SCOPE_ADMIN)),
        ("WatchAlerts", threat.WatchAlertsRequest(user_ids=[ANNA, BELA]), (Scope.SCOPE_ANALYST, Scope.SCOPE_ADMIN)),
        ("EraseBehavior", threat.EraseBehaviorRequest(user_id=BELA), (Scope.SCOPE_ADMIN,)),
    ],
)
def test_naming_others(rpc: str, request_message: Any, allowed: tuple[Any, ...]) -> None:
    for scope in (Scope.SCOPE_SELF, Scope.SCOPE_ANALYST, Scope.SCOPE_ADMIN):
        expected = "" if scope in allowed else "SCOPE_NOT_ALLOWED"
        assert refusal(authorize_message, policy(rpc), person(scope), request_message) == expected
    assert refusal(authorize_message, policy(rpc), None, request_message) == ""


def test_naming_oneself_or_nobody_is_allowed() -> None:
    for request in (
        threat.WatchAlertsRequest(),
        threat.WatchAlertsRequest(user_ids=[ANNA]),
        threat.WatchAlertsRequest(user_ids=["", ANNA]),
    ):
        authorize_message(policy("WatchAlerts"), person(Scope.SCOPE_SELF), request)
    authorize_message(policy("StreamEvents"), person(Scope.SCOPE_SELF), threat.StreamEventsRequest())


def test_a_person_in_the_gateways_words_comes_back() -> None:
    for caller in ("gateway", "identity", "mobile"):
        for scope in (Scope.SCOPE_SELF, Scope.SCOPE_ANALYST, Scope.SCOPE_ADMIN):
            assert end_user(caller, dict(on_behalf_of(person(scope)))) == person(scope)
    assert end_user("gateway", dict(on_behalf_of(None, client="abc"))) is None
    assert on_behalf_of(None) == ()


TEXT = st.text(max_size=40)


@given(st.dictionaries(st.sampled_from(["x-bg-user-id", "x-bg-organization-id", "x-bg-scope", "x-bg-other"]), TEXT))
def test_no_metadata_makes_somebody_up(said: dict[str, str]) -> None:
    assert refusal(end_user, "gateway", said) in ("", "MALFORMED_BODY")
    if said:
        assert refusal(end_user, "operator", said) == "CALLER_NOT_ALLOWED"


def test_people_are_found_in_lists_maps_and_deep_inside() -> None:
    declared = descriptor_pb2.FileDescriptorProto(
        name="behaviorguard/test/v1/nested.proto", package="behaviorguard.test.v1", syntax="proto3"
    )
    text, message = descriptor_pb2.FieldDescriptorProto.TYPE_STRING, descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
    one, many = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL, descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    leaf = declared.message_type.add(name="Leaf")
    leaf.field.add(name="user_id", number=1, type=text, label=one)
    branch = declared.message_type.add(name="Branch")
    branch.field.add(name="leaves", number=1, type=message, label=many, type_name=".behaviorguard.test.v1.Leaf")
    entry = branch.nested_type.add(name="ByNameEntry", options=descriptor_pb2.MessageOptions(map_entry=True))
    entry.field.add(name="key", number=1, type=text, label=one)
    entry.field.add(name="value", number=2, type=message, label=one, type_name=".behaviorguard.test.v1.Leaf")
    branch.field.add(
        name="by_name", number=2, type=message, label=many, type_name=".behaviorguard.test.v1.Branch.ByNameEntry"
    )
    tree = declared.message_type.add(name="Tree")
    tree.field.add(name="branch", number=1, type=message, label=one, type_name=".behaviorguard.test.v1.Branch")
    loop = declared.message_type.add(name="Loop")
    loop.field.add(name="inner", number=1, type=message, label=one, type_name=".behaviorguard.test.v1.Loop")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(declared)
    descriptor = pool.FindMessageTypeByName("behaviorguard.test.v1.Tree")
    ids = named_ids(descriptor, "user_id")
    make: Any = message_factory.GetMessageClass(descriptor)
    request = make()
    assert ids.all_are(request, ANNA)
    request.branch.leaves.add(user_id=ANNA)
    assert ids.all_are(request, ANNA)
    request.branch.by_name["x"].user_id = BELA
    assert not ids.all_are(request, ANNA)
    with pytest.raises(TypeError, match="contains itself"):
        named_ids(pool.FindMessageTypeByName("behaviorguard.test.v1.Loop"), "user_id")
