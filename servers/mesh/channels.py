"""Channels to other services: mTLS to the right workload, deadlines, retries of reads, circuit breaker, correlation,
the person behind the call."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

import grpc
from google.protobuf import descriptor_pool
from grpc import aio

from servers.mesh.breaker import CircuitBreaker
from servers.mesh.certificates import read_proof
from servers.mesh.context import CORRELATION_KEY, SPEAKERS, current_call
from servers.mesh.identity import USER_ID_KEY, Origin, on_behalf_of
from servers.mesh.interceptors import TRACEPARENT_KEY, new_correlation_id
from servers.mesh.policy import knows_people, reads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from servers.mesh.context import CallContext
    from servers.mesh.settings import MeshSettings

# What says that the dependency itself is at fault; everything else is an answer.
_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DATA_LOSS,
    }
)
_RETRY: Final = {
    "maxAttempts": 3,
    "initialBackoff": "0.05s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# While more than about one call in ten fails, nothing is retried: retries must not finish off a service that is short
# of breath.
_RETRY_BUDGET: Final = {"maxTokens": 20, "tokenRatio": 0.1}


def open_channel(
    settings: MeshSettings,
    target: str,
    service_name: str,
    *,
    contract: Sequence[str] = (),
    breaker: CircuitBreaker | None = None,
    own_name: bool = False,
) -> aio.Channel:
    """A channel to another workload. Close it when the service stops; it connects when it is first used.

    Every call carries the correlation id and trace of the call that is being served, ends with that call's deadline,
    and raises `MeshError` CIRCUIT_OPEN while the workload mostly fails. Calls of a workload that may speak for people
    carry on the person who is being served, wherever the contract lets people reach the RPC: what that person may
    not do is refused there as well.

    Args:
        settings: who we are, and the default deadline of calls that are not streams.
        target: "host:port".
        service_name: the workload that must be there: its certificate has to name it.
        contract: full names of the contract's services that are called; their reads are retried when the workload is
            away.
        breaker: None makes one.
        own_name: True for what the service does on its own account, whoever asked (a sign-in that issues a token): the
            person is left out.

    Raises:
        OperatorError: a certificate file cannot be read.
    """
    credentials = grpc.ssl_channel_credentials(*read_proof(settings))
    options = [
        # Our authority gives the DNS name of a workload to that workload alone, beside its SPIFFE URI, which gRPC
        # cannot match for us.
        ("grpc.ssl_target_name_override", service_name),
        ("grpc.service_config", json.dumps(service_config(contract))),
        ("grpc.enable_retries", 1),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    inner = aio.secure_channel(target, credentials, options)
    speaks = settings.service_name in SPEAKERS
    conveyance = Conveyance(origin=speaks, person=speaks and not own_name)
    own_breaker = breaker or CircuitBreaker(service_name, retry_seconds=settings.breaker_seconds)
    return MeshChannel(inner, own_breaker, settings.call_seconds, conveyance)


def service_config(contract: Sequence[str]) -> dict[str, Any]:
    """gRPC's service config: reads are retried, because repeating them changes nothing; everything else is the
    caller's decision."""
    names = [
        {"service": service, "method": method.name}
        for service in contract
        for method in descriptor_pool.Default().FindServiceByName(service).methods
        if reads(method) and not method.client_streaming
    ]
    if not names:
        return {}
    return {"methodConfig": [{"name": names, "retryPolicy": _RETRY}], "retryThrottling": _RETRY_BUDGET}


@dataclass(frozen=True, slots=True)
class Conveyance:
    """What a channel carries on of the end user whose call is being served."""

    origin: bool = False
    """Address and browser, for audit records."""
    person: bool = False
    """Who they are: the call is then theirs, and is judged by what they may do."""


