"""Find vector files, tell their formats apart and run them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from infra.vectors import acvp, hpke, wycheproof
from infra.vectors.outcome import Outcome, VectorFileError, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from servers.crypto.provider import CryptoProvider

MAX_FILE_BYTES: Final = 256 * 1024 * 1024
UNKNOWN: Final = "not a vector file of Wycheproof, ACVP or HPKE"


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of a file's vectors."""

    path: str
    """Within the folder that was asked for."""
    counts: Counter[Verdict] = field(default_factory=Counter)
    reasons: Counter[tuple[Verdict, str]] = field(default_factory=Counter)
    """Of skipped vectors and of those passed in part, how many for which reason."""
    failures: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count a vector."""
        self.counts[outcome.verdict] += 1
        if outcome.verdict is Verdict.FAILED:
            self.failures.append(outcome)
        elif outcome.reason:
            self.reasons[outcome.verdict, outcome.reason] += 1


def vector_files(folder: Path) -> list[Path]:
    """The JSON files below a folder, in order."""
    return sorted(path for path in folder.rglob("*.json") if path.is_file())


def check_file(path: Path, folder: Path, provider: CryptoProvider, step: Callable[[], None]) -> FileReport:
    """Run all vectors of one file; a file that cannot be read is one failure."""
    report = FileReport(str(path.relative_to(folder)))
    try:
        for outcome in _outcomes(_load(path), provider):
            report.add(outcome)
            step()
    except VectorFileError as error:
        report.add(Outcome(Verdict.FAILED, str(error), "the file"))
    return report


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise VectorFileError(f"the file has over {MAX_FILE_BYTES // 2**20} MiB")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise VectorFileError(f"the file cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VectorFileError(f"the file is not JSON: {error}") from error


def _outcomes(document: Any, provider: CryptoProvider) -> Iterator[Outcome]:
    try:
        match document:
            case [{"kem_id": int()}, *_]:
                yield from hpke.check_document(document, provider)
            case {"algorithm": str(), "mode": str(), "testGroups": list()}:
                yield from acvp.check_document(document, provider)
            case [{"acvVersion": _}, {"algorithm": str(), "mode": str(), "testGroups": list()} as inner]:
                yield from acvp.check_document(inner, provider)
            case {"algorithm": str(), "testGroups": list()}:
                yield from wycheproof.check_document(document, provider)
            case _:
                yield Outcome(Verdict.SKIPPED, UNKNOWN, "the file")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise VectorFileError(f"the file lacks a part of its format: {error!r}") from error
