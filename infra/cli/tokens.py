"""`behaviorguard tokens`: tokens and detached signatures."""

from __future__ import annotations

import base64
import binascii
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click
from behaviorguard.client.tokens import (
    DEFAULT_ISSUER,
    MAX_TOKEN_CHARACTERS,
    TokenRejectedError,
    TokenVerifier,
    VerificationKeys,
    read_revocations,
)
from behaviorguard.quantum.v1 import token_service_pb2 as pb

from infra.cli.connection import address_option, open_client, run
from servers.gateway.transcoding import Codec
from servers.mesh.settings import DEFAULT_ORGANIZATION_ID

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from behaviorguard.client import AsyncBehaviorGuardClient
    from google.protobuf.message import Message

SERVICE: Final = "quantum"
REFUSED: Final = 1
_MAX_MESSAGE: Final = 1024 * 1024
_FILE: Final = click.Path(dir_okay=False, allow_dash=True, path_type=Path)
_UUID: Final = click.UUID
_CODES: Final = "Exit codes: 0 done; 1 refused; 2 wrong usage; 3 the quantum service does not run."


@click.group()
def tokens() -> None:
    """Issue, check and end tokens; sign messages.

    Tokens and messages are read from files or standard input, never from the command line, where other people's
    processes can see them.
    """


@tokens.command(
    epilog=f"""\b
Examples:
  behaviorguard tokens issue --user UUID --session UUID --audience mobile > token.json
  behaviorguard tokens issue --user UUID --session UUID --audience mobile --lifetime 600 --json

{_CODES}"""
)
@click.option("--user", required=True, type=_UUID, help="The person.")
@click.option("--session", required=True, type=_UUID, help="The session; ending it ends its tokens.")
@click.option("--audience", "audiences", required=True, multiple=True, help="Service that may accept it; repeatable.")
@click.option("--organization", type=_UUID, default=DEFAULT_ORGANIZATION_ID, help="Default: the stack's own.")
@click.option("--role", "roles", multiple=True, type=click.Choice(["member", "analyst", "admin"]), help="Repeatable.")
@click.option("--method", "methods", multiple=True, help='How the person proved who they are ("pwd"); repeatable.')
@click.option("--device", default="", help="Id of the device that it is for.")
@click.option("--lifetime", type=click.IntRange(60, 86_400), default=3600, show_default=True, help="Seconds.")
@click.option("--classical", is_flag=True, help="Only the classical token, EdDSA alone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with both tokens.")
@address_option
def issue(  # noqa: PLR0913, PLR0917 -- one parameter an option, given by name
    user: object,
    session: object,
    audiences: tuple[str, ...],
    organization: object,
    roles: tuple[str, ...],
    methods: tuple[str, ...],
    device: str,
    lifetime: int,
    classical: bool,
    as_json: bool,
    address: str | None,
) -> None:
    """Issue a session's token and print it."""
    claims = pb.UserClaims(
        organization_id=str(organization),
        session_id=str(session),
        audience=audiences,
        roles=roles,
        authentication_methods=methods,
        device_id=device,
    )
    request = pb.GenerateTokenRequest(
        user_id=str(user), claims=claims, hybrid_mode=not classical, lifetime_seconds=lifetime
    )

    async def work(client: AsyncBehaviorGuardClient) -> int:
        made = await client.tokens.GenerateToken(request)
        _print(made, made.hybrid_token or made.classical_token, as_json=as_json)
        return 0

    _call(work, address)


