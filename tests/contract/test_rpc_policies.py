"""Every RPC says who may call it, how it is reached and what it does."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from infra.contracts.model import short_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import MethodDescriptor

    from infra.contracts.model import Contracts

WORKLOADS = {
    "gateway",
    "hsm",
    "identity",
    "mobile",
    "monitoring",
    "operator",
    "pipeline",
    "quantum",
    "threat",
}
# Paths that the data-flow document writes down.
DOCUMENTED = {
    ("post", "/api/auth/login"): "behaviorguard.identity.v1.SessionService.Login",
    ("post", "/api/biometric/verify"): "behaviorguard.identity.v1.BiometricService.VerifyBiometric",
    ("post", "/api/biometric/process-mobile"): "behaviorguard.identity.v1.BiometricService.ProcessMobile",
    ("post", "/api/quantum/encrypt-template"): "behaviorguard.quantum.v1.TemplateService.EncryptTemplate",
    ("post", "/api/quantum/encrypt-biometric"): "behaviorguard.quantum.v1.TemplateService.EncryptBiometric",
    ("post", "/api/quantum/token/generate"): "behaviorguard.quantum.v1.TokenService.GenerateToken",
    ("post", "/api/quantum/keygen"): "behaviorguard.quantum.v1.KeyService.GenerateKey",
    ("post", "/api/threat/analyze-realtime"): "behaviorguard.threat.v1.ThreatService.AnalyzeRealtime",
    ("post", "/api/mobile/biometric/capture"): "behaviorguard.mobile.v1.MobileService.CaptureBiometric",
    ("get", "/ws"): "behaviorguard.threat.v1.ThreatService.WatchAlerts",
}
CHANGING_RATES = {"write", "critical", "stream"}


def methods(contracts: Contracts) -> Iterator[MethodDescriptor]:
    for service in contracts.services():
        yield from service.methods


def test_every_rpc_names_its_callers(contracts: Contracts) -> None:
    for method in methods(contracts):
        policy = contracts.policy(method)
        assert policy is not None, f"{method.full_name} has no policy: nobody could call it"
        assert policy.callers, f"{method.full_name} names no caller"
        assert set(policy.callers) <= WORKLOADS, method.full_name
        assert len(set(policy.callers)) == len(policy.callers), method.full_name


def test_every_rpc_has_a_rate_class_summary_and_comment(contracts: Contracts) -> None:
    for method in methods(contracts):
        policy = contracts.policy(method)
        assert policy.rate_class, f"{method.full_name} has no rate class"
        assert 5 <= len(policy.summary) <= 80, method.full_name
        assert not policy.summary.endswith("."), method.full_name
        assert len(contracts.comment(method)) >= 30, method.full_name


def test_summaries_tell_rpcs_apart(contracts: Contracts) -> None:
    count = Counter((m.containing_service.name, contracts.policy(m).summary) for m in methods(contracts))
    assert [summary for summary, times in count.items() if times > 1] == []


def test_paths_are_for_people_and_people_have_paths(contracts: Contracts) -> None:
    """An RPC with a path can be called by the gateway for somebody; one that is for workloads only has no path."""
    for method in methods(contracts):
        has_path = any(contracts.routes(method))
        if not contracts.scope(method):
            assert not has_path, f"{method.full_name} is for workloads only and has an HTTP path"
        if has_path:
            assert "gateway" in contracts.policy(method).callers, f"{method.full_name}: the gateway cannot call it"


def test_paths_are_unique(contracts: Contracts) -> None:
    """No two RPCs share a verb and a path, whatever the path's variables are called."""
    count: Counter[tuple[str, str]] = Counter()
    for method in methods(contracts):
        for route in contracts.routes(method):
            shape = "/".join("{}" if part.startswith("{") else part for part in route.path.split("/"))
            count[route.verb, shape] += 1
    assert [shape for shape, times in count.items() if times > 1] == []


def test_the_documented_paths_are_there(contracts: Contracts) -> None:
    found = {(route.verb, route.path): m.full_name for m in methods(contracts) for route in contracts.routes(m)}
    assert {place: found.get(place) for place in DOCUMENTED} == DOCUMENTED


def test_path_variables_are_required_scalars_of_the_request(contracts: Contracts) -> None:
    for method in methods(contracts):
        for route in contracts.routes(method):
            for name in route.variables:
                field = method.input_type.fields_by_name[name]
                assert field.type == field.TYPE_STRING, f"{method.full_name}: {name}"
                assert contracts.rules(field) is not None, f"{method.full_name}: {name} has no rule"


def test_verbs_say_what_happens(contracts: Contracts) -> None:
    for method in methods(contracts):
        rate, _ = contracts.rate_class(method)
        streams = method.client_streaming or method.server_streaming
        for route in contracts.routes(method):
            assert (route.verb in ("get", "delete")) == (not route.body), method.full_name
            if route.verb == "get" and not streams:
                assert rate == "read", f"{method.full_name} is read by GET and counted as {rate}"
            if route.verb in ("put", "patch", "delete"):
                assert rate in CHANGING_RATES, method.full_name


def test_changes_are_audited(contracts: Contracts) -> None:
    """What an administrator changes, and everything critical that somebody signed in does, leaves a record."""
    for method in methods(contracts):
        rate, _ = contracts.rate_class(method)
        if (contracts.scope(method) == "admin" and rate != "read") or (
            rate == "critical" and contracts.scope(method) != "anonymous"
        ):
            assert contracts.policy(method).audited, f"{method.full_name} leaves no audit record"


def test_nobody_but_workloads_reaches_the_hsm(contracts: Contracts) -> None:
    for method in methods(contracts):
        if method.full_name.startswith("behaviorguard.hsm."):
            assert contracts.scope(method) == "", method.full_name
            assert "gateway" not in contracts.policy(method).callers, method.full_name


def test_rate_classes_have_budgets(contracts: Contracts) -> None:
    budgets = {contracts.rate_class(method) for method in methods(contracts)}
    assert budgets == {("read", 600), ("stream", 6000), ("write", 120), ("critical", 30), ("service", 600_000)}


def test_error_reasons_say_what_to_do(contracts: Contracts) -> None:
    actions = set()
    for value in contracts.error_reasons():
        action = contracts.suggested_action(value)
        assert action.endswith("."), f"{value.name} does not say what to do"
        assert contracts.status_code(value) not in ("", "OK"), f"{value.name} has no status"
        assert contracts.comment(value), value.name
        actions.add(action)
    assert len(actions) > 40, "advice that is the same everywhere helps nobody"


@pytest.mark.parametrize("kind", ["messages", "enums", "services"])
def test_everything_is_explained(contracts: Contracts, kind: str) -> None:
    for element in getattr(contracts, kind)():
        assert contracts.comment(element), element.full_name
        for part in getattr(element, "fields", None) or getattr(element, "values", None) or ():
            assert contracts.comment(part), f"{element.full_name}.{part.name}"


def test_enums_begin_with_an_unspecified_zero(contracts: Contracts) -> None:
    for enum in contracts.enums():
        zero = enum.values_by_number[0]
        assert short_name(zero) == "unspecified", enum.full_name
        assert len({short_name(value) for value in enum.values}) == len(enum.values), enum.full_name
