"""Who is at the other end: the workload that its certificate proves, and the person that the gateway speaks for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from servers.mesh.context import GATEWAY, EndUser, Scope
from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TRUST_PREFIX: Final = "spiffe://behaviorguard/"
KEY_EXCHANGE: Final = b"X25519MLKEM768"
"""The only key agreement that calls may use: hybrid, safe while either part is."""

END_USER_PREFIX: Final = "x-bg-"
"""Metadata that speaks for an end user starts with this; only the gateway may send it."""
USER_ID_KEY: Final = "x-bg-user-id"
ORGANIZATION_ID_KEY: Final = "x-bg-organization-id"
SCOPE_KEY: Final = "x-bg-scope"
CLIENT_KEY: Final = "x-bg-client"

_WORKLOAD: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SCOPES: Final = {"self": Scope.SCOPE_SELF, "analyst": Scope.SCOPE_ANALYST, "admin": Scope.SCOPE_ADMIN}
_SCOPE_NAMES: Final = {value: name for name, value in _SCOPES.items()}


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
    """The person that the gateway speaks for.

    Args:
        caller: the calling workload.
        conveyed: the call's metadata whose keys start with `x-bg-`.

    Returns:
        None when the caller speaks for nobody, or for somebody who is not signed in.

    Raises:
        MeshError: CALLER_NOT_ALLOWED when somebody else than the gateway speaks for a person; MALFORMED_BODY when
            what the gateway says is incomplete.
    """
    if not conveyed:
        return None
    if caller != GATEWAY:
        raise MeshError(
            ErrorReason.ERROR_REASON_CALLER_NOT_ALLOWED, "only the gateway may call on behalf of an end user"
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


def on_behalf_of(person: EndUser | None, *, client: str = "") -> tuple[tuple[str, str], ...]:
    """The metadata with which the gateway says for whom it calls.

    Args:
        person: who is signed in; None for somebody who is not.
        client: opaque digest of the client's address: calls of people who are not signed in are counted against it.
    """
    said = () if not client else ((CLIENT_KEY, client[:64]),)
    if person is None:
        return said
    return (
        (USER_ID_KEY, person.user_id),
        (ORGANIZATION_ID_KEY, person.organization_id),
        (SCOPE_KEY, _SCOPE_NAMES[person.scope]),
        *said,
    )