@tokens.command(
    epilog="""\b
Examples:
  behaviorguard tokens verify token.json --audience mobile
  behaviorguard tokens issue ... | behaviorguard tokens verify - --audience mobile --json
  behaviorguard tokens keys --json > jwks.json
  behaviorguard tokens revocations --json > ended.json
  behaviorguard tokens verify token.json --audience mobile --offline jwks.json --revoked ended.json

Exit codes: 0 the token holds; 1 it does not, and the reason is printed; 2 wrong usage; 3 the quantum service does not
run (never with --offline)."""
)
@click.argument("file", type=_FILE, default="-")
@click.option("--audience", required=True, help="The service that it must be for.")
@click.option("--accept-classical", is_flag=True, help="Accept a token with EdDSA alone as well.")
@click.option("--offline", type=_FILE, metavar="JWKS", help="Check here, with the keys in this file.")
@click.option("--revoked", type=_FILE, metavar="FILE", help="With --offline: the ended sessions.")
@click.option("--issuer", default=DEFAULT_ISSUER, show_default=True, help="With --offline: who must have issued it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@address_option
def verify(
    file: Path,
    audience: str,
    accept_classical: bool,
    offline: Path | None,
    revoked: Path | None,
    issuer: str,
    as_json: bool,
    address: str | None,
) -> None:
    """Check the token in FILE (standard input: -), at the service or without one."""
    if revoked is not None and offline is None:
        raise click.UsageError("--revoked goes with --offline: the service knows the ended sessions itself")
    token = _token(file)
    if offline is not None:
        answer = _verify_offline(token, audience, issuer, offline, revoked, accept_classical=accept_classical)
        _print_verdict(answer, as_json=as_json)
        sys.exit(0 if answer.valid else REFUSED)
    request = pb.VerifyTokenRequest(token=token, audience=audience, accept_classical=accept_classical)

    async def work(client: AsyncBehaviorGuardClient) -> int:
        found = await client.tokens.VerifyToken(request)
        _print_verdict(found, as_json=as_json)
        return 0 if found.valid else REFUSED

    _call(work, address)


@tokens.command(
    epilog=f"""\b
Examples:
  behaviorguard tokens revoke --session UUID --reason "device lost"

{_CODES}"""
)
@click.option("--session", required=True, type=_UUID, help="The session.")
@click.option("--organization", type=_UUID, default=DEFAULT_ORGANIZATION_ID, help="Its organisation. Default: own.")
@click.option("--reason", default="", help="For the audit record; nothing personal.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@address_option
def revoke(session: object, organization: object, reason: str, as_json: bool, address: str | None) -> None:
    """End all tokens of a session. Ending them twice is no error."""
    request = pb.RevokeTokensRequest(session_id=str(session), organization_id=str(organization), reason=reason)

    async def work(client: AsyncBehaviorGuardClient) -> int:
        done = await client.tokens.RevokeTokens(request)
        _print(done, f"Ended at {_time(done.revoked_at.ToDatetime(UTC))}.", as_json=as_json)
        return 0

    _call(work, address)


@tokens.command(
    epilog=f"""\b
Examples:
  behaviorguard tokens revocations
  behaviorguard tokens revocations --json > ended.json      for verify --offline

{_CODES}"""
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@address_option
def revocations(as_json: bool, address: str | None) -> None:
    """List the ended sessions whose tokens could still hold, newest first."""

    async def work(client: AsyncBehaviorGuardClient) -> int:
        found = pb.ListRevocationsResponse()
        request = pb.ListRevocationsRequest(page_size=1000)
        while True:
            page = await client.tokens.ListRevocations(request)
            found.revocations.extend(page.revocations)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        rows = [
            (each.session_id, _time(each.revoked_at.ToDatetime(UTC)), _time(each.expires_at.ToDatetime(UTC)))
            for each in found.revocations
        ]
        _print_table(found, ("session", "ended", "forgotten after"), rows, as_json=as_json)
        return 0

    _call(work, address)


@tokens.command(
    epilog=f"""\b
Examples:
  behaviorguard tokens keys
  behaviorguard tokens keys --json > jwks.json              for verify --offline

{_CODES}"""
)
@click.option("--json", "as_json", is_flag=True, help="Print the JSON Web Key Set.")
@address_option
def keys(as_json: bool, address: str | None) -> None:
    """Show the public keys that tokens are checked with."""

    async def work(client: AsyncBehaviorGuardClient) -> int:
        found = await client.tokens.GetVerificationKeys(pb.GetVerificationKeysRequest())
        _print_table(found, ("kid", "alg"), [(key.kid, key.alg) for key in found.keys], as_json=as_json)
        return 0

    _call(work, address)


@tokens.command(
    epilog=f"""\b
Examples:
  behaviorguard tokens sign contract.pdf --key UUID --context documents/v1 > contract.sig
  behaviorguard tokens sign - --key UUID --json < contract.pdf

{_CODES}"""
)
@click.argument("file", type=_FILE)
@click.option("--key", required=True, type=_UUID, help="The signing key.")
@click.option("--context", default="", help="What the signature is for; the same when checking.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the signature in base64.")
@address_option
def sign(file: Path, key: object, context: str, as_json: bool, address: str | None) -> None:
    """Sign the message in FILE (standard input: -) with a key of the organisation; at most 1 MiB."""
    message = _read(file, _MAX_MESSAGE)
    request = pb.SignMessageRequest(key_id=str(key), message=message, context=context.encode())

    async def work(client: AsyncBehaviorGuardClient) -> int:
        made = (await client.tokens.SignMessage(request)).quantum_signature
        _print(made, base64.b64encode(made.signature).decode(), as_json=as_json)
        return 0

    _call(work, address)


@tokens.command(
    epilog="""\b
Examples:
  behaviorguard tokens verify-signature contract.pdf --signature contract.sig --key UUID --context documents/v1

Exit codes: 0 it holds; 1 it does not; 2 wrong usage; 3 the quantum service does not run."""
)
@click.argument("file", type=_FILE)
@click.option("--signature", required=True, type=_FILE, metavar="FILE", help="What `sign` printed, also with --json.")
@click.option("--key", required=True, type=_UUID, help="The signing key.")
@click.option("--key-version", type=click.IntRange(1, 1_000_000), help="Default: as the JSON says, else the newest.")
@click.option("--context", default="", help="What the signature is for, as when signing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@address_option
def verify_signature(
    file: Path,
    signature: Path,
    key: object,
    key_version: int | None,
    context: str,
    as_json: bool,
    address: str | None,
) -> None:
    """Check a signature over the message in FILE (standard input: -)."""
    raw, version = _signature(signature)
    request = pb.VerifySignatureRequest(
        key_id=str(key),
        key_version=key_version or version,
        message=_read(file, _MAX_MESSAGE),
        signature=raw,
        context=context.encode(),
    )

    async def work(client: AsyncBehaviorGuardClient) -> int:
        found = await client.tokens.VerifySignature(request)
        _print(found, "It holds." if found.valid else "It does not hold.", as_json=as_json)
        return 0 if found.valid else REFUSED

    _call(work, address)


def _call(work: Callable[[AsyncBehaviorGuardClient], Awaitable[int]], address: str | None) -> None:
    async def called() -> int:
        async with open_client(address, SERVICE) as client:
            return await work(client)

    run(called(), service=SERVICE)


def _verify_offline(
    token: str, audience: str, issuer: str, jwks: Path, revoked: Path | None, *, accept_classical: bool
) -> pb.VerifyTokenResponse:
    """The answer that the service would give, as far as the files tell."""
    try:
        ended = read_revocations(_read(revoked)) if revoked is not None else frozenset()
        verifier = TokenVerifier(
            VerificationKeys.from_jwks(_read(jwks)),
            audience,
            issuer=issuer,
            accept_classical=accept_classical,
            revoked_sessions=ended,
        )
    except ValueError as error:
        raise click.UsageError(f"{error}; fetch it with `behaviorguard tokens keys` or `tokens revocations`") from None
    try:
        found = verifier.verify(token)
    except TokenRejectedError as error:
        return pb.VerifyTokenResponse(valid=False, reason=f"ERROR_REASON_{error.problem.upper()}")
    claims = found.claims
    answer = pb.VerifyTokenResponse(valid=True, user_id=claims.user_id, quantum_secured=found.quantum_secured)
    answer.expires_at.FromSeconds(claims.expires_at)
    answer.claims.organization_id, answer.claims.session_id = claims.organization_id, claims.session_id
    answer.claims.device_id = claims.device_id
    answer.claims.audience.extend(claims.audience)
    answer.claims.roles.extend(claims.roles)
    answer.claims.authentication_methods.extend(claims.authentication_methods)
    return answer


def _token(file: Path) -> str:
    raw = _read(file, 2 * MAX_TOKEN_CHARACTERS).strip()
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        return "?"  # no token: the check says so


def _signature(file: Path) -> tuple[bytes, int]:
    """A signature as `sign` printed it, and the key's version where it says one (else 0)."""
    text = _read(file, 64 * 1024).strip()
    try:
        said: dict[str, Any] = json.loads(text) if text.startswith(b"{") else {"signature": text.decode()}
        return base64.b64decode(said["signature"], validate=True), int(said.get("keyVersion", 0))
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise click.UsageError("the signature's file holds neither base64 nor what `sign --json` prints") from None


def _read(file: Path, most: int = 16 * 1024 * 1024) -> bytes:
    """The content of a file or of standard input. What is named is not told again: somebody may name a secret."""
    try:
        if str(file) == "-":
            content = sys.stdin.buffer.read(most + 1)
        else:
            with file.open("rb") as opened:
                content = opened.read(most + 1)
    except OSError as error:
        _no_file(error)
    if len(content) > most:
        raise click.UsageError(f"the input is over {most} bytes")
    return content


def _no_file(error: OSError) -> NoReturn:
    text = f"the file cannot be read ({os.strerror(error.errno or 0)}): name a file, or - for standard input"
    raise click.UsageError(text) from None


def _print(message: Message, text: str, *, as_json: bool) -> None:
    click.echo(Codec().encode(message).decode() if as_json else text)


def _print_table(message: Message, head: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, as_json: bool) -> None:
    if as_json:
        click.echo(Codec().encode(message).decode())
        return
    if not rows:
        click.echo("None.")
        return
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_verdict(found: pb.VerifyTokenResponse, *, as_json: bool) -> None:
    if not found.valid:
        _print(found, f"Refused: {found.reason.removeprefix('ERROR_REASON_').lower()}", as_json=as_json)
        return
    kind = "both signatures" if found.quantum_secured else "EdDSA alone"
    ends = _time(found.expires_at.ToDatetime(UTC))
    _print(found, f"Holds ({kind}) for user {found.user_id} until {ends}.", as_json=as_json)


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
