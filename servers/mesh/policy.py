"""May this call happen? Decided by what the RPC's contract declares, and by nothing else.

The rule, in the order in which it is applied:

1. An RPC whose contract declares no policy, or one without callers, is refused.
2. The calling workload must be one of the declared callers.
3. A workload that acts for nobody passes (the operator's command line, a service at its own work). The gateway passes
so only where the
   contract asks for no person (SCOPE_ANONYMOUS) or speaks of workloads only (SCOPE_UNSPECIFIED); elsewhere a session
   is required.
4. A call for a person needs the declared scope or a higher one (self < analyst < admin); an RPC for workloads only is
refused.
5. Where the scope is SCOPE_SELF, every string field named `user_id` or `user_ids`, at any depth of the request, must
be empty or name the
   person themself. Two exceptions: analysts and administrators may name others in reads (RATE_CLASS_READ),
   administrators also in changes
   (RATE_CLASS_WRITE, RATE_CLASS_CRITICAL). Behaviour (RATE_CLASS_STREAM) can be reported for oneself only.
   An empty field means "whatever I may see": the method narrows it with `CallContext.only_user_id`.
6. Every string field named `organization_id` must be empty or name the person's own organisation, whatever their scope.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from behaviorguard.api.v1 import policy_pb2
from google.protobuf import descriptor_pool
from google.protobuf.message import Message

from servers.mesh.context import GATEWAY, EndUser, Scope
from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

RateClass = policy_pb2.RateClass

# Calls a minute, as policy.proto documents them.
_BUDGETS: Final = {
    RateClass.RATE_CLASS_UNSPECIFIED: 600,
    RateClass.RATE_CLASS_READ: 600,
    RateClass.RATE_CLASS_STREAM: 6000,
    RateClass.RATE_CLASS_WRITE: 120,
    RateClass.RATE_CLASS_CRITICAL: 30,
    RateClass.RATE_CLASS_SERVICE: 600_000,
}
_READS: Final = (RateClass.RATE_CLASS_UNSPECIFIED, RateClass.RATE_CLASS_READ)


@dataclass(frozen=True, slots=True)
class NamedIds:
    """Where a request names people or organisations."""

    getters: tuple[Callable[[Message], Iterator[str]], ...]

    def all_are(self, message: Message, own: str) -> bool:
        """True when every id in the message is empty or `own`."""
        return all(value in ("", own) for getter in self.getters for value in getter(message))

    def first(self, message: Message) -> str:
        """The first id that the message names, or an empty string."""
        return next((value for getter in self.getters for value in getter(message) if value), "")


@dataclass(frozen=True, slots=True)
class MethodPolicy:
    """What an RPC's contract declares, ready to be applied."""

    callers: frozenset[str]
    scope: Scope.ValueType
    rate_class: RateClass.ValueType
    audited: bool
    users: NamedIds
    organizations: NamedIds

    @property
    def budget(self) -> int:
        """Calls a minute for one person."""
        return _BUDGETS[self.rate_class]


def read_policies(service: str) -> dict[str, MethodPolicy]:
    """The policies of a service's RPCs by full method name (`/package.Service/Method`); an RPC without one is left out.

    Raises:
        LookupError: the contract knows no such service.
    """
    try:
        descriptor = descriptor_pool.Default().FindServiceByName(service)
    except KeyError as error:
        raise LookupError(f"no service {service!r} in the contract: import its generated module") from error
    found = ((f"/{service}/{method.name}", _read(method)) for method in descriptor.methods)
    return {name: policy for name, policy in found if policy is not None}


def reads(method: MethodDescriptor) -> bool:
    """True when the contract says that the RPC only reads."""
    options = method.GetOptions()
    return options.HasExtension(policy_pb2.policy) and options.Extensions[policy_pb2.policy].rate_class in _READS


def knows_people(method: str) -> bool:
    """True when the contract lets people reach the RPC `/package.Service/Method`; False also for one that it does not
    know (health)."""
    service, _, name = method.removeprefix("/").partition("/")
    try:
        descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    except KeyError:
        return False
    return descriptor.GetOptions().Extensions[policy_pb2.policy].scope != Scope.SCOPE_UNSPECIFIED


