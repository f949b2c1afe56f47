"""Routes as the contract declares them."""

from __future__ import annotations

from pathlib import Path

import pytest
from behaviorguard.threat.v1 import threat_service_pb2
from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool

from servers.gateway import contract
from servers.gateway.contract import ContractError, read_contract
from servers.gateway.json_values import JsonMismatchError, query_reader
from servers.gateway.stamping import Stamp

DESCRIPTORS = Path(__file__).parents[3] / "generated" / "descriptors.binpb"
THREAT = "behaviorguard.threat.v1.ThreatService"


def all_services() -> set[str]:
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file
    ours = [file for file in files if file.package.startswith("behaviorguard.")]
    return {f"{file.package}.{service.name}" for file in ours for service in file.service}


def test_the_documents_paths_are_there() -> None:
    found = {(each.verb, each.path): each for each in read_contract(DESCRIPTORS, {THREAT})}
    analyze = found["POST", "/api/threat/analyze-realtime"]
    assert analyze.rpc == f"/{THREAT}/AnalyzeRealtime"
    assert (analyze.body, analyze.is_socket) == ("*", False)
    watch = found["GET", "/ws"]
    assert (watch.is_socket, watch.client_streams, watch.server_streams) == (True, False, True)
    assert found["GET", "/api/threat/stream"].client_streams


def test_every_rpc_of_the_contract_can_be_served() -> None:
    operations = read_contract(DESCRIPTORS, all_services())
    paths = [(each.verb, each.path) for each in operations]
    assert len(paths) == len(set(paths)), "two RPCs at one path"
    for each in operations:
        Stamp(each)
        assert each.policy.callers


def test_a_service_that_is_not_in_the_contract_is_named() -> None:
    with pytest.raises(ContractError, match=r"behaviorguard\.none\.v1\.NoService"):
        read_contract(DESCRIPTORS, {"behaviorguard.none.v1.NoService"})


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (http_pb2.HttpRule(get="/things/{name=a/*}"), "one scalar field"),
        (http_pb2.HttpRule(get="/things/{unheard}"), "one scalar field"),
        (http_pb2.HttpRule(get="/things/{timestamp}"), "one scalar field"),
        (http_pb2.HttpRule(get="/things/a{user_id}"), "one scalar field"),
        (http_pb2.HttpRule(post="/things", body="unheard"), "no field"),
        (http_pb2.HttpRule(custom=http_pb2.CustomHttpPattern(kind="HEAD", path="/things")), "not custom"),
    ],
)
def test_paths_that_cannot_be_served_stop_the_start(rule: http_pb2.HttpRule, said: str) -> None:
    read_contract(DESCRIPTORS, {THREAT})
    real = descriptor_pool.Default().FindServiceByName(THREAT).methods_by_name["AnalyzeRealtime"]

    class Method:
        """The real method with another rule."""

        name, full_name = real.name, real.full_name
        input_type, output_type = real.input_type, real.output_type
        client_streaming = server_streaming = False

        @staticmethod
        def GetOptions() -> descriptor_pb2.MethodOptions:  # noqa: N802 -- protobuf's name
            options = descriptor_pb2.MethodOptions()
            options.CopyFrom(real.GetOptions())
            options.Extensions[annotations_pb2.http].CopyFrom(rule)
            return options

    with pytest.raises(ContractError, match=said):
        list(contract._operations(THREAT, Method))  # type: ignore[arg-type]  # a stand-in


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [("page_size", "12", 12), ("user_id", "a b", "a b"), ("minimum_level", "critical", 4)],
)
def test_parameters_are_read_from_text(field: str, text: str, value: object) -> None:
    fields = threat_service_pb2.ListThreatEventsRequest.DESCRIPTOR.fields_by_name
    assert query_reader(fields[field])(text) == value
    if field != "user_id":
        with pytest.raises(JsonMismatchError):
            query_reader(fields[field])("1e3x")
