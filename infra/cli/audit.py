"""`behaviorguard audit`: the audit trail, read, exported and checked."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import sys
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import click
import grpc
from behaviorguard.client import ServiceError
from behaviorguard.quantum.v1 import audit_service_pb2 as pb
from behaviorguard.quantum.v1 import key_service_pb2
from rich.console import Console

from infra.cli.audit_view import (
    RESULT_COLOURS,
    print_checkpoint,
    print_event,
    print_record,
    print_report,
    report_object,
)
from infra.cli.connection import address_option, open_client, run
from servers.crypto.algorithms import canonical
from servers.crypto.errors import CryptoError
from servers.crypto.provider import provider_named
from servers.mesh.settings import DEFAULT_ORGANIZATION_ID
from servers.quantum.audit_export import (
    CheckpointKey,
    MalformedError,
    checkpoint_line,
    end_line,
    header_line,
    key_of,
    place_and_signature,
    record_line,
)
from servers.quantum.audit_messages import OPERATIONS, checkpoint_of, record_of
from servers.quantum.audit_verify import ExportVerifier, Pins

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence

    from behaviorguard.client import AsyncBehaviorGuardClient

SERVICE: Final = "quantum"
_FILE: Final = click.Path(dir_okay=False, allow_dash=True, path_type=Path)
_EXISTING: Final = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
_MOMENT: Final = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
_LONGEST_LINE: Final = 64 * 1024
_ML_DSA_65_BYTES: Final = 1952
_PAGE: Final = 500
_RECONNECTIONS: Final = 20
_CODES: Final = "Exit codes: 0 done; 1 refused; 2 wrong usage; 3 the quantum service does not run."


@click.group()
def audit() -> None:
    """Read, export and check the audit trail: one record of every operation, allowed or refused, in a hash chain."""


@audit.command(
    epilog="""\b
Examples:
  behaviorguard audit verify audit.jsonl
  behaviorguard audit verify audit.jsonl --key checkpoint-key.json --checkpoint kept-elsewhere.json
  behaviorguard audit export - | behaviorguard audit verify - --json

Needs no server. Exit codes: 0 whole; 1 broken, and the first record that is not as it was is named; 2 wrong usage."""
)
@click.argument("file", type=_EXISTING)
@click.option(
    "--key", "keys", multiple=True, type=_EXISTING, help="Public key that checkpoints must be signed with; repeatable."
)
@click.option(
    "--checkpoint", "checkpoints", multiple=True, type=_EXISTING, help="Checkpoint that was kept elsewhere; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(file: Path, keys: tuple[Path, ...], checkpoints: tuple[Path, ...], as_json: bool) -> None:
    """Check an export without a server: that nothing in it was changed, dropped, moved or put in.

    --key takes a line of "keys" of an export's first line, the key's base64, or its bytes. --checkpoint takes what
    `behaviorguard audit list --checkpoints --json` printed at the time. What cannot be known without them is said.
    """
    try:
        pins = Pins(
            keys=[_pinned_key(path) for path in keys],
            checkpoints=[each for path in checkpoints for each in _pinned_checkpoints(path)],
        )
    except (MalformedError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"a pinned key or checkpoint cannot be read: it {error}") from error
    with _reading(file) as source:
        report = ExportVerifier(_signature_holds, pins).read(_lines(source))
    if as_json:
        click.echo(json.dumps(report_object(report)))
    else:
        print_report(report)
    sys.exit(0 if report.ok else 1)


@audit.command(
    epilog=f"""\b
Examples:
  behaviorguard audit export audit.jsonl
  behaviorguard audit export rest.jsonl --from 100001
  behaviorguard audit export - | gzip > audit.jsonl.gz

{_CODES}"""
)
@click.argument("file", type=_FILE)
@click.option("--organization", type=click.UUID, default=DEFAULT_ORGANIZATION_ID, help="Default: the stack's own.")
@click.option("--from", "first", type=click.IntRange(min=1), default=1, help="First record by its place in the chain.")
@address_option
def export(file: Path, organization: object, first: int, address: str | None) -> None:
    """Write an organisation's chain with its checkpoints and their public keys to FILE ("-": standard output)."""
    run(_export(file, str(organization), first, address), service=SERVICE)


