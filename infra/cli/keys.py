"""`behaviorguard keys`: post-quantum keys of the default organisation."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from behaviorguard.quantum.v1 import key_pb2
from behaviorguard.quantum.v1 import key_service_pb2 as pb
from rich.console import Console
from rich.markup import escape

from infra.cli.connection import address_option, fail, open_client, run
from servers.gateway.transcoding import Codec
from servers.mesh.settings import DEFAULT_ORGANIZATION_ID

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from behaviorguard.client import AsyncBehaviorGuardClient
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

SERVICE: Final = "quantum"
ALGORITHMS: Final = ("ML-KEM-768", "ML-KEM-1024", "X-Wing", "ML-DSA-65", "ML-DSA-87", "Kyber768", "Dilithium3")
TYPES: Final = ("master", "service", "device")
STATUSES: Final = ("active", "rotated", "revoked", "expired")
PURPOSES: Final = ("encryption", "signing", "both")
LEVELS: Final = ("NIST-L1", "NIST-L3", "NIST-L5")
_COLOURS: Final = {"active": "green", "rotated": "yellow", "revoked": "red", "expired": "yellow"}
_CODES: Final = "Exit codes: 0 done; 1 refused, the message says what to do; 2 wrong usage; 3 the service does not run."
_REWRAP_AT_ONCE: Final = 32
_ENVELOPE_BYTES: Final = 81_920

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, named as in REST.")
key_argument = click.argument("key_id", metavar="KEY_ID", type=click.UUID)
rotation_option = click.option(
    "--rotation-days", type=click.IntRange(0, 3650), metavar="DAYS", help="Rotate so often; 0: by hand only."
)
limit_option = click.option(
    "--use-limit", type=click.IntRange(0, 2**32 - 1), metavar="USES", help="Uses of each version; 0: no limit."
)
metadata_option = click.option(
    "--note", "notes", multiple=True, metavar="NAME=VALUE", help="Note of the owner; can be repeated."
)


@click.group(
    epilog=f"""\b
