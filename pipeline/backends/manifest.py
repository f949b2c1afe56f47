"""Which model files belong to this version: `manifest.json` in the model repository, path to SHA-256.

`python -m pipeline.backends.manifest FOLDER` writes it after training. A file that differs from it is not loaded:
scores from other weights would carry this version's name. Integrity only: whoever may write the folder may also write
the manifest.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MANIFEST = "manifest.json"
_PARAMETERS = (".onnx", ".npz")


class ModelRepositoryError(RuntimeError):
    """The model repository cannot be used as it is; the message says what to do."""


def write(repository: Path) -> Path:
    """Name every model and parameter file of the repository with its digest."""
    files = sorted(path for path in repository.rglob("*") if path.suffix in _PARAMETERS)
    target = repository / MANIFEST
    digests = {path.relative_to(repository).as_posix(): digest(path) for path in files}
    target.write_text(json.dumps({"sha256": digests}, indent=2) + "\n")
    return target


def verify(repository: Path, files: Sequence[str]) -> None:
    """Check `files` (relative paths) against the manifest.

    Raises:
        ModelRepositoryError: a file is missing, unnamed or different.
    """
    try:
        digests = json.loads((repository / MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelRepositoryError(
            f"{repository / MANIFEST} cannot be read: write it with python -m pipeline.backends.manifest {repository}"
        ) from error
    for name in files:
        path = repository / name
        if not path.is_file():
            raise ModelRepositoryError(
                f"{path} is missing: point BEHAVIORGUARD_MODELS to the model repository, or train the models"
            )
        if digests.get(name) != digest(path):
            raise ModelRepositoryError(
                f"{path} is not the file that {MANIFEST} names: restore it, or write the manifest anew after training"
            )


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.stdout.write(f"{write(Path(sys.argv[1]))}\n")
