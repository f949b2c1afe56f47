"""Write everything that is derived from the contracts: `python -m infra.contracts.generate [--check]`.

With `--check` nothing is written: the command fails and names each file that regeneration would change.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

from infra.contracts.compiler import GENERATED, ROOT, ContractError, compile_descriptors, write_stubs
from infra.contracts.model import Contracts
from infra.contracts.openapi import openapi
from infra.contracts.reference import reference

REFERENCE = "docs/contracts.md"


def _derive(target: Path, scratch: Path) -> None:
    """Write the repository's derived files under `target`, laid out as in the repository."""
    generated = target / "generated"
    generated.mkdir(parents=True)
    write_stubs(generated, scratch)
    descriptors = compile_descriptors(scratch)
    (generated / "descriptors.binpb").write_bytes(descriptors)
    contracts = Contracts(descriptors)
    (generated / "openapi.json").write_bytes(openapi(contracts))
    (target / REFERENCE).parent.mkdir()
    (target / REFERENCE).write_bytes(reference(contracts))


def _files(top: Path) -> set[str]:
    return {
        path.relative_to(top).as_posix()
        for path in top.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def _differences(fresh: Path) -> list[str]:
    """Name each derived file that is missing, stale or left over in the repository."""
    wanted = _files(fresh)
    present = {f"generated/{name}" for name in _files(GENERATED)} if GENERATED.is_dir() else set()
    changed = [
        name
        for name in wanted
        if not (ROOT / name).is_file() or not filecmp.cmp(fresh / name, ROOT / name, shallow=False)
    ]
    return sorted({*changed, *(present - wanted)})


def _install(fresh: Path, differences: list[str]) -> None:
    """Make the repository's derived files equal to the fresh ones."""
    for name in differences:
        source, target = fresh / name, ROOT / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        else:
            target.unlink()


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0 when all is current, 1 when not, 2 when the contracts do not compile."""
    parser = argparse.ArgumentParser(prog="python -m infra.contracts.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a derived file is not current")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="contracts-") as folder:
        scratch = Path(folder)
        fresh = scratch / "fresh"
        try:
            _derive(fresh, scratch)
        except ContractError as error:
            sys.stderr.write(f"The contracts do not compile:\n{error}\n")
            return 2
        differences = _differences(fresh)
        if options.check:
            for name in differences:
                sys.stderr.write(f"not current: {name}\n")
            if differences:
                sys.stderr.write("Run `make generate` and commit the result.\n")
            return 1 if differences else 0
        _install(fresh, differences)
        sys.stdout.write(f"{len(differences)} of {len(_files(fresh))} derived files written.\n")
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
