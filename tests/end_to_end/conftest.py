"""The whole stack, once for all end-to-end tests of a test process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.stack import Installation, installed

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def stack() -> Iterator[Installation]:
    """Everything, started by `behaviorguard up` with the in-memory broker; `stack.settings()` knows the ports."""
    with installed() as installation:
        started = installation.call("up")
        assert started.returncode == 0, started.stdout + started.stderr
        yield installation
