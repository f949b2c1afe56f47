"""Log lines: JSON whatever is logged, nothing about people, never a wait."""

from __future__ import annotations

import io
import json
import logging
import threading
from typing import Any, NoReturn

from hypothesis import given
from hypothesis import strategies as st

from servers.mesh.errors import ErrorReason, MeshError, OperatorError
from servers.mesh.logs import JsonFormatter, sensitive_names, start_logging


def line(formatter: JsonFormatter, message: str = "said", error: BaseException | None = None, **extra: Any) -> Any:
    info = (type(error), error, error.__traceback__) if error is not None else None
    record = logging.LogRecord("servers.test", logging.INFO, __file__, 1, message, (), info)
    vars(record).update(extra)
    text = formatter.format(record)
    assert "\n" not in text
    return json.loads(text)


def test_names_of_sensitive_fields_come_from_the_contract() -> None:
    names = sensitive_names(["behaviorguard.threat.v1.ThreatService"])
    assert {"ip_address", "user_agent", "hold_ms", "flight_ms", "location", "note", "views"} <= names
    assert "user_id" not in names


def test_sensitive_fields_and_objects_are_withheld() -> None:
    said = line(JsonFormatter("threat", frozenset({"note"})), note="secret", rows=[1, 2], count=3)
    assert (said["note"], said["rows"], said["count"]) == ("[withheld]", "list", 3)


def inner() -> NoReturn:
    raise KeyError("inner-secret")


def raised(error: Exception) -> Exception:
    try:
        try:
            inner()
        except KeyError as cause:
            raise error from cause
    except Exception as caught:
        return caught


def test_exceptions_are_told_by_type_and_place() -> None:
    said = line(JsonFormatter("threat"), error=raised(ValueError("outer-secret")))["exception"]
    assert "builtins.KeyError\n" in said
    assert "in raised" in said
    assert "secret" not in said
    said = line(JsonFormatter("threat", exception_texts=True), error=raised(ValueError("outer-secret")))["exception"]
    assert "outer-secret" in said


def test_our_own_texts_are_told() -> None:
    ours = (OperatorError("set BEHAVIORGUARD_PORT"), MeshError(ErrorReason.ERROR_REASON_WRONG_STATE, "set it again"))
    for error in ours:
        assert str(error) in line(JsonFormatter("threat"), error=raised(error))["exception"]


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()


@given(st.text(), st.dictionaries(st.text(min_size=1).map("x_{}".format), SCALARS | st.lists(SCALARS)))
def test_whatever_is_logged_is_one_line_of_json(message: str, extra: dict[str, Any]) -> None:
    assert line(JsonFormatter("threat"), message.replace("%", ""), **extra)["service"] == "threat"


class Stuck(io.StringIO):
    """A terminal that does not read on until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def write(self, text: str) -> int:
        self.free.wait(20)
        return super().write(text)


def test_a_stuck_terminal_blocks_nobody() -> None:
    stream = Stuck()
    output = start_logging("threat", "INFO", stream=stream)
    try:
        flood = logging.getLogger("servers.test")
        for number in range(10_500):
            flood.info("line %d", number)
        assert output.dropped >= 400
    finally:
        stream.free.set()
        output.close()
    assert 10_000 <= len(stream.getvalue().splitlines()) <= 10_100
