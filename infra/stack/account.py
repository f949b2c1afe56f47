"""Whom PostgreSQL runs as when we are root, which it refuses: an ordinary account, in folders that it can reach."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from infra.stack.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Callable

_Key = TypeVar("_Key", int, str)

SYSTEM_FOLDER = Path("/var/lib/behaviorguard")
"""Where root keeps what the ordinary account needs when the checkout lies under a folder that only root may enter."""
ACCOUNTS = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """An ordinary account of this machine."""

    name: str
    uid: int
    gid: int


def unprivileged_account(data: Path | None = None) -> Account | None:
    """Return the account to drop to, or None when we are not root and have nothing to drop.

    Whoever owns `data` already stays its owner: an account that was added since must not take over.
    """
    uid = os.geteuid()
    if uid != 0:
        if _entry(pwd.getpwuid, uid) is None:
            raise StackError(
                f"user id {uid} has no account on this machine, and PostgreSQL asks for its name",
                f"add one: echo 'app:x:{uid}:{os.getegid()}::/:/bin/false' >> /etc/passwd",
            )
        return None
    owner = data.stat().st_uid if data is not None and data.exists() else 0
    entries = [_entry(pwd.getpwuid, owner) if owner else None, *(_entry(pwd.getpwnam, name) for name in ACCOUNTS)]
    for entry in entries:
        if entry is not None:
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise StackError(
        f"PostgreSQL refuses to run as root, and there is no account named {' or '.join(ACCOUNTS)}",
        "run as an ordinary user, or add one: useradd --system postgres",
    )


def _entry(look_up: Callable[[_Key], pwd.struct_passwd], key: _Key) -> pwd.struct_passwd | None:
    try:
        return look_up(key)
    except KeyError:
        return None


def can_enter(account: Account, folder: Path) -> bool:
    """Tell whether the account may pass through every folder on the way to `folder`, itself included."""
    for part in [folder, *folder.parents]:
        if not part.exists():
            continue
        info = part.stat()
        if info.st_uid == account.uid:
            allowed = info.st_mode & stat.S_IXUSR
        elif info.st_gid == account.gid:
            allowed = info.st_mode & stat.S_IXGRP
        else:
            allowed = info.st_mode & stat.S_IXOTH
        if not allowed:
            return False
    return True


def reachable_folder(account: Account | None, folder: Path, system_folder: Path = SYSTEM_FOLDER) -> Path:
    """Return `folder`, or a stand-in under `system_folder` when the account cannot reach it.

    The stand-in's name is derived from `folder`, so that the same folder always finds its data again.
    """
    if account is None or can_enter(account, folder.parent):
        return folder
    digest = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
    return system_folder / f"{folder.name}-{digest}"


def own_folder(account: Account | None, folder: Path) -> None:
    """Create `folder` with mode 0700, belonging to the account."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if account is not None and folder.stat().st_uid != account.uid:
        os.chown(folder, account.uid, account.gid)


def reachable_copy(
    account: Account | None, parts: list[Path], version: str, system_folder: Path = SYSTEM_FOLDER
) -> list[Path]:
    """Return `parts` (folders beside each other), or readable copies of them when the account cannot reach them.

    A copy is made once a version and replaced as a whole, so that a broken-off copy is never used.
    """
    if account is None or all(can_enter(account, part) for part in parts):
        return parts
    target = system_folder / version
    if not target.exists():
        system_folder.mkdir(parents=True, exist_ok=True)
        partial = system_folder / f"{version}.{os.getpid()}.partial"
        for part in parts:
            shutil.copytree(part, partial / part.name, symlinks=True)
        partial.chmod(0o755)
        try:
            partial.rename(target)
        except OSError:  # somebody else was faster: theirs is as good
            shutil.rmtree(partial)
    return [target / part.name for part in parts]
