"""Headers and cookies that carry fields, on the contract's own messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from servers.gateway.contract import Operation, read_contract
from servers.gateway.exchange import Exchange
from servers.gateway.http_fields import AnswerFields, RequestFields
from servers.gateway.json_values import JsonMismatchError
from servers.gateway.transcoding import Codec

DESCRIPTORS = Path(__file__).parents[3] / "generated" / "descriptors.binpb"
SESSIONS = "behaviorguard.identity.v1.SessionService"
HANDLE = "h" * 43


def operation(name: str) -> Operation:
    return next(each for each in read_contract(DESCRIPTORS, {SESSIONS}) if each.rpc == f"/{SESSIONS}/{name}")


def exchange(**headers: str) -> Exchange:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Exchange("", "POST", Headers(raw=raw), "", "", secure=True, host="localhost")


def filled(name: str, said: dict[str, Any], **headers: str) -> Any:
    found = operation(name)
    request = found.new_request()
    Codec().decode(orjson.dumps(said), request)
    RequestFields(found).apply(request, exchange(**headers))
    return request


def test_headers_fill_what_the_body_leaves_unset() -> None:
    request = filled("Login", {"email": "a@b.example"}, x_device_id="device-1", user_agent="Browser/1")
    assert (request.device_id, request.user_agent) == ("device-1", "Browser/1")
    # What a browser always sends is no contradiction.
    assert filled("Login", {"userAgent": "App/2"}, user_agent="Browser/1").user_agent == "App/2"
    with pytest.raises(JsonMismatchError) as error:
        filled("Login", {"deviceId": "device-2"}, x_device_id="device-1")
    assert error.value.path == "deviceId"


def test_a_cookie_fills_the_handle() -> None:
    assert filled("Logout", {}, cookie=f"other=1; auth_token={HANDLE}").session_handle == HANDLE
    assert filled("Logout", {}).session_handle == ""
    assert filled("Logout", {"sessionHandle": HANDLE}).session_handle == HANDLE
    with pytest.raises(JsonMismatchError):
        filled("Logout", {"sessionHandle": "g" * 43}, cookie=f"auth_token={HANDLE}")


def test_a_handle_leaves_as_a_cookie_and_not_in_the_body() -> None:
    found = operation("Login")
    answer: Any = found.parse_response(b"")
    answer.success = answer.quantum_secured = True
    answer.session_handle = HANDLE
    body, headers = AnswerFields(found, Codec()).apply(answer)
    assert "sessionHandle" not in orjson.loads(body)
    assert HANDLE.encode() not in body
    said = dict(headers)
    assert said[b"x-quantum-secured"] == b"true"
    cookie = said[b"set-cookie"].decode()
    assert cookie.startswith(f"auth_token={HANDLE};")
    assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    answer.session_handle = ""
    assert b"set-cookie" not in dict(AnswerFields(found, Codec()).apply(answer)[1])


@given(st.text(min_size=1))
def test_no_answer_breaks_out_of_a_cookie(handle: str) -> None:
    found = operation("Login")
    answer: Any = found.parse_response(b"")
    answer.session_handle = handle
    try:
        headers = dict(AnswerFields(found, Codec()).apply(answer)[1])
    except ValueError:
        return
    cookie = headers[b"set-cookie"].decode()
    assert cookie.partition(";")[0] == f"auth_token={handle}"
    assert not set(handle) & set(' ",;\\\r\n\x00')
