"""`behaviorguard hsm`: ceremonies, state and backups of the HSM."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click
from behaviorguard.hsm.v1 import hsm_service_pb2 as pb

from infra import pki
from infra.cli.connection import NOT_RUNNING, fail
from infra.hsm import OPERATOR, PIECE, HsmOperator, hsm_operator, write_secret
from infra.settings import load_settings
from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

_AWAY: Final = (ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, ErrorReason.ERROR_REASON_DEADLINE)
_STATES: Final = {
    pb.SEAL_STATE_UNINITIALIZED: "uninitialized",
    pb.SEAL_STATE_SEALED: "sealed",
    pb.SEAL_STATE_UNSEALED: "unsealed",
}
_BACKENDS: Final = {pb.BACKEND_SOFTWARE: "software", pb.BACKEND_PKCS11: "pkcs11"}
_EXIT_CODES: Final = "Exit codes: 0 done; 1 refused, the message says what to do; 2 wrong usage; 3 not running"
T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """Which HSM, and how to print."""

    address: str | None
    as_json: bool

    def run(self, work: Callable[[HsmOperator], Awaitable[T]]) -> T:
        """Do something with the HSM; what it refuses ends the command in words."""
        try:
            return asyncio.run(self._with_operator(work))
        except MeshError as error:
            _report(error)
        except (FileExistsError, FileNotFoundError, IsADirectoryError) as error:
            fail(1, f"{error.filename}: {error.strerror}", "name another file")

    def show(self, said: dict[str, Any], lines: Sequence[str]) -> None:
        """Print the answer: as JSON, or as lines for people."""
        click.echo(json.dumps(said, indent=2) if self.as_json else "\n".join(lines))

    async def _with_operator(self, work: Callable[[HsmOperator], Awaitable[T]]) -> T:
        settings = load_settings()
        certificate = os.environ.get("BEHAVIORGUARD_TLS_CERT")
        if certificate:
            identity = pki.Identity(
                Path(os.environ["BEHAVIORGUARD_TLS_CA"]), Path(certificate), Path(os.environ["BEHAVIORGUARD_TLS_KEY"])
            )
        else:
            identity = pki.identity(settings.pki, OPERATOR)
        if not identity.cert.exists():
            fail(NOT_RUNNING, "there is no certificate to call with", "behaviorguard up, on this machine first")
        async with hsm_operator(self.address or f"localhost:{settings.hsm_port}", identity) as operator:
            return await work(operator)


@click.group(
    epilog="""\b
