"""The live page in a real Chromium: it learns, recognises, reacts, erases; it is accessible, and fits a phone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Browser, Locator, Page

pytestmark = pytest.mark.end_to_end

PHRASE = "quiet harbour"
NEEDED = 12
OWN_MS = 14
OTHERS_MS = 110


async def _open(browser: Browser, url: str, *, dark: bool = False, width: int = 1280) -> tuple[Page, list[str]]:
    """A page, and everything that it complains about on its console."""
    context = await browser.new_context(
        color_scheme="dark" if dark else "light", viewport={"width": width, "height": 860}, reduced_motion="reduce"
    )
    page = await context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto(url)
    await expect(page.get_by_role("button", name=re.compile("Start"))).to_be_visible()
    return page, complaints


async def _type(page: Page, step_ms: float) -> None:
    for key in (*PHRASE, "Enter"):
        await page.keyboard.press(" " if key == " " else key, delay=step_ms)


async def _start(page: Page) -> Locator:
    await page.get_by_role("button", name=re.compile("Start")).click()
    field = page.get_by_label(re.compile(PHRASE))
    await expect(field).to_be_focused()
    return field


async def _teach(page: Page) -> None:
    rows = page.locator("tbody tr")
    for done in range(NEEDED):
        await _type(page, OWN_MS)
        await expect(rows).to_have_count(min(done + 1, 8))
    await expect(page.get_by_role("heading", name="Now it knows you")).to_be_visible()


async def test_the_page_learns_recognises_reacts_and_erases(browser: Browser, page_url: str, tmp_path: Path) -> None:
    page, complaints = await _open(browser, page_url)
    await _start(page)
    await _teach(page)

    await _type(page, OWN_MS)
    await expect(page.get_by_role("heading", name="Risk now: This is you")).to_be_visible()
    alert = page.get_by_role("alert").filter(has_text=re.compile("Session ended|confirm that it is you"))
    await expect(alert).to_have_count(0)

    await _type(page, OTHERS_MS)
    await expect(alert).to_contain_text("Session ended")
    await expect(alert).to_contain_text("usual spread")
    await expect(page.get_by_label(re.compile(PHRASE))).to_be_disabled()
    await page.screenshot(path=tmp_path / "takeover.png", full_page=True)

    await page.get_by_role("button", name="I am back: unlock").click()
    await expect(alert).to_have_count(0)
    await expect(page.get_by_label(re.compile(PHRASE))).to_be_focused()

    await page.get_by_role("button", name="Erase everything").click()
    await page.get_by_role("dialog").get_by_role("button", name="Erase everything").click()
    await expect(page.get_by_role("status").filter(has_text="Erased:")).to_contain_text("14 scored events")
    assert complaints == []


async def test_a_slip_is_not_counted(browser: Browser, page_url: str) -> None:
    page, _ = await _open(browser, page_url)
    field = await _start(page)
    await page.keyboard.type("quiex")
    await expect(page.get_by_text("A slip:")).to_be_visible()
    await page.keyboard.press("Backspace")
    await expect(field).to_have_value("")
    await page.keyboard.type("quiet harbor\n")
    await expect(page.get_by_text("Not counted.")).to_be_visible()
    await _type(page, OWN_MS)
    await expect(page.locator("tbody tr")).to_have_count(1)


async def test_a_reload_goes_on_with_the_trial(browser: Browser, page_url: str) -> None:
    page, _ = await _open(browser, page_url)
    await _start(page)
    await _type(page, OWN_MS)
    typing = page.get_by_role("progressbar", name="Typing")
    await expect(typing).to_have_attribute("aria-valuetext", "1 of 12 phrases")
    await page.reload()
    await expect(typing).to_have_attribute("aria-valuetext", "1 of 12 phrases")


async def test_everything_works_from_the_keyboard(browser: Browser, page_url: str) -> None:
    page, _ = await _open(browser, page_url)
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    start = page.get_by_role("button", name=re.compile("Start"))
    for _ in range(5):
        await page.keyboard.press("Tab")
        if await start.evaluate("element => element === document.activeElement"):
            break
    await page.keyboard.press("Enter")
    await expect(page.get_by_label(re.compile(PHRASE))).to_be_focused()
    erase = page.get_by_role("button", name="Erase everything")
    for _ in range(6):
        await page.keyboard.press("Tab")
        if await erase.evaluate("element => element === document.activeElement"):
            break
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(erase).to_be_focused()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_no_accessibility_rule_is_broken(browser: Browser, page_url: str, dist: Path, dark: bool) -> None:
    axe = dist.parent / "node_modules" / "axe-core" / "axe.min.js"
    if not axe.is_file():
        pytest.skip("axe-core is not installed: run `make web`")
    page, _ = await _open(browser, page_url, dark=dark)
    await page.evaluate(axe.read_text())
    assert await _violations(page) == []
    await _start(page)
    await _type(page, OWN_MS)
    await expect(page.locator("tbody tr")).to_have_count(1)
    assert await _violations(page) == []


async def _violations(page: Page) -> list[str]:
    found: list[str] = await page.evaluate(
        "axe.run().then(result => result.violations.map(v => `${v.id}: ${v.nodes.map(n => n.html).join(' | ')}`))"
    )
    return found


@pytest.mark.parametrize("width", [360, 768, 1280])
async def test_nothing_sticks_out(browser: Browser, page_url: str, width: int) -> None:
    page, _ = await _open(browser, page_url, width=width)
    await _start(page)
    await _type(page, OWN_MS)
    await expect(page.locator("tbody tr")).to_have_count(1)
    assert await page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


async def test_nothing_jumps_when_scores_arrive(browser: Browser, page_url: str) -> None:
    page, _ = await _open(browser, page_url)
    await _start(page)
    places = "['.typing', '.risk', '.reasons', '.models', '.events'].map(s => document.querySelector(s).offsetTop)"
    before = await page.evaluate(places)
    await _teach(page)
    await _type(page, OTHERS_MS)
    await expect(page.get_by_text("Session ended")).to_be_visible()
    assert await page.evaluate(places) == before


async def test_a_server_that_is_away_is_said_with_what_to_do(browser: Browser, page_url: str) -> None:
    page, _ = await _open(browser, page_url)
    await page.route("**/api/**", lambda route: route.abort())
    await page.get_by_role("button", name=re.compile("Start")).click()
    await expect(page.get_by_role("alert")).to_contain_text("Check that BehaviorGuard is running")
