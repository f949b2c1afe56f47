"""What the gateway itself says in a request: whose it is, which session and connection it came by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from behaviorguard.api.v1 import policy_pb2

from servers.mesh.errors import ErrorReason, FieldProblem, MeshError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

    from servers.gateway.admission import Principal
    from servers.gateway.contract import Operation
    from servers.gateway.exchange import Exchange
    from servers.gateway.sessions import Session

# Finds a message within a request; None where the client did not send it.
Locate: TypeAlias = "Callable[[Message], Any]"

_EVENT: Final = "behaviorguard.threat.v1.BehavioralEvent"
_MAX_DEPTH: Final = 3
_MAX_USER_AGENT: Final = 512


class Stamp:
    """Fills one RPC's requests.

    * Where a person acts for themself, `user_id` and `user_ids` become theirs when unset; another person's is refused.
    * `correlation_id` becomes the request's when unset.
    * An event of a session carries that session's id, and its address and browser as this gateway saw them. What a
      browser says about those and about its own sign-ins is dropped. An operator relays for others and is believed.
    """

    def __init__(self, operation: Operation) -> None:
        self._own_only = operation.policy.scope == policy_pb2.SCOPE_SELF
        request = operation.request
        self._user = [locate for locate, found in _walk(request) if "user_id" in found.fields_by_name]
        self._users = [locate for locate, found in _walk(request) if "user_ids" in found.fields_by_name]
        self._correlated = [locate for locate, found in _walk(request) if "correlation_id" in found.fields_by_name]
        self._events = [locate for locate, found in _walk(request) if found.full_name == _EVENT]

    def apply(self, request: Message, principal: Principal, exchange: Exchange) -> None:
        """Fills a request in place.

        Raises:
            MeshError: the request names somebody else, or another session's events.
        """
        person = principal.end_user
        if self._own_only and person is not None and person.scope == policy_pb2.SCOPE_SELF:
            self._claim(request, person.user_id)
        for locate in self._correlated:
            message = locate(request)
            if message is not None and not message.correlation_id:
                message.correlation_id = exchange.correlation_id
        if principal.session is not None:
            for locate in self._events:
                event = locate(request)
                if event is not None:
                    _stamp_event(event, principal.session, exchange)

    def _claim(self, request: Message, user_id: str) -> None:
        for locate in self._user:
            message = locate(request)
            if message is None:
                continue
            if message.user_id not in ("", user_id):
                raise _not_yours("user_id")
            message.user_id = user_id
        for locate in self._users:
            message = locate(request)
            if message is None:
                continue
            if any(named != user_id for named in message.user_ids):
                raise _not_yours("user_ids")
            if not message.user_ids:
                message.user_ids.append(user_id)


def _stamp_event(event: Any, session: Session, exchange: Exchange) -> None:
    if event.session_id not in ("", session.session_id):
        raise _not_yours("session_id")
    event.session_id = session.session_id
    context = event.contextual_data
    context.ip_address = exchange.address
    context.user_agent = exchange.headers.get("user-agent", "")[:_MAX_USER_AGENT]
    context.ClearField("authentication")


def _not_yours(field: str) -> MeshError:
    problem = FieldProblem(field, "must be your own; leave it out to have it filled")
    message = "The request is about somebody else."
    return MeshError(ErrorReason.ERROR_REASON_SCOPE_NOT_ALLOWED, message, fields=[problem])


def _walk(descriptor: Descriptor, depth: int = 0) -> Iterator[tuple[Locate, Descriptor]]:
    """The request and the single messages within it, at most three levels down."""
    yield (lambda request: request), descriptor
    if depth == _MAX_DEPTH:
        return
    for field in descriptor.fields:
        child = field.message_type
        if child is None or field.is_repeated or child.full_name.startswith("google."):
            continue
        for locate, found in _walk(child, depth + 1):
            yield _within(field.name, locate), found


def _within(name: str, locate: Locate) -> Locate:
    def find(request: Message) -> Any:
        return locate(getattr(request, name)) if request.HasField(name) else None

    return find
