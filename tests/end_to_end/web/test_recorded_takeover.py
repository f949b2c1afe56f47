"""Real people on the real stack in a real browser: one is learnt, another takes over, and the page says so.

Their recorded rhythms are played onto the page's phrase (both have 14 keys) as trusted key events on a clock of their
own that runs ahead, so that a session of minutes takes seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from playwright.async_api import expect

from infra.evaluation.recordings import read_keystrokes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from playwright.async_api import Browser, CDPSession, WebSocket

    from infra.evaluation.recordings import Typist
    from servers.threat.behavior import KeystrokeRun
    from tests.support.stack import Installation

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("stack")]

KEYS: Final = (*"quiet harbour", "Enter")
LEARNT, OWN, FOREIGN = 25, 6, 15
PAUSE_SECONDS = 1.5
ANSWER_SECONDS = 20.0
SCREENSHOTS: Final = Path(__file__).parents[3] / "build" / "screenshots"


class Alerts:
    """Alerts that arrive at the page over `/ws`, each event's once, in order."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def follow(self, socket: WebSocket) -> None:
        if socket.url.endswith("/ws"):
            socket.on("framereceived", lambda frame: self._arrived.put_nowait(json.loads(frame)["data"]))

    async def next(self) -> dict[str, Any]:
        return await asyncio.wait_for(self._arrived.get(), ANSWER_SECONDS)


def key_event(kind: str, key: str, at: float) -> dict[str, Any]:
    """A key's press or release as the browser's debugger takes it; `at` in seconds since the epoch."""
    names = {" ": ("Space", 32, " "), "Enter": ("Enter", 13, "\r")}
    code, number, text = names.get(key, (f"Key{key.upper()}", ord(key[0].upper()), key))
    event = {"type": kind, "key": key, "code": code, "windowsVirtualKeyCode": number, "timestamp": at}
    return {**event, "text": text} if kind == "keyDown" else event


def rhythm(person: Typist) -> NDArray[np.float64]:
    """A person's usual times from press to press, milliseconds."""
    return np.median([run.flight_ms for run in person.entries], axis=0).astype(np.float64)


class Hands:
    """Types the phrase with recorded rhythms."""

    def __init__(self, debugger: CDPSession) -> None:
        self._debugger = debugger
        self._clock = time.time()

    async def play(self, run: KeystrokeRun) -> None:
        """One recorded entry."""
        events = []
        for key, down, hold in zip(KEYS, run.flight_ms.cumsum().tolist(), run.hold_ms.tolist(), strict=True):
            events += [(down, "keyDown", key), (down + hold, "keyUp", key)]
        begun = self._clock
        for at, kind, key in sorted(events, key=lambda each: each[0]):
            self._clock = begun + at / 1000
            await self._debugger.send("Input.dispatchKeyEvent", key_event(kind, key, self._clock))
        self._clock += PAUSE_SECONDS


async def test_a_recorded_persons_session_is_taken_over_by_another(
    stack: Installation, browser: Browser, dist: Path, eval_data: Path
) -> None:
    del dist  # the gateway serves it
    pictures = Path(os.environ.get("BEHAVIORGUARD_SCREENSHOTS", SCREENSHOTS))
    owner, *others = read_keystrokes(next((eval_data / "keystroke").glob("*.csv")))
    # How well close rhythms are told apart is for `behaviorguard evaluate` to say; here the whole way must work.
    other = max(others, key=lambda person: float(np.abs(rhythm(person) - rhythm(owner)).mean()))
    context = await browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    page = await context.new_page()
    alerts = Alerts()
    page.on("websocket", alerts.follow)
    await page.goto(f"http://localhost:{stack.settings().gateway_port}/")
    await page.get_by_role("button", name=re.compile("Start")).click()
    await expect(page.get_by_role("status").filter(has_text="Connected")).to_be_visible()
    hands = Hands(await context.new_cdp_session(page))

    own = []
    for run in owner.entries[: LEARNT + OWN]:
        await hands.play(run)
        own.append(await alerts.next())
    own = own[LEARNT:]
    assert not [alert for alert in own if alert["threatLevel"] in ("threat", "critical")]
    await page.screenshot(path=pictures / "recorded-own.png", full_page=True)

    foreign = []
    for run in other.entries[:FOREIGN]:
        await hands.play(run)
        foreign.append(await alerts.next())
        if foreign[-1]["threatLevel"] in ("threat", "critical"):
            break
    await page.screenshot(path=pictures / "recorded-takeover.png", full_page=True)
    scores = [round(alert["threatScore"], 2) for alert in (*own, *foreign)]
    noticed = max(foreign, key=lambda alert: float(alert["threatScore"]))
    assert noticed["threatLevel"] != "normal", scores
    assert noticed["threatScore"] > 0.2 + max(alert["threatScore"] for alert in own), scores
    assert noticed["reasons"], "an alert says why"
    await expect(page.get_by_role("region", name="Why")).to_contain_text(foreign[-1]["reasons"][0]["text"])
    await context.close()
