"""Structured logs: one JSON object a line on standard output, under the call's correlation id, with nothing about
people.

What keeps personal data out:

- no request or answer is ever logged; extra fields must be scalars, anything else is replaced by its type's name;
- an extra field named like a field that the contract marks as personal or secret is withheld;
- of an exception, the types and the places are logged. Its text is logged only where it is our own (`MeshError`,
`OperatorError`), or at
  level DEBUG: drivers like to quote the data that they failed on.

Writing happens in another thread behind a bounded queue: a slow terminal drops lines (and says how many) but never
blocks a call.
"""

from __future__ import annotations

import logging
import queue
import sys
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import TYPE_CHECKING, Any, Final, TextIO

import orjson
from behaviorguard.api.v1 import policy_pb2
from google.protobuf import descriptor_pool

from servers.mesh.context import current_call
from servers.mesh.errors import MeshError, OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from google.protobuf.descriptor import Descriptor

_QUEUE_LINES: Final = 10_000
_MAX_TEXT: Final = 2_000
_CLOSE_SECONDS: Final = 3.0
_MAX_FRAMES: Final = 40
_WITHHELD: Final = "[withheld]"
_OWN_KEYS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SENSITIVE: Final = (policy_pb2.SENSITIVITY_PERSONAL, policy_pb2.SENSITIVITY_SECRET)


class JsonFormatter(logging.Formatter):
    """Turns a record into one line of JSON."""

    def __init__(self, service: str, withheld: frozenset[str] = frozenset(), *, exception_texts: bool = False) -> None:
        super().__init__()
        self._service = service
        self._withheld = withheld
        self._exception_texts = exception_texts

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage()[:_MAX_TEXT],
        }
        call = current_call()
        if call is not None:
            line |= {"correlation_id": call.correlation_id, "method": call.method, "caller": call.caller}
        for key, value in vars(record).items():
            if key not in _OWN_KEYS:
                line[key] = _WITHHELD if key in self._withheld else _scalar(value)
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = "\n".join(self._describe(record.exc_info[1]))
        return orjson.dumps(line, option=orjson.OPT_NON_STR_KEYS).decode()

    def _describe(self, error: BaseException) -> Iterator[str]:
        """Types and places of an exception and of what led to it, oldest cause first."""
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is not None:
            yield from self._describe(cause)
            yield "which led to:"
        tells = self._exception_texts or isinstance(error, MeshError | OperatorError)
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        yield f"{kind}: {str(error)[:_MAX_TEXT]}" if tells else kind
        yield from _places(error.__traceback__)


def _places(trace: TracebackType | None) -> Iterator[str]:
    for frame in traceback.extract_tb(trace)[-_MAX_FRAMES:]:
        yield f"  {frame.filename}:{frame.lineno} in {frame.name}"


def _scalar(value: object) -> str | int | float | bool | None:
    if value is None or isinstance(value, bool | int | float):
        return value
    return value[:_MAX_TEXT] if isinstance(value, str) else type(value).__name__


class _Enqueue(QueueHandler):
    """Formats in the caller's context, then hands the line over without ever waiting."""

    def __init__(self, lines: queue.Queue[str | None], formatter: JsonFormatter) -> None:
        super().__init__(lines)
        self.setFormatter(formatter)
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> str:
        return self.format(record)

    def enqueue(self, record: Any) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class _Write(QueueListener):
    """Writes lines in its own thread."""

    def __init__(self, lines: queue.Queue[str | None], stream: TextIO) -> None:
        super().__init__(lines)
        self._lines = lines
        self._stream = stream

    def handle(self, record: Any) -> None:
        self._stream.write(f"{record}\n")
        self._stream.flush()

    def stop(self) -> None:
        """Write what is queued, but wait for a stuck stream no longer than a few seconds."""
        thread, self._thread = self._thread, None
        with suppress(queue.Full):
            self._lines.put(None, timeout=_CLOSE_SECONDS)
            if thread is not None:
                thread.join(_CLOSE_SECONDS)


class LogOutput:
    """Routes this process's logs, and Python's warnings, to `stream` until it is closed."""

    def __init__(self, handler: _Enqueue, listener: _Write) -> None:
        self._handler = handler
        self._listener = listener

    @property
    def dropped(self) -> int:
        """Lines that were dropped because the stream was too slow."""
        return self._handler.dropped

    def configure(self, service: str, level: str, services: Iterable[str] = ()) -> None:
        """Say whose logs these are from now on; see `start_logging`."""
        withheld = sensitive_names(services)
        self._handler.setFormatter(JsonFormatter(service, withheld, exception_texts=level == "DEBUG"))
        logging.getLogger().setLevel(level)

    def close(self) -> None:
        """Write what is queued and stop."""
        if self.dropped:
            logging.getLogger(__name__).warning("log lines were dropped", extra={"dropped": self.dropped})
        logging.getLogger().removeHandler(self._handler)
        self._listener.stop()
        self._handler.close()


def start_logging(service: str, level: str, *, services: Iterable[str] = (), stream: TextIO | None = None) -> LogOutput:
    """Send all logs of this process to `stream` (default: standard output).

    Args:
        service: this workload's name, on every line.
        level: least severe level that is written.
        services: full names of the services whose contract says which fields are personal or secret.
        stream: where to write.
    """
    lines: queue.Queue[str | None] = queue.Queue(_QUEUE_LINES)
    handler = _Enqueue(lines, JsonFormatter(service))
    listener = _Write(lines, stream or sys.stdout)
    listener.start()
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(capture=True)
    output = LogOutput(handler, listener)
    output.configure(service, level, services)
    return output


def sensitive_names(services: Iterable[str]) -> frozenset[str]:
    """Names of all fields that the services' messages mark as personal or secret."""
    found: set[str] = set()
    seen: set[str] = set()
    for service in services:
        for method in descriptor_pool.Default().FindServiceByName(service).methods:
            _collect(method.input_type, found, seen)
            _collect(method.output_type, found, seen)
    return frozenset(found)


def _collect(message: Descriptor, found: set[str], seen: set[str]) -> None:
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        if field.GetOptions().Extensions[policy_pb2.sensitivity] in _SENSITIVE:
            found.add(field.name)
        if field.message_type is not None:
            _collect(field.message_type, found, seen)
