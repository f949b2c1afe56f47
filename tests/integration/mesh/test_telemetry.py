"""What an operator sees: metrics over a real scrape, traces at a real collector."""

from __future__ import annotations

import asyncio
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from infra.stack.ports import free_port
from tests.support.mesh import ANNA, Running, event, refused

CALLS = "behaviorguard_rpc_server_calls_total"
ANALYZE = "behaviorguard.threat.v1.ThreatService/AnalyzeRealtime"


def samples(text: str) -> dict[str, float]:
    """Prometheus's text format as a dictionary."""
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


async def scrape(port: int) -> dict[str, float]:
    address = f"http://127.0.0.1:{port}/metrics"
    return samples(await asyncio.to_thread(lambda: urllib.request.urlopen(address, timeout=5).read().decode()))


def value(seen: dict[str, float], name: str, **labels: str) -> float | None:
    wanted = [f'{key}="{said}"' for key, said in labels.items()]
    return next((v for k, v in seen.items() if k.startswith(name) and all(part in k for part in wanted)), None)


async def test_metrics_are_scraped_and_start_at_zero(serve: Any) -> None:
    port = free_port()
    running: Running = await serve(metrics_port=port)
    before = await scrape(port)
    for code in ("OK", "INVALID_ARGUMENT", "PERMISSION_DENIED", "INTERNAL"):
        assert value(before, CALLS, rpc_method=ANALYZE, rpc_response_status_code=code) == 0
    await running.stub("operator").AnalyzeRealtime(event(), timeout=5)
    async with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await running.stub("operator").AnalyzeRealtime(event("bad"), timeout=5)
    after = await scrape(port)
    assert value(after, CALLS, rpc_method=ANALYZE, rpc_response_status_code="OK") == 1
    assert value(after, CALLS, rpc_method=ANALYZE, rpc_response_status_code="INVALID_ARGUMENT") == 1
    assert (
        value(after, "rpc_server_call_duration_seconds_count", rpc_method=ANALYZE, rpc_response_status_code="OK") == 1
    )
    assert value(after, "behaviorguard_rpc_server_active_calls") == 0
    assert ANNA not in str(after)


async def test_spans_continue_the_callers_trace(serve: Any) -> None:
    received: list[Any] = []

    class Collector(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 -- an RPC's name
            received.append(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    collector = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), collector)  # type: ignore[no-untyped-call]  # generated
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    try:
        running: Running = await serve(otlp_endpoint=f"http://127.0.0.1:{port}")
        trace = (("traceparent", f"00-{'a' * 32}-{'b' * 16}-01"),)
        await running.stub("operator").AnalyzeRealtime(event(), timeout=5, metadata=trace)
        handed_on = running.servicer.calls[0].traceparent
        await running.server.drain()  # sends what is pending
    finally:
        collector.stop(None)
    spans = [
        span for request in received for group in request.resource_spans for s in group.scope_spans for span in s.spans
    ]
    assert [span.name for span in spans] == [ANALYZE]
    assert (spans[0].trace_id.hex(), spans[0].parent_span_id.hex()) == ("a" * 32, "b" * 16)
    assert handed_on == f"00-{'a' * 32}-{spans[0].span_id.hex()}-01"
    said = {attribute.key: attribute.value.string_value for attribute in spans[0].attributes}
    assert said == {"rpc.system.name": "grpc", "rpc.method": ANALYZE, "rpc.response.status_code": "OK"}


@pytest.mark.parametrize("header", ["", "garbage", f"00-{'g' * 32}-{'b' * 16}-01"])
async def test_a_broken_trace_context_is_ignored(serve: Any, header: str) -> None:
    running: Running = await serve()
    await running.stub("operator").AnalyzeRealtime(event(), timeout=5, metadata=(("traceparent", header),))
    assert running.servicer.calls[0].traceparent == ""
