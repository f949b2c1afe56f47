"""Passwords of the embedded stores: random, one file each, readable by the owner alone."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def password(folder: Path, name: str) -> str:
    """Return the password kept in `folder/name`, made on first use: 192 random bits, safe in addresses and files."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / name
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    value = secrets.token_urlsafe(24)
    with os.fdopen(handle, "w") as file:
        file.write(value)
    return value
