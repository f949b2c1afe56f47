"""How the pipeline is, for whoever supervises it: `/health` and `/metrics` on loopback."""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import orjson
from confluent_kafka import KafkaError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from pipeline import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from prometheus_client import CollectorRegistry

_STALLED_SECONDS = 30.0
_log = logging.getLogger(__name__)


class Health:
    """What the runner knows of itself. Written by its threads, read by the endpoint's; every field is replaced
    whole."""

    def __init__(self, rate: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._started = clock()
        self._beat = clock()
        self._connected = False
        self._partitions: tuple[int, ...] | None = None
        self._trouble = ""
        self.progress = 0

    def beat(self) -> None:
        """The reading thread lives."""
        self._beat = self._clock()

    def progressed(self) -> None:
        """Events were scored, delivered and committed."""
        self.progress += 1
        self._trouble = ""

    def trouble(self, what: str) -> None:
        """Something failed; it stands until events were scored and committed, or partitions are assigned."""
        self._trouble = what

    def assigned(self, partitions: Collection[int]) -> None:
        """The group answered: these partitions are ours, and what troubled the session before is over."""
        self._trouble = ""
        self._partitions = tuple(sorted(partitions))

    def statistics(self, text: str) -> None:
        """The client's own report, once a second: the broker is there while one connection is up."""
        brokers = orjson.loads(text).get("brokers", {})
        self._connected = any(broker.get("state") == "UP" for broker in brokers.values())

    def client_error(self, error: KafkaError) -> None:
        """The client's errors that belong to no message."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._connected = False
        _log.warning("broker: %s", error.str())

    @property
    def healthy(self) -> bool:
        """Whether events are being scored, or would be if some came."""
        return self._connected and self._partitions is not None and not self._trouble and self._lives

    @property
    def _lives(self) -> bool:
        return self._clock() - self._beat < _STALLED_SECONDS

    def report(self) -> dict[str, object]:
        """The document's health answer, with what a pipeline has of it."""
        rate = self._rate()
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return {
            "service": "pipeline",
            "status": "healthy" if self.healthy else "unhealthy",
            "timestamp": now,
            "version": VERSION,
            "uptime": round(self._clock() - self._started, 1),
            "dependencies": {
                "external_services": {
                    "kafka": {"status": "reachable" if self._connected else "unreachable", "last_check": now}
                }
            },
            "morpheus_specific": {
                "events_processed_per_second": round(rate, 1),
                "pipeline_status": "error"
                if self._trouble or not self._lives
                else "running"
                if self._partitions is not None
                else "stopped",
            },
            "partitions": list(self._partitions or ()),
            "trouble": self._trouble,
        }


class Endpoint:
    """Serves `/health` (200 when healthy, else 503) and `/metrics` on 127.0.0.1."""

    def __init__(self, port: int, health: Health, registry: CollectorRegistry) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/health":
                    status = HTTPStatus.OK if health.healthy else HTTPStatus.SERVICE_UNAVAILABLE
                    self._answer(status, "application/json", orjson.dumps(health.report()))
                elif self.path == "/metrics":
                    self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry))
                else:
                    self._answer(HTTPStatus.NOT_FOUND, "application/json", b'{"error":"try /health or /metrics"}')

            def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Probes come every few seconds: they are not worth a line each."""

        Handler.timeout = 5.0
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Serve on a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
