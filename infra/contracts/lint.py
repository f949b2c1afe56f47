"""Check the contracts' style, format and compatibility: `python -m infra.contracts.lint`.

Compatibility is judged on the wire and in JSON, against the descriptor set that the main branch has committed. On main
itself that is the last commit's; a checkout without history has nothing to compare with, and says so.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from infra.contracts.compiler import PROTOS, ROOT, ContractError, compile_descriptors

DESCRIPTORS = "generated/descriptors.binpb"
# The image holds third-party files too (google, buf.validate); only our own are judged.
OURS = ["--config", "buf.yaml", "--path", "behaviorguard"]


def _buf(*arguments: str) -> bool:
    """Run the buf of this environment; its findings go to the terminal. True when there are none."""
    command = [str(Path(sysconfig.get_path("scripts")) / "buf"), *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def committed_descriptors() -> tuple[str, bytes] | None:
    """The descriptor set to stay compatible with and the git revision it comes from; None when there is no history."""
    for revision in ("origin/main", "main", "HEAD"):
        result = subprocess.run(
            ["git", "show", f"{revision}:{DESCRIPTORS}"], cwd=ROOT, capture_output=True, check=False
        )
        if result.returncode == 0:
            return revision, result.stdout
    return None


def main() -> int:
    """Run all checks; returns 0 when all pass, 1 when one fails, 2 when the contracts do not compile."""
    with tempfile.TemporaryDirectory(prefix="contracts-") as folder:
        scratch = Path(folder)
        image = scratch / "contracts.binpb"
        try:
            image.write_bytes(compile_descriptors(scratch))
        except ContractError as error:
            sys.stderr.write(f"The contracts do not compile:\n{error}\n")
            return 2
        passed = [
            _buf("format", str(PROTOS.relative_to(ROOT)), "--diff", "--exit-code"),
            _buf("lint", str(image), *OURS),
        ]
        published = committed_descriptors()
        if published is None:
            sys.stderr.write("No committed descriptor set: compatibility was not checked.\n")
        else:
            revision, content = published
            before = scratch / "before.binpb"
            before.write_bytes(content)
            passed.append(_buf("breaking", str(image), "--against", str(before), *OURS))
            if not passed[-1]:
                sys.stderr.write(
                    f"The contracts break readers of {revision}. Add fields instead of changing them, or make a v2.\n"
                )
    return 0 if all(passed) else 1


if __name__ == "__main__":
    raise SystemExit(main())
