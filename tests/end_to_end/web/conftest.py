"""A real Chromium, and the live page over a stand-in for the gateway.

The stand-in scores by a toy rule, so that what is tested over it is the page alone.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn
from playwright.async_api import async_playwright

from clients.web.tools.mock_gateway import app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser

WEB = Path(__file__).parents[3] / "clients" / "web"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def _chromium() -> str | None:
    named = os.environ.get("BEHAVIORGUARD_CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A headless Chromium of this machine; without one the test is skipped."""
    executable = _chromium()
    if executable is None:
        pytest.skip("no Chromium here: install Debian's `chromium`, or name one in BEHAVIORGUARD_CHROMIUM")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        await browser.close()


@pytest.fixture
def dist() -> Path:
    """The built page."""
    if not (WEB / "dist" / "index.html").is_file():
        pytest.skip("the page is not built: run `make web`")
    return WEB / "dist"


class _Server(uvicorn.Server):
    """A server that tells when it serves."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serving = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        await super().startup(sockets)
        self.serving.set()


@pytest.fixture
async def page_url(dist: Path) -> AsyncIterator[str]:
    """Where the page is served, over the stand-in."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _Server(uvicorn.Config(app(dist), log_level="error", lifespan="off", ws="websockets-sansio"))
        task = asyncio.create_task(server.serve([listener]))
        await asyncio.wait_for(server.serving.wait(), timeout=10)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        server.force_exit = True
        await task
