"""The main job, on the real stack in a real browser: a person is learnt, somebody else types, and an alert says why."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import expect

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page, WebSocket

    from tests.support.stack import Installation

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("stack")]

KEYS = (*"quiet harbour", "Enter")
LEARNT_AFTER = 12
RECOGNISED = 4
FOREIGN = 5
ANSWER_SECONDS = 10.0


class Owner:
    """A made-up person with a rhythm of their own: each key has its usual hold and flight, and strays a little."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a rhythm, not a secret
        self._hold = [self._random.gauss(92, 14) for _ in KEYS]
        self._flight = [max(70.0, self._random.gauss(150, 40)) for _ in KEYS]

    def phrase(self) -> list[tuple[float, str, str]]:
        """(milliseconds, "down" or "up", key) in order of time."""
        at, events = 0.0, []
        for key, hold, flight in zip(KEYS, self._hold, self._flight, strict=True):
            stray = self._random.lognormvariate(0, 0.08)
            events += [(at, "down", key), (at + hold * stray, "up", key)]
            at += flight * stray
        return sorted(events)


class Alerts:
    """Alerts that arrived at the page over `/ws`."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def follow(self, socket: WebSocket) -> None:
        if socket.url.endswith("/ws"):
            socket.on("framereceived", lambda frame: self._arrived.put_nowait(json.loads(frame)["data"]))

    async def next(self) -> dict[str, Any]:
        return await asyncio.wait_for(self._arrived.get(), ANSWER_SECONDS)


async def _type(page: Page, phrase: list[tuple[float, str, str]]) -> None:
    begun = asyncio.get_running_loop().time()
    for at, what, key in phrase:
        await asyncio.sleep(begun + at / 1000 - asyncio.get_running_loop().time())
        name = "Space" if key == " " else key
        await (page.keyboard.down(name) if what == "down" else page.keyboard.up(name))


async def _dismiss(page: Page, level: str) -> None:
    """Where the level calls for it the page has reacted; tell it to go on."""
    words = {
        "threat": ("confirm that it is you", "It is me: go on"),
        "critical": ("Session ended", "I am back: unlock"),
    }
    if level in words:
        said, button = words[level]
        await expect(page.get_by_role("alert").filter(has_text=said)).to_be_visible()
        await page.get_by_role("button", name=button).click()


async def test_somebody_else_is_noticed_and_the_page_says_why(
    stack: Installation, browser: Browser, dist: Path, tmp_path: Path
) -> None:
    del dist  # the gateway serves it
    pictures = Path(os.environ.get("BEHAVIORGUARD_SCREENSHOTS", tmp_path))
    context = await browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page = await context.new_page()
    alerts, owner = Alerts(), Owner(7)
    page.on("websocket", alerts.follow)
    await page.goto(f"http://localhost:{stack.settings().gateway_port}/")
    await page.get_by_role("button", name=re.compile("Start")).click()
    await expect(page.get_by_role("status").filter(has_text="Connected")).to_be_visible()

    for _ in range(LEARNT_AFTER):
        await _type(page, owner.phrase())
        await alerts.next()
    await expect(page.get_by_role("heading", name="Now it knows you")).to_be_visible()
    await page.screenshot(path=pictures / "learnt.png", full_page=True)

    own = []
    for _ in range(RECOGNISED):
        await _type(page, owner.phrase())
        own.append(await alerts.next())
    assert {alert["threatLevel"] for alert in own} == {"normal"}
    await expect(page.get_by_role("heading", name="Risk now: This is you")).to_be_visible()

    foreign = []
    for _ in range(FOREIGN):
        await page.get_by_role("button", name="Made-up typist").click()
        foreign.append(await alerts.next())
        if foreign[-1]["threatLevel"] in ("threat", "critical"):
            break
    await page.screenshot(path=pictures / "takeover.png", full_page=True)
    last = foreign[-1]
    scores = [alert["threatScore"] for alert in (*own, *foreign)]
    assert last["threatLevel"] != "normal", scores
    assert last["threatScore"] > 3 * max(alert["threatScore"] for alert in own), scores
    assert all(reason["text"] for reason in last["reasons"])
    await expect(page.get_by_role("region", name="Why")).to_contain_text(last["reasons"][0]["text"])
    await _dismiss(page, last["threatLevel"])

    await page.get_by_role("button", name="Erase everything").click()
    await page.get_by_role("dialog").get_by_role("button", name="Erase everything").click()
    await expect(page.get_by_role("status").filter(has_text="Erased:")).to_be_visible()
