"""Who is at the other end: the workload that its certificate proves, and the person that it speaks for."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from servers.mesh.context import SPEAKERS, EndUser, Scope
from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TRUST_PREFIX: Final = "spiffe://behaviorguard/"
KEY_EXCHANGE: Final = b"X25519MLKEM768"
"""The only key agreement that calls may use: hybrid, safe while either part is."""

END_USER_PREFIX: Final = "x-bg-"
"""Metadata that speaks for an end user starts with this; only the workloads in `SPEAKERS` may send it."""
USER_ID_KEY: Final = "x-bg-user-id"
ORGANIZATION_ID_KEY: Final = "x-bg-organization-id"
SCOPE_KEY: Final = "x-bg-scope"
CLIENT_KEY: Final = "x-bg-client"
SOURCE_IP_KEY: Final = "x-bg-source-ip"
USER_AGENT_KEY: Final = "x-bg-user-agent"

_WORKLOAD: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SCOPES: Final = {"self": Scope.SCOPE_SELF, "analyst": Scope.SCOPE_ANALYST, "admin": Scope.SCOPE_ADMIN}
_SCOPE_NAMES: Final = {value: name for name, value in _SCOPES.items()}
_MAX_USER_AGENT: Final = 512
_NOT_METADATA: Final = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an end user's request came from, as the edge saw it: for audit records and nothing else."""

    source_ip: str = ""
    """IP address; empty when unknown."""
    user_agent: str = ""
    """The browser's or app's own name, at most 512 characters; empty when unknown."""


def workload_name(auth_context: Mapping[str, Iterable[bytes]]) -> str:
    """The caller's workload name, from gRPC's view of the connection.

    Args:
        auth_context: `context.auth_context()`: what the handshake established.

    Raises:
        MeshError: UNKNOWN_CALLER without exactly one identity of this mesh, KEY_EXCHANGE_NOT_ALLOWED without
            post-quantum key agreement.
    """
    # The URI was checked against our authority in the handshake; gRPC sets the property only when there is exactly one.
    identities = list(auth_context.get("peer_spiffe_id", ()))
    if len(identities) != 1:
        raise MeshError(ErrorReason.ERROR_REASON_UNKNOWN_CALLER, "the connection carries no workload identity")
    uri = identities[0].decode("ascii", errors="replace")
    name = uri.removeprefix(TRUST_PREFIX)
    if name == uri or not _WORKLOAD.fullmatch(name):
        raise MeshError(ErrorReason.ERROR_REASON_UNKNOWN_CALLER, "the certificate names no workload of this mesh")
    if next(iter(auth_context.get("ssl_negotiated_key_exchange_group", ())), b"") != KEY_EXCHANGE:
        raise MeshError(
            ErrorReason.ERROR_REASON_KEY_EXCHANGE_NOT_ALLOWED, "the connection's key agreement is not post-quantum"
        )
    return name


def end_user(caller: str, conveyed: Mapping[str, str]) -> EndUser | None:
    """The person that the caller speaks for.

    Args:
        caller: the calling workload.
        conveyed: the call's metadata whose keys start with `x-bg-`.

    Returns:
        None when the caller speaks for nobody, or for somebody who is not signed in.

    Raises:
        MeshError: CALLER_NOT_ALLOWED when somebody else than the gateway, identity or mobile speaks for a person;
            MALFORMED_BODY when what they say is incomplete.
    """
    if not conveyed:
        return None
    if caller not in SPEAKERS:
        raise MeshError(
            ErrorReason.ERROR_REASON_CALLER_NOT_ALLOWED,
            f"only {', '.join(sorted(SPEAKERS))} may call on behalf of an end user",
        )
    if USER_ID_KEY not in conveyed and SCOPE_KEY not in conveyed:
        return None
    user_id, organization_id = conveyed.get(USER_ID_KEY, ""), conveyed.get(ORGANIZATION_ID_KEY, "")
    scope = _SCOPES.get(conveyed.get(SCOPE_KEY, ""))
    if scope is None or not _UUID.fullmatch(user_id) or not _UUID.fullmatch(organization_id):
        raise MeshError(
            ErrorReason.ERROR_REASON_MALFORMED_BODY,
            f"send {USER_ID_KEY} and {ORGANIZATION_ID_KEY} as UUIDs, and {SCOPE_KEY} as self, analyst or admin",
        )
    return EndUser(user_id, organization_id, scope)


def origin(conveyed: Mapping[str, str]) -> Origin:
    """Where the request came from; call it after `end_user`, which refuses whoever may not say so.

    An address that is none counts as unknown: it must not stand in the way of a call, nor break an audit record.
    """
    address = conveyed.get(SOURCE_IP_KEY, "")
    try:
        known = str(ipaddress.ip_address(address)) if address else ""
    except ValueError:
        known = ""
    return Origin(known, conveyed.get(USER_AGENT_KEY, "")[:_MAX_USER_AGENT])


def on_behalf_of(
    person: EndUser | None, *, client: str = "", came_from: Origin | None = None
) -> tuple[tuple[str, str], ...]:
    """The metadata with which a workload says for whom it calls.

    Args:
        person: who is signed in; None for somebody who is not.
        client: opaque digest of the client's address: calls of people who are not signed in are counted against it.
        came_from: where the request came from; None: unknown.
    """
    seen = came_from or Origin()
    address = seen.source_ip.partition("%")[0]  # without the zone of a link-local address, which only this host knows
    agent = _NOT_METADATA.sub("?", seen.user_agent)[:_MAX_USER_AGENT].strip()  # gRPC metadata is printable ASCII
    parts = ((CLIENT_KEY, client[:64]), (SOURCE_IP_KEY, address), (USER_AGENT_KEY, agent))
    said = tuple((key, value) for key, value in parts if value)
    if person is None:
        return said
    return (
        (USER_ID_KEY, person.user_id),
        (ORGANIZATION_ID_KEY, person.organization_id),
        (SCOPE_KEY, _SCOPE_NAMES[person.scope]),
        *said,
    )