Examples:
  behaviorguard keys generate master
  behaviorguard keys generate service --service-id identity --rotation-days 90
  behaviorguard keys list --type service --status active
  behaviorguard keys rotate KEY_ID
  behaviorguard keys rewrap KEY_ID templates/*.bgev
  behaviorguard keys update KEY_ID --min-decrypt-version 2
  behaviorguard keys revoke KEY_ID --reason "device lost"

{_CODES}"""
)
def keys() -> None:
    """Make, read, rotate and end post-quantum keys. Private halves never leave the HSM."""


@keys.command(
    epilog=f"""\b
Examples:
  behaviorguard keys generate master --lifetime-days 3650
  behaviorguard keys generate service --service-id identity --algorithm X-Wing
  behaviorguard keys generate service --service-id billing --purpose both --json
  behaviorguard keys generate device --device-id phone-1 --parent KEY_ID

{_CODES}"""
)
@click.argument("key_type", type=click.Choice(TYPES))
@click.option("--algorithm", type=click.Choice(ALGORITHMS), help="Default: what the purpose wants, at NIST-L3.")
@click.option("--purpose", type=click.Choice(PURPOSES), help="Default: what the algorithm does; a master key signs.")
@click.option("--service-id", default="", metavar="NAME", help="Service that it belongs to (service keys).")
@click.option("--device-id", default="", metavar="NAME", help="Device that it belongs to (device keys).")
@click.option("--parent", type=click.UUID, metavar="KEY_ID", help="Key above it. Default: the newest master key.")
@click.option("--level", type=click.Choice(LEVELS), default=None, help="Least security level.")
@click.option("--lifetime-days", type=click.IntRange(1, 3650), default=365, show_default=True, metavar="DAYS")
@rotation_option
@limit_option
@metadata_option
@as_json_option
@address_option
def generate(**options: Any) -> None:
    """Make a key: master keys stand above service keys, these above device keys."""
    key_type: str = options["key_type"]
    algorithm, purpose = _kind(key_type, options["algorithm"], options["purpose"])
    request = pb.GenerateKeyRequest(
        key_type=key_pb2.KeyType.Value(f"KEY_TYPE_{key_type.upper()}"),
        algorithm=algorithm,
        purpose=key_pb2.KeyPurpose.Value(f"KEY_PURPOSE_{purpose.upper()}"),
        organization_id=DEFAULT_ORGANIZATION_ID,
        service_id=options["service_id"],
        device_id=options["device_id"],
        security_level=options["level"] or "",
        parent_key_id=str(options["parent"] or ""),
        lifetime_days=options["lifetime_days"],
        rotation_days=options["rotation_days"] or 0,
        use_limit=options["use_limit"] or 0,
        metadata=_notes(options["notes"]),
    )
    _call(options, lambda client: client.keys.GenerateKey(request), _made_lines)


@keys.command(epilog=_CODES)
@key_argument
@as_json_option
@address_option
def get(key_id: object, **options: Any) -> None:
    """Read a key's public half and its versions."""
    request = pb.GetKeyRequest(key_id=str(key_id))
    _call(options, lambda client: client.keys.GetKey(request), _key_lines)


@keys.command(
    "list",
    epilog=f"""\b
Examples:
  behaviorguard keys list
  behaviorguard keys list --status revoked --json

{_CODES}""",
)
@click.option("--type", "key_type", type=click.Choice(TYPES), help="Only this place in the hierarchy.")
@click.option("--status", type=click.Choice(STATUSES), help="Only this state.")
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True, help="Keys at most.")
@as_json_option
@address_option
def list_keys(key_type: str | None, status: str | None, count: int, **options: Any) -> None:
    """List keys, newest first."""
    request = pb.ListKeysRequest()
    if key_type:
        request.key_type = key_pb2.KeyType.Value(f"KEY_TYPE_{key_type.upper()}")
    if status:
        request.status = key_pb2.KeyStatus.Value(f"KEY_STATUS_{status.upper()}")

    async def listed(client: AsyncBehaviorGuardClient) -> pb.ListKeysResponse:
        found = pb.ListKeysResponse()
        while len(found.keys) < count:
            request.page_size = min(500, count - len(found.keys))
            page = await client.keys.ListKeys(request)
            found.keys.extend(page.keys)
            found.next_page_token = request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        return found

    _call(options, listed, _listed_lines)


@keys.command(epilog=_CODES)
@key_argument
@click.option(
    "--min-decrypt-version", type=click.IntRange(0, 1_000_000), default=0, metavar="N", help="Refuse older versions."
)
@as_json_option
@address_option
def rotate(key_id: object, min_decrypt_version: int, **options: Any) -> None:
    """Give a key a new version; its lifetime begins again. Older versions still decrypt."""
    request = pb.RotateKeyRequest(key_id=str(key_id), min_decrypt_version=min_decrypt_version)
    _call(options, lambda client: client.keys.RotateKey(request), _key_lines)


@keys.command(
    epilog=f"""\b
Examples:
  behaviorguard keys update KEY_ID --min-decrypt-version 3
  behaviorguard keys update KEY_ID --expires-in-days 30 --rotation-days 0

{_CODES}"""
)
@key_argument
@click.option("--min-decrypt-version", type=click.IntRange(1, 1_000_000), metavar="N", help="Refuse older versions.")
@click.option("--expires-in-days", type=click.FloatRange(0, 3650, min_open=True), metavar="DAYS", help="New end.")
@rotation_option
@limit_option
@metadata_option
@as_json_option
@address_option
def update(key_id: object, **options: Any) -> None:
    """Change a key's limits; what is not named stays."""
    request = pb.UpdateKeyRequest(key_id=str(key_id), metadata=_notes(options["notes"]))
    for name in ("min_decrypt_version", "rotation_days", "use_limit"):
        if options[name] is not None:
            setattr(request, name, options[name])
    if options["expires_in_days"] is not None:
        request.expires_at.FromDatetime(datetime.now(UTC) + timedelta(days=options["expires_in_days"]))
    if request == pb.UpdateKeyRequest(key_id=str(key_id)):
        raise click.UsageError("name something to change")
    _call(options, lambda client: client.keys.UpdateKey(request), _key_lines)


@keys.command(epilog=_CODES)
@key_argument
@click.option("--reason", required=True, metavar="TEXT", help="Why, for the audit record; no personal data.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json_option
@address_option
def revoke(key_id: object, reason: str, yes: bool, **options: Any) -> None:
    """End a key and all below it, for ever: what was encrypted under them is lost."""
    if not yes:
        click.confirm(f"End key {key_id} and all keys below it? What was encrypted under them is lost", abort=True)
    request = pb.RevokeKeyRequest(key_id=str(key_id), reason=reason)
    _call(options, lambda client: client.keys.RevokeKey(request), _revoked_lines)


@keys.command(
    epilog=f"""\b
Examples:
  behaviorguard keys rewrap KEY_ID templates/*.bgev
  behaviorguard keys rewrap KEY_ID old.bgev --to new/

Files are replaced one by one, each in one step. {_CODES}"""
)
@key_argument
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE..."
)
@click.option(
    "--to", "folder", type=click.Path(file_okay=False, path_type=Path), help="Write there, under the same names."
)
@as_json_option
@address_option
def rewrap(key_id: object, files: tuple[Path, ...], folder: Path | None, **options: Any) -> None:
    """Move envelopes, one a file, to a key's newest version. Templates stay inside the service."""
    names = {file.name for file in files}
    if folder is not None and len(names) < len(files):
        raise click.UsageError("two files have the same name: rewrap them into folders of their own")
    refused: list[Path] = []

    async def rewrapped(client: AsyncBehaviorGuardClient) -> pb.RewrapEnvelopesResponse:
        whole = pb.RewrapEnvelopesResponse()
        for start in range(0, len(files), _REWRAP_AT_ONCE):
            part = files[start : start + _REWRAP_AT_ONCE]
            request = pb.RewrapEnvelopesRequest(key_id=str(key_id), envelopes=[_envelope(file) for file in part])
            answer = await client.keys.RewrapEnvelopes(request)
            for file, result in zip(part, answer.results, strict=True):
                if result.reason:
                    refused.append(file)
                else:
                    _replace(file if folder is None else folder / file.name, result.envelope)
            whole.results.extend(answer.results)
        return whole

    def lines(answer: pb.RewrapEnvelopesResponse) -> list[str]:
        done = [f"{file}: {result.reason or 'moved'}" for file, result in zip(files, answer.results, strict=True)]
        return [escape(line) for line in done]

    _call(options, rewrapped, lines, failed=lambda: bool(refused))


def _kind(key_type: str, algorithm: str | None, purpose: str | None) -> tuple[str, str]:
    """Algorithm and purpose, each from the other where only one is named."""
    if algorithm is None:
        signs = purpose == "signing" or (purpose is None and key_type == "master")
        return ("ML-DSA-65" if signs else "ML-KEM-768"), purpose or ("signing" if signs else "encryption")
    return algorithm, purpose or ("signing" if algorithm.startswith(("ML-DSA", "Dilithium")) else "encryption")


def _notes(notes: Sequence[str]) -> dict[str, str]:
    pairs = [note.partition("=") for note in notes]
    if any(not name or not sign for name, sign, _ in pairs):
        raise click.UsageError("write notes as NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _envelope(file: Path) -> bytes:
    content = file.read_bytes()
    if not 0 < len(content) <= _ENVELOPE_BYTES:
        fail(1, f"{file} is no envelope: {len(content)} bytes", "name files with one envelope each")
    return content


def _replace(file: Path, content: bytes) -> None:
    """Write a file in one step: at no moment is there half an envelope."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as temporary:
            temporary.write(content)
            temporary.flush()
            os.fsync(temporary.fileno())
        Path(name).replace(file)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def _call(
    options: dict[str, Any],
    work: Callable[[AsyncBehaviorGuardClient], Awaitable[Any]],
    lines: Callable[[Any], list[str]],
    *,
    failed: Callable[[], bool] = lambda: False,
) -> None:
    """Call the service, print the answer and end the command."""

    async def called() -> int:
        async with open_client(options["address"], SERVICE) as client:
            answer: Message = await work(client)
        if options["as_json"]:
            click.echo(Codec().encode(answer))
        else:
            screen = Console(highlight=False)
            for line in lines(answer):
                screen.print(line, soft_wrap=True)
        return 1 if failed() else 0

    run(called(), service=SERVICE)


def _made_lines(answer: pb.GenerateKeyResponse) -> list[str]:
    found = [
        f"key        {answer.key_id}",
        f"algorithm  {answer.algorithm}, {answer.security_level}",
        f"ends       {_time(answer.expires_at)}",
        f"handle     {escape(answer.key_handle)}",
    ]
    if answer.companion_key_id:
        found.append(f"companion  {answer.companion_key_id}")
    return found


def _key_lines(answer: pb.GetKeyResponse | pb.RotateKeyResponse | pb.UpdateKeyResponse) -> list[str]:
    key = answer.key
    status = _label(key_pb2.KeyStatus, key.status)
    found = [
        f"key        {key.key_id}  [{_COLOURS.get(status, 'white')}]{status}[/]",
        f"is         {_label(key_pb2.KeyType, key.key_type)} key for {_label(key_pb2.KeyPurpose, key.purpose)}"
        f"{escape(_owner(key))}",
        f"algorithm  {key.algorithm}, {key.security_level}",
        f"version    {key.version}; decrypts from {key.min_decrypt_version} on",
        f"above      {key.parent_key_id or 'nothing: a master key'}",
        f"made       {_time(key.created_at)}",
        f"ends       {_time(key.expires_at)}",
    ]
    if key.HasField("next_rotation_at"):
        found.append(f"rotates    {_time(key.next_rotation_at)}, every {key.rotation_days} days")
    if key.HasField("uses_left"):
        found.append(f"uses left  {key.uses_left}")
    found += [f"note       {escape(name)} = {escape(value)}" for name, value in sorted(key.metadata.items())]
    if isinstance(answer, pb.GetKeyResponse):
        ends = {True: "", False: ", not opened any more"}
        found += [f"  version {v.version}, {_time(v.created_at)}{ends[v.decrypts]}" for v in answer.versions]
    return found


def _revoked_lines(answer: pb.RevokeKeyResponse) -> list[str]:
    return [f"ended  {answer.key.key_id}", *(f"ended  {key_id}, below it" for key_id in answer.revoked_key_ids)]


def _listed_lines(answer: pb.ListKeysResponse) -> list[str]:
    """A line a key, its id whole at the beginning: to be copied, also from a narrow terminal."""
    found = []
    for key in answer.keys:
        status, kind = _label(key_pb2.KeyStatus, key.status), _label(key_pb2.KeyType, key.key_type)
        found.append(
            f"{key.key_id}  [{_COLOURS.get(status, 'white')}]{status:8}[/] {key.algorithm:11} v{key.version:<3} "
            f"ends {key.expires_at.ToDatetime(UTC).date()}  {kind}{escape(_owner(key))}"
        )
    return [*found, "There are more: --count"] if answer.next_page_token else found


def _owner(key: key_pb2.Key) -> str:
    return f" of {key.service_id or key.device_id}" if key.service_id or key.device_id else ""


def _label(kind: Any, value: int) -> str:
    """The last word of an enum's name in lower case: `KEY_TYPE_MASTER` is "master"."""
    return str(kind.Name(value)).rpartition("_")[2].lower()


def _time(moment: Timestamp) -> str:
    return moment.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M UTC")