def authorize(policy: MethodPolicy | None, caller: str, person: EndUser | None) -> None:
    """Apply rules 1 to 4.

    Raises:
        MeshError: CALLER_NOT_ALLOWED, SESSION_REQUIRED or SCOPE_NOT_ALLOWED.
    """
    if policy is None or caller not in policy.callers:
        raise MeshError(
            ErrorReason.ERROR_REASON_CALLER_NOT_ALLOWED, f"the contract does not let {caller!r} call this RPC"
        )
    if person is None:
        if caller == GATEWAY and policy.scope not in (Scope.SCOPE_UNSPECIFIED, Scope.SCOPE_ANONYMOUS):
            raise MeshError(ErrorReason.ERROR_REASON_SESSION_REQUIRED, "this needs somebody who is signed in")
        return
    if policy.scope == Scope.SCOPE_UNSPECIFIED or person.scope < policy.scope:
        raise MeshError(ErrorReason.ERROR_REASON_SCOPE_NOT_ALLOWED, "your role does not allow this")


def authorize_message(policy: MethodPolicy, person: EndUser | None, message: Message) -> None:
    """Apply rules 5 and 6 to one request message.

    Raises:
        MeshError: SCOPE_NOT_ALLOWED.
    """
    if person is None:
        return
    own_only = policy.scope == Scope.SCOPE_SELF and not _may_name_others(policy, person)
    if own_only and not policy.users.all_are(message, person.user_id):
        raise MeshError(ErrorReason.ERROR_REASON_SCOPE_NOT_ALLOWED, "the request names another person")
    if not policy.organizations.all_are(message, person.organization_id):
        raise MeshError(ErrorReason.ERROR_REASON_SCOPE_NOT_ALLOWED, "the request names another organisation")


def _may_name_others(policy: MethodPolicy, person: EndUser) -> bool:
    if policy.rate_class in _READS:
        return person.scope >= Scope.SCOPE_ANALYST
    return policy.rate_class != RateClass.RATE_CLASS_STREAM and person.scope >= Scope.SCOPE_ADMIN


def _read(method: MethodDescriptor) -> MethodPolicy | None:
    options = method.GetOptions()
    if not options.HasExtension(policy_pb2.policy):
        return None
    declared = options.Extensions[policy_pb2.policy]
    return MethodPolicy(
        callers=frozenset(declared.callers),
        scope=declared.scope,
        rate_class=declared.rate_class,
        audited=declared.audited,
        users=named_ids(method.input_type, "user_id", "user_ids"),
        organizations=named_ids(method.input_type, "organization_id"),
    )


def named_ids(message: Descriptor, *names: str) -> NamedIds:
    """Where a message has string fields of these names.

    Raises:
        TypeError: a message contains itself, so that there is no end to where they may be.
    """
    return NamedIds(tuple(_getters(message, names, (), False, (message.full_name,))))


def _getters(
    message: Descriptor, names: tuple[str, ...], path: tuple[str, ...], nested: bool, above: tuple[str, ...]
) -> Iterator[Callable[[Message], Iterator[str]]]:
    """Readers of all string fields called one of `names`, at any depth; `nested`: a list or map is on the way."""
    for field in message.fields:
        here = (*path, field.name)
        repeated = field.is_repeated
        if field.name in names and field.type == field.TYPE_STRING:
            yield _walker(here) if nested else _reader(here, repeated=repeated)
            continue
        deeper = _value_type(field)
        if deeper is None or not deeper.full_name.startswith("behaviorguard."):
            continue
        if deeper.full_name in above:
            raise TypeError(f"{deeper.full_name} contains itself: whom a request names in it cannot be checked")
        yield from _getters(deeper, names, here, nested or repeated, (*above, deeper.full_name))


def _value_type(field: FieldDescriptor) -> Descriptor | None:
    """The message that a field, list or map holds; None when it holds none."""
    held = field.message_type
    if held is not None and held.GetOptions().map_entry:
        return held.fields_by_name["value"].message_type
    return held


def _reader(path: tuple[str, ...], *, repeated: bool) -> Callable[[Message], Iterator[str]]:
    get = attrgetter(".".join(path))
    return (lambda message: iter(get(message))) if repeated else (lambda message: iter((get(message),)))


def _walker(path: tuple[str, ...]) -> Callable[[Message], Iterator[str]]:
    def walk(value: Any, rest: tuple[str, ...]) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Message):
            yield from walk(getattr(value, rest[0]), rest[1:])
        else:
            for item in value.values() if isinstance(value, MutableMapping) else value:
                yield from walk(item, rest)

    return lambda message: walk(message, path)
