"""Metrics and traces with OpenTelemetry, in its current conventions for RPCs.

Metrics are scraped by Prometheus from a loopback port, pushed to a collector, both, or neither. Traces go to the
collector only; without
one, the caller's W3C trace context is still handed on. Attributes are names from the contract and status codes, never
data of a call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import prometheus_client
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, NoOpMeterProvider, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NoOpTracerProvider, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from servers.mesh.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from opentelemetry.metrics import Counter, Histogram, Meter
    from opentelemetry.trace import Tracer

    from servers.mesh.settings import MeshSettings

# Seconds; the conventions' bounds, and finer ones where our budget of 50 ms lies.
DURATION_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_RPC_SYSTEM: Final = "rpc.system.name"
_RPC_METHOD: Final = "rpc.method"
_RPC_STATUS: Final = "rpc.response.status_code"
_ERROR_TYPE: Final = "error.type"
# Outcomes whose series exist from the start: a first failure must not be a series' first sample.
_EXPECTED: Final = (
    "OK",
    "INVALID_ARGUMENT",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "INTERNAL",
)
# Codes that say that the server is at fault; the conventions count only these as a server's errors.
SERVER_FAULTS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)


class Telemetry:
    """The instruments of one process. Nothing is measured or sent unless a metrics port or a collector is
    configured."""

    def __init__(self, settings: MeshSettings) -> None:
        self._metrics_port = settings.metrics_port
        self._registry = prometheus_client.CollectorRegistry()
        resource = Resource.create({"service.name": settings.service_name, "service.namespace": "behaviorguard"})
        readers: list[MetricReader] = []
        if settings.metrics_port:
            readers.append(PrometheusMetricReader(disable_target_info=True, registry=self._registry))
        if settings.otlp_endpoint:
            readers.append(_otlp_reader(settings.otlp_endpoint))
        self._meters = MeterProvider(readers, resource, shutdown_on_exit=False) if readers else None
        self._tracers = _tracer_provider(settings.otlp_endpoint, resource) if settings.otlp_endpoint else None
        self._close_scrape: Callable[[], None] | None = None
        self.meter: Meter = (self._meters or NoOpMeterProvider()).get_meter("behaviorguard")
        """Makes instruments."""
        self.tracer: Tracer = (self._tracers or NoOpTracerProvider()).get_tracer("behaviorguard")
        """Makes spans."""

    @property
    def measures(self) -> bool:
        """True when somebody reads the metrics."""
        return self._meters is not None

    @property
    def traces(self) -> bool:
        """True when somebody receives the spans."""
        return self._tracers is not None

    def counter(self, name: str, unit: str, description: str, series: Sequence[Mapping[str, str]] = ()) -> Counter:
        """A counter. Each of `series` (a set of attributes) exists at 0 at once, so that Prometheus sees its first
        increase."""
        counter = self.meter.create_counter(name, unit, description)
        for attributes in series:
            counter.add(0, dict(attributes))
        return counter

    def histogram(self, name: str, unit: str, description: str, bounds: Sequence[float] = DURATION_BOUNDS) -> Histogram:
        """A histogram with these upper bounds, in `unit`."""
        return self.meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds)

    def gauge(self, name: str, unit: str, description: str, read: Callable[[], float]) -> None:
        """A gauge; `read` is called from another thread when somebody looks, so it must only read."""
        self.meter.create_observable_gauge(name, [lambda _options: [Observation(read())]], unit, description)

    def start(self) -> None:
        """Serve the scrape port, if one is configured.

        Raises:
            OperatorError: the port is taken.
        """
        if self._metrics_port and self._close_scrape is None:
            try:
                server, thread = prometheus_client.start_http_server(self._metrics_port, "127.0.0.1", self._registry)
            except OSError as error:
                raise OperatorError(
                    f"cannot serve metrics on port {self._metrics_port}: stop what else uses it, "
                    "or set BEHAVIORGUARD_METRICS_PORT"
                ) from error

            def close() -> None:
                server.shutdown()
                server.server_close()
                thread.join(timeout=2)

            self._close_scrape = close

    def close(self) -> None:
        """Send what is pending (at most 3 s) and stop. Blocks: call it from a thread."""
        if self._close_scrape is not None:
            self._close_scrape()
            self._close_scrape = None
        if self._meters is not None:
            self._meters.shutdown(timeout_millis=3000)
        if self._tracers is not None:
            self._tracers.shutdown()


@dataclass(slots=True)
class RpcTotals:
    """What one RPC did since the start."""

    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_EXPECTED, 0))
    """Calls by status code."""
    seconds: float = 0.0
    """Time spent in all of them."""


class RpcTelemetry:
    """Measures the RPCs that a server serves."""

    def __init__(self, telemetry: Telemetry, methods: Iterable[str]) -> None:
        self._tracer = telemetry.tracer if telemetry.traces else None
        self._propagator = TraceContextTextMapPropagator()
        self.totals = {method: RpcTotals() for method in methods}
        self.active = 0
        """Calls in progress."""
        self._durations: Histogram | None = None
        if telemetry.measures:
            self._durations = telemetry.histogram(
                "rpc.server.call.duration", "s", "Duration of incoming calls, streams included until their end."
            )
            telemetry.meter.create_observable_counter(
                "behaviorguard.rpc.server.calls", [self._observe], "{call}", "Incoming calls by outcome."
            )
            telemetry.gauge(
                "behaviorguard.rpc.server.active_calls", "{call}", "Calls in progress.", lambda: self.active
            )

    def begin(self, method: str, traceparent: str) -> Span | None:
        """A call begins; returns its span when traces are sent. `method` may be unknown: it then counts as `_OTHER`."""
        self.active += 1
        if self._tracer is None:
            return None
        parent = self._propagator.extract({"traceparent": traceparent})
        name = method[1:] if method in self.totals else "_OTHER"
        attributes = {_RPC_SYSTEM: "grpc", _RPC_METHOD: name}
        return self._tracer.start_span(name, parent, SpanKind.SERVER, attributes)

    def traceparent(self, span: Span | None, received: str) -> str:
        """The trace context that outgoing calls carry on."""
        if span is None:
            return received
        context = span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def end(self, method: str, code: str, seconds: float, span: Span | None) -> None:
        """A call has ended with the named status code."""
        self.active -= 1
        totals = self.totals.get(method)
        if totals is not None:
            totals.calls[code] = totals.calls.get(code, 0) + 1
            totals.seconds += seconds
        if self._durations is not None:
            self._durations.record(seconds, _attributes(method[1:] if totals is not None else "_OTHER", code))
        if span is not None:
            span.set_attribute(_RPC_STATUS, code)
            if code in SERVER_FAULTS:
                span.set_attribute(_ERROR_TYPE, code)
                span.set_status(Status(StatusCode.ERROR))
            span.end()

    def _observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        for method, totals in self.totals.items():
            for code, calls in totals.calls.copy().items():
                yield Observation(calls, _attributes(method[1:], code))


def _attributes(method: str, code: str) -> dict[str, str]:
    attributes = {_RPC_SYSTEM: "grpc", _RPC_METHOD: method, _RPC_STATUS: code}
    if code in SERVER_FAULTS:
        attributes[_ERROR_TYPE] = code
    return attributes


def _otlp_reader(endpoint: str) -> MetricReader:
    # The exporter takes a fifth of a second to import: only who sends pays.
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (  # noqa: PLC0415
        OTLPMetricExporter,
    )

    return PeriodicExportingMetricReader(OTLPMetricExporter(endpoint, insecure=endpoint.startswith("http://")))


def _tracer_provider(endpoint: str, resource: Resource) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415 -- as above
        OTLPSpanExporter,
    )

    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint, insecure=endpoint.startswith("http://"))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