Examples:
  behaviorguard hsm status
  behaviorguard hsm init --shares 5 --threshold 3
  behaviorguard hsm unseal
  behaviorguard hsm backup hsm-2026-11-23.backup
  behaviorguard hsm restore hsm-2026-11-23.backup
  behaviorguard hsm keys --validate --json"""
)
@click.option(
    "--address", metavar="HOST:PORT", help="The HSM; its certificate must be known here. Default: this stack's."
)
@click.pass_context
def hsm(context: click.Context, address: str | None) -> None:
    """Ceremonies, state and backups of the HSM. Shares are read from a prompt or a file, never from arguments."""
    context.obj = address


def _command(name: str, examples: str, codes: str = _EXIT_CODES) -> Callable[[Callable[..., None]], click.Command]:
    """A command of the group, with `--json`; its function takes a `Target` first."""

    def decorate(function: Callable[..., None]) -> click.Command:
        def wrapped(as_json: bool, **options: Any) -> None:
            function(Target(click.get_current_context().obj, as_json), **options)

        wrapped.__doc__ = function.__doc__
        wrapped.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]  # click's own
        made = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(wrapped)
        return hsm.command(name, epilog=f"\b\nExamples:\n{examples}\n\n{codes}.")(made)

    return decorate


_share_files = click.option(
    "--share-file",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with one share a line; can be repeated. Without, shares are asked for, unseen.",
)


@_command(
    "init",
    "  behaviorguard hsm init --shares 5 --threshold 3\n  behaviorguard hsm init --shares 3 --threshold 2 --out usb",
)
@click.option("--shares", type=click.IntRange(1, 16), default=5, show_default=True, help="Shares to make.")
@click.option("--threshold", type=click.IntRange(1, 16), default=3, show_default=True, help="Shares needed to unseal.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write each share to a file of its own in this folder instead of showing it.",
)
def init(target: Target, shares: int, threshold: int, out: Path | None) -> None:
    """Make the master key, and show its shares this once. The HSM stays sealed until they are given."""
    if threshold > shares:
        raise click.UsageError("--threshold must not be more than --shares")
    if out is not None and any(out.glob("share-*.txt")):
        fail(1, f"{out} holds shares already", "name an empty folder")
    made = target.run(lambda operator: operator.initialize(shares, threshold))
    said: dict[str, Any] = {
        "fingerprint": made.master_key_fingerprint,
        "shares": shares,
        "threshold": threshold,
    }
    lines = [f"The master key is made; its fingerprint is {made.master_key_fingerprint}.", ""]
    if out is None:
        said["words"] = list(made.shares)
        lines += [f"Share {number} of {shares}:\n  {words}\n" for number, words in enumerate(made.shares, 1)]
        lines.append("They are shown this once. Write each down, and give each to another person.")
    else:
        files = [out / f"share-{number}.txt" for number in range(1, shares + 1)]
        for file, words in zip(files, made.shares, strict=True):
            write_secret(file, words)
        said["files"] = [str(file) for file in files]
        lines.append(f"Its shares lie in {out}, one a file. Give each to another person, and delete the files.")
    lines += [f"Any {threshold} of them open the HSM; {threshold - 1} tell nothing.", "Next: behaviorguard hsm unseal"]
    target.show(said, lines)


@_command("unseal", "  behaviorguard hsm unseal\n  behaviorguard hsm unseal --share-file a.txt --share-file b.txt")
@_share_files
def unseal(target: Target, files: tuple[Path, ...]) -> None:
    """Give shares until the HSM opens; each person may give theirs in a session of their own."""

    async def work(operator: HsmOperator) -> pb.UnsealResponse:
        state = await operator.status()
        if state.state == pb.SEAL_STATE_UNINITIALIZED:
            fail(1, "the HSM has no master key yet", "behaviorguard hsm init, or behaviorguard hsm restore FILE")
        progress = pb.UnsealResponse(
            state=state.state, shares_given=state.shares_given, shares_needed=state.shares_needed
        )
        return progress if state.state == pb.SEAL_STATE_UNSEALED else await _give(operator, files, progress)

    progress = target.run(work)
    opened = progress.state == pb.SEAL_STATE_UNSEALED
    said = {
        "state": _STATES[progress.state],
        "shares_given": progress.shares_given,
        "shares_needed": progress.shares_needed,
    }
    line = (
        "The HSM is unsealed."
        if opened
        else f"{progress.shares_given} of {progress.shares_needed} shares are given; the others come next."
    )
    target.show(said, [line])


@_command("seal", "  behaviorguard hsm seal")
def seal(target: Target) -> None:
    """Forget the master key until the shares are given again."""
    target.run(lambda operator: operator.seal())
    target.show({"state": "sealed"}, ["The HSM is sealed."])


@_command(
    "status",
    "  behaviorguard hsm status\n  behaviorguard hsm status --json",
    "Exit codes: 0 unsealed and whole; 2 wrong usage; 3 not running, sealed, a module away or entropy failing",
)
def status(target: Target) -> None:
    """Say what the HSM is and how it is."""
    answer = target.run(lambda operator: operator.status())
    sources = [
        {
            "name": source.name,
            "healthy": source.health == pb.ENTROPY_HEALTH_HEALTHY,
            "samples_tested": source.samples_tested,
            "min_entropy_per_sample": source.min_entropy_per_sample,
        }
        for source in answer.entropy_sources
    ]
    modules = [
        {"name": module.name, "available": module.available, "repaired_replicas": module.repaired_replicas}
        for module in answer.modules
    ]
    said: dict[str, Any] = {
        "state": _STATES[answer.state],
        "backend": _BACKENDS[answer.backend],
        "backend_notice": answer.backend_notice,
        "shares_given": answer.shares_given,
        "shares_needed": answer.shares_needed,
        "keys": answer.key_count,
        "entropy_sources": sources,
        "modules": modules,
        "total_operations": answer.total_operations,
        "error_rate": answer.error_rate,
        "active_connections": answer.active_connections,
    }
    target.show(said, _state_lines(said))
    if (
        said["state"] != "unsealed"
        or not all(s["healthy"] for s in sources)
        or not all(m["available"] for m in modules)
    ):
        sys.exit(NOT_RUNNING)


@_command("backup", "  behaviorguard hsm backup hsm-2026-11-23.backup")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def backup(target: Target, file: Path) -> None:
    """Write all keys, encrypted, into FILE: of no use without the shares, and of no use without a copy elsewhere."""

    async def work(operator: HsmOperator) -> int:
        size = 0
        new = file.with_name(f".{file.name}.new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            async for piece in operator.backup():
                size += out.write(piece)
            out.flush()
            os.fsync(out.fileno())
        os.link(new, file)  # fails where there is one
        new.unlink()
        return size

    if file.exists():
        fail(1, f"{file} exists", "name another file")
    size = target.run(work)
    target.show(
        {"file": str(file), "bytes": size}, [f"{size} bytes in {file}. Keep a copy elsewhere, away from the shares."]
    )


@_command(
    "restore",
    "  behaviorguard hsm restore hsm-2026-11-23.backup\n  behaviorguard hsm restore FILE --share-file all.txt",
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_share_files
def restore(target: Target, file: Path, files: tuple[Path, ...]) -> None:
    """Put a backup into a new, empty HSM with the shares of the old one; every key is checked on the way."""

    async def work(operator: HsmOperator) -> pb.RestoreBackupResponse:
        state = await operator.status()
        if state.state != pb.SEAL_STATE_UNINITIALIZED:
            fail(1, "the HSM is not new", "start it with three empty folders, then restore")
        progress = pb.UnsealResponse(
            state=state.state, shares_given=state.shares_given, shares_needed=state.shares_needed
        )
        if not progress.shares_needed or progress.shares_given < progress.shares_needed:
            progress = await _give(operator, files, progress)
        if progress.shares_given < progress.shares_needed:
            fail(1, f"{progress.shares_given} of {progress.shares_needed} shares are given", "give the others too")
        return await operator.restore(_pieces(file))

    answer = target.run(work)
    rejected = list(answer.rejected_key_handles)
    lines = [f"{answer.keys_restored} key versions are restored, each opened and compared with its public half."]
    lines += [f"Rejected, and not kept: {handle}" for handle in rejected]
    target.show({"keys_restored": answer.keys_restored, "rejected_key_handles": rejected}, lines)
    if rejected:
        sys.exit(1)


@_command("keys", "  behaviorguard hsm keys\n  behaviorguard hsm keys --validate --json")
@click.option("--validate", is_flag=True, help="Open each key, and compare its public half.")
def keys(target: Target, validate: bool) -> None:
    """List the keys inside, with their whole replicas."""

    async def work(operator: HsmOperator) -> list[pb.StoredKey]:
        return [key async for key in operator.keys(validate=validate)]

    found = target.run(work)
    said = [
        {
            "key_id": key.key_id,
            "version": key.version,
            "key_handle": key.key_handle,
            "algorithm": key.algorithm,
            "organization_id": key.organization_id,
            "replicas": key.replicas,
            "valid": key.valid if key.HasField("valid") else None,
        }
        for key in found
    ]
    bad = [key for key in found if key.replicas == 0 or (validate and not key.valid)]
    lines = [
        f"{key.key_handle}  {key.algorithm:<11}  organisation {key.organization_id}  replicas {key.replicas}"
        + (f"  {'valid' if key.valid else 'NOT VALID'}" if validate else "")
        for key in found
    ]
    lines.append(
        f"{len(found)} key versions, {len(bad)} of them lost: restore these from a backup."
        if bad
        else f"{len(found)} key versions."
    )
    target.show({"keys": said, "count": len(found), "lost": len(bad)}, lines)
    if bad:
        sys.exit(1)


async def _give(operator: HsmOperator, files: Sequence[Path], progress: pb.UnsealResponse) -> pb.UnsealResponse:
    """Give shares from files, or from the prompt, until there are enough."""
    for words in _shares(files):
        progress = await operator.unseal(words)
        if progress.state == pb.SEAL_STATE_UNSEALED or progress.shares_given == progress.shares_needed:
            break
        if not files:
            click.echo(f"{progress.shares_given} of {progress.shares_needed} shares are given.", err=True)
    return progress


def _shares(files: Sequence[Path]) -> Iterator[str]:
    if files:
        for file in files:
            yield from (line for line in file.read_text().splitlines() if line.strip())
    elif not sys.stdin.isatty():
        yield from (line for line in sys.stdin.read().splitlines() if line.strip())
    else:
        while words := click.prompt("Share (empty to stop)", hide_input=True, default="", show_default=False):
            yield words


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as content:
        while piece := content.read(PIECE):
            yield piece


def _state_lines(said: dict[str, Any]) -> list[str]:
    lines = [f"state      {said['state']}", f"back end   {said['backend_notice']}", f"keys       {said['keys']}"]
    if said["state"] != "unsealed":
        lines.append(f"shares     {said['shares_given']} of {said['shares_needed']} given")
    lines += [
        f"entropy    {source['name']}: {'healthy' if source['healthy'] else 'FAILED'}, "
        f"{source['samples_tested']} samples tested, {source['min_entropy_per_sample']:g} bits a sample"
        for source in said["entropy_sources"]
    ]
    lines += [
        f"module     {module['name']}: {'available' if module['available'] else 'AWAY'}, "
        f"{module['repaired_replicas']} replicas repaired"
        for module in said["modules"]
    ]
    lines.append(f"operations {said['total_operations']}, {said['error_rate']:.1%} failed in the last minute")
    return lines


def _report(error: MeshError) -> NoReturn:
    if error.reason in _AWAY:
        fail(NOT_RUNNING, f"the HSM does not answer: {error.message}", "behaviorguard status; or behaviorguard up")
    fail(1, f"{error.message} ({error.reason_name.removeprefix('ERROR_REASON_')})", error.suggested_action)