@audit.command(
    name="list",
    epilog=f"""\b
Examples:
  behaviorguard audit list --operation keygen --result failure
  behaviorguard audit list --follow
  behaviorguard audit list --checkpoints --limit 1 --json > kept-elsewhere.json
  behaviorguard audit list --events

{_CODES}""",
)
@click.option("--operation", type=click.Choice(sorted(OPERATIONS)), help="Only this operation.")
@click.option("--result", type=click.Choice(sorted(RESULT_COLOURS)), help="Only this result.")
@click.option("--key", type=click.UUID, help="Only this key.")
@click.option("--user", type=click.UUID, help="Only this person.")
@click.option("--organization", type=click.UUID, default=DEFAULT_ORGANIZATION_ID, help="Default: the stack's own.")
@click.option("--since", type=_MOMENT, help="Only at or after this time (UTC).")
@click.option("--until", type=_MOMENT, help="Only before this time (UTC).")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="So many at most.")
@click.option("--follow", is_flag=True, help="Then print what comes, until Ctrl-C; always the stack's organisation.")
@click.option("--checkpoints", "what", flag_value="checkpoints", help="Checkpoints instead of records.")
@click.option("--events", "what", flag_value="events", help="Security events instead; always the stack's organisation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@address_option
def list_records(  # noqa: PLR0913, PLR0917 -- one parameter an option, given by name
    operation: str | None,
    result: str | None,
    key: object,
    user: object,
    organization: object,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    follow: bool,
    what: str | None,
    as_json: bool,
    address: str | None,
) -> None:
    """Print audit records, newest first; or checkpoints; or security events."""
    wanted = pb.ListAuditRecordsRequest(
        operation=OPERATIONS[operation] if operation else 0,  # type: ignore[arg-type]  # the enum's own number
        result=pb.OperationResult.Value(f"OPERATION_RESULT_{result.upper()}") if result else 0,  # type: ignore[arg-type]
        key_id=str(key or ""),
        user_id=str(user or ""),
        organization_id=str(organization),
    )
    for moment, place in ((since, wanted.start_time), (until, wanted.end_time)):
        if moment is not None:
            place.FromDatetime(moment)
    if follow and what == "checkpoints":
        raise click.UsageError("--follow goes with records and security events")
    run(_list(wanted, what or "records", limit, address, follow=follow, as_json=as_json), service=SERVICE)


async def _export(file: Path, organization_id: str, first: int, address: str | None) -> int:
    records = checkpoints = last = 0
    signed_by: dict[str, None] = {}
    async with open_client(address, SERVICE) as client:
        # The keys stand before the chain, and only the chain says which they are.
        with tempfile.TemporaryFile() as body:
            request = pb.ExportAuditRequest(first_sequence=first, organization_id=organization_id)
            async for entry in client.audit.ExportAudit(request, timeout=None):
                if entry.WhichOneof("entry") == "record":
                    records, last = records + 1, entry.record.sequence
                    body.write(record_line(record_of(entry.record)))
                else:
                    checkpoints += 1
                    signed_by[entry.checkpoint.key_id] = None
                    body.write(checkpoint_line(checkpoint_of(entry.checkpoint)))
            body.write(end_line(records, checkpoints, last))
            keys = [key for key_id in signed_by for key in await _keys(client, key_id)]
            body.seek(0)
            with _writing(file) as target:
                target.write(header_line(organization_id, datetime.now(UTC), keys))
                while piece := body.read(1024 * 1024):
                    target.write(piece)
    click.echo(
        f"{records} records and {checkpoints} checkpoints; check them: behaviorguard audit verify {file}", err=True
    )
    return 0


async def _keys(client: AsyncBehaviorGuardClient, key_id: str) -> list[CheckpointKey]:
    """All versions of a key that signs checkpoints; none when it is gone."""
    try:
        answer = await client.keys.GetKey(key_service_pb2.GetKeyRequest(key_id=key_id))
    except ServiceError as error:
        click.echo(f"the key {key_id} of checkpoints cannot be read ({error}): pin it when you verify", err=True)
        return []
    algorithm = answer.key.algorithm
    return [CheckpointKey(version.public_key, algorithm, key_id, version.version) for version in answer.versions]


async def _list(
    wanted: pb.ListAuditRecordsRequest, what: str, limit: int, address: str | None, *, follow: bool, as_json: bool
) -> int:
    screen = Console(highlight=False)
    async with open_client(address, SERVICE) as client:
        if what == "checkpoints":
            for checkpoint in await _checkpoints(client, wanted.organization_id, limit):
                print_checkpoint(screen, checkpoint, as_json=as_json)
        elif what == "events":
            answer = await client.audit.ListSecurityEvents(pb.ListSecurityEventsRequest(page_size=min(limit, _PAGE)))
            for event in answer.events:
                print_event(screen, event, as_json=as_json)
            if follow:
                async for each in follow_stream(client.audit.WatchSecurityEvents, pb.WatchSecurityEventsRequest()):
                    print_event(screen, each.event, as_json=as_json)
        else:
            await _records(client, wanted, limit, screen, as_json=as_json)
            if follow:
                async for each in follow_stream(client.audit.WatchAuditRecords, pb.WatchAuditRecordsRequest()):
                    print_record(screen, each.record, as_json=as_json)
    return 0


async def follow_stream(watch: Callable[[Any], Any], request: Any) -> AsyncGenerator[Any]:
    """What comes on a stream; a dropped connection goes on where it broke off.

    Args:
        watch: opens the stream; its answers carry `resume_token`.
        request: what to follow; its `resume_token` is moved on.

    Raises:
        ServiceError: the service refuses, or was away for too long.
    """
    failures = 0
    while True:
        try:
            async for each in watch(request):
                request.resume_token, failures = each.resume_token, 0
                yield each
        except ServiceError as error:
            failures += 1
            gone = error.code is grpc.StatusCode.UNAVAILABLE or error.reason == "overloaded"
            if not gone or not request.resume_token or failures > _RECONNECTIONS:
                raise
        await asyncio.sleep(min(10.0, 0.2 * 2**failures))


async def _records(
    client: AsyncBehaviorGuardClient, wanted: pb.ListAuditRecordsRequest, limit: int, screen: Console, *, as_json: bool
) -> None:
    while limit > 0:
        wanted.page_size = min(limit, _PAGE)
        answer = await client.audit.ListAuditRecords(wanted)
        for record in answer.records:
            print_record(screen, record, as_json=as_json)
        limit -= len(answer.records)
        wanted.page_token = answer.next_page_token
        if not wanted.page_token:
            break


async def _checkpoints(
    client: AsyncBehaviorGuardClient, organization_id: str, limit: int
) -> Sequence[pb.AuditCheckpoint]:
    request = pb.ListCheckpointsRequest(page_size=min(limit, _PAGE), organization_id=organization_id)
    return (await client.audit.ListCheckpoints(request)).checkpoints


def _signature_holds(key: CheckpointKey, message: bytes, signature: bytes, context: bytes) -> bool:
    try:
        public = provider_named("cryptography").verifying_key(canonical(key.algorithm), key.public_key)
        return public.verify(message, signature, context)
    except CryptoError:
        return False


def _pinned_key(path: Path) -> CheckpointKey:
    """A key from its JSON object, its base64 or its bytes; without a name it may be any key's."""
    raw = _content(path)
    if len(raw) != _ML_DSA_65_BYTES:
        text = raw.decode().strip()
        if text.startswith("{"):
            return key_of(json.loads(text))
        try:
            raw = base64.b64decode(text, validate=True)
        except binascii.Error:
            raw = b""
    if len(raw) != _ML_DSA_65_BYTES:
        raise MalformedError("is neither a key's JSON object, nor an ML-DSA-65 key as base64 or 1,952 bytes")
    return CheckpointKey(raw)


def _pinned_checkpoints(path: Path) -> list[Mapping[str, Any]]:
    """Checkpoints, one JSON object a line."""
    found = []
    for line in _content(path).decode().splitlines():
        value = json.loads(line)
        checkpoint = value.get("checkpoint", value) if isinstance(value, dict) else {}
        place_and_signature(checkpoint)
        found.append(checkpoint)
    if not found:
        raise MalformedError("holds no checkpoint")
    return found


def _content(path: Path) -> bytes:
    with _reading(path) as source:
        return source.read(16 * 1024 * 1024)


def _lines(source: IO[bytes]) -> Iterator[bytes]:
    """Lines, in pieces where one is longer than any that an export holds."""
    while line := source.readline(_LONGEST_LINE):
        yield line


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    with path.open("rb") as source:
        yield source


@contextmanager
def _writing(path: Path) -> Iterator[IO[bytes]]:
    """Where an export goes: a file appears whole or not at all, and for its owner alone."""
    if str(path) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as target:
            yield target
            target.flush()
            os.fsync(target.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