class MeshChannel(aio.Channel):
    """A channel whose calls carry on the call that is being served and respect the breaker.

    A wrapper rather than gRPC's interceptors, which start a task for every call and one for every message that is
    written.
    """

    def __init__(
        self,
        inner: aio.Channel,
        breaker: CircuitBreaker,
        call_seconds: float,
        conveyance: Conveyance = Conveyance(),
    ) -> None:
        self._inner = inner
        self._breaker = breaker
        self._call_seconds = call_seconds
        self._conveyance = conveyance

    def unary_unary(self, method: str, *args: Any, **options: Any) -> Any:
        """See `aio.Channel`."""
        return self._calls(method, self._inner.unary_unary(method, *args, **options), self._call_seconds)

    def unary_stream(self, method: str, *args: Any, **options: Any) -> Any:
        """See `aio.Channel`. Streams have no default deadline."""
        return self._calls(method, self._inner.unary_stream(method, *args, **options), None)

    def stream_unary(self, method: str, *args: Any, **options: Any) -> Any:
        """See `aio.Channel`."""
        return self._calls(method, self._inner.stream_unary(method, *args, **options), None)

    def stream_stream(self, method: str, *args: Any, **options: Any) -> Any:
        """See `aio.Channel`."""
        return self._calls(method, self._inner.stream_stream(method, *args, **options), None)

    def _calls(self, method: str, inner: Callable[..., Any], default_seconds: float | None) -> _Calls:
        of_people = replace(self._conveyance, person=self._conveyance.person and knows_people(method))
        return _Calls(inner, self._breaker, default_seconds, of_people)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Close the connections; calls in progress get `grace` seconds."""
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See `aio.Channel`."""
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See `aio.Channel`."""
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See `aio.Channel`."""
        await self._inner.channel_ready()


class _Calls:
    """Makes the calls of one RPC."""

    def __init__(
        self,
        inner: Callable[..., Any],
        breaker: CircuitBreaker,
        default_seconds: float | None,
        conveyance: Conveyance,
    ) -> None:
        self._inner = inner
        self._breaker = breaker
        self._default_seconds = default_seconds
        self._conveyance = conveyance

    def __call__(
        self,
        *request: Any,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str | bytes]] | None = None,
        **options: Any,
    ) -> Any:
        self._breaker.before_call()
        serving = current_call()
        remaining = None if serving is None else serving.remaining()
        seconds = [limit for limit in (timeout or self._default_seconds, remaining) if limit is not None]
        said = _carry_on(serving, metadata, self._conveyance)
        call = self._inner(*request, timeout=min(seconds, default=None), metadata=said, **options)
        call.add_done_callback(self._ended)
        return call

    def _ended(self, call: aio.Call) -> None:
        code = _code_of(call)
        if code is grpc.StatusCode.CANCELLED:
            self._breaker.abandoned()
        elif code in _FAULTS:
            self._breaker.failed()
        else:
            self._breaker.succeeded()


def _carry_on(
    serving: CallContext | None, metadata: Sequence[tuple[str, str | bytes]] | None, conveyance: Conveyance
) -> tuple[tuple[str, str | bytes], ...]:
    """The metadata with the correlation id and trace of the call that is being served, or with an id of its own, and
    with the person behind that call where we may speak for them."""
    said = tuple(metadata or ())
    if conveyance.origin and serving is not None and all(key != USER_ID_KEY for key, _ in said):
        person = serving.end_user if conveyance.person else None
        said = (*said, *on_behalf_of(person, came_from=Origin(serving.source_ip, serving.user_agent)))
    if all(key != CORRELATION_KEY for key, _ in said):
        said = (*said, (CORRELATION_KEY, serving.correlation_id if serving is not None else new_correlation_id()))
    if serving is not None and serving.traceparent:
        said = (*said, (TRACEPARENT_KEY, serving.traceparent))
    return said


def _code_of(call: aio.Call) -> grpc.StatusCode:
    """The code of a call that has ended: its coroutine then returns without waiting."""
    asking = call.code()
    try:
        asking.send(None)
    except StopIteration as answer:
        code: grpc.StatusCode = answer.value
        return code
    finally:
        asking.close()
    return grpc.StatusCode.UNKNOWN
