"""The page in a real browser, and its modules under Node."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.conftest import ROOT, Process
from tests.programs import require
from tests.upstream import STALL, Upstream, text

Launch = Callable[..., Awaitable[Process]]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    path = require(*BROWSERS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        await browser.close()


@pytest.fixture
async def visit(browser: Browser) -> AsyncIterator[Callable[..., Awaitable[Page]]]:
    """Open the page of a server; at the end nothing may have gone wrong in it."""
    problems: list[str] = []

    async def visit(server: Process, **options: object) -> Page:
        page = await browser.new_page(**options)
        page.set_default_timeout(10_000)
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda r: None if r.url.startswith((server.url, "blob:")) else problems.append(r.url),
        )
        await page.goto(server.url)
        return page

    yield visit
    assert problems == []


async def ask(page: Page, message: str) -> None:
    await page.get_by_role("textbox").fill(message)
    await page.keyboard.press("Enter")


async def test_a_question_is_answered_with_its_tools(launch: Launch, visit: Launch) -> None:
    page = await visit(await launch())
    await ask(page, "12 * (3 + 4) と東京の時刻は?")
    log = page.get_by_role("log")
    await expect(log).to_contain_text("84")
    await expect(log).to_contain_text("calculate")
    await expect(log).to_contain_text("current_time")
    await expect(log.locator("[aria-busy=true]")).to_have_count(0)
    await ask(page, "times 2")
    await expect(log).to_contain_text("168")


async def test_stop_stops(launch: Launch, visit: Launch, upstream: Upstream) -> None:
    upstream.replies = [[*text("Half an ans"), STALL], text("Whole.")]
    page = await visit(await launch(OPENAI_BASE_URL=upstream.url))
    await ask(page, "hi")
    log = page.get_by_role("log")
    await expect(log).to_contain_text("Half an ans")
    await page.get_by_role("button", name=re.compile("stop", re.IGNORECASE)).click()
    await upstream.dropped.wait()
    await expect(log.locator("[aria-busy=true]")).to_have_count(0)
    await ask(page, "again")
    await expect(log).to_contain_text("Whole.")


async def test_a_failure_is_shown_and_can_be_tried_again(
    launch: Launch, visit: Launch, upstream: Upstream
) -> None:
    upstream.replies = [503, text("Better now.")]
    page = await visit(await launch(OPENAI_BASE_URL=upstream.url))
    await ask(page, "hi")
    await page.get_by_role(
        "button", name=re.compile("(retry|try) ?(again)?", re.IGNORECASE)
    ).click()
    await expect(page.get_by_role("log")).to_contain_text("Better now.")


async def test_a_reload_keeps_the_conversation(launch: Launch, visit: Launch) -> None:
    page = await visit(await launch())
    await ask(page, "6 * 7")
    await expect(page.get_by_role("log")).to_contain_text("42")
    await page.reload()
    await expect(page.get_by_role("log")).to_contain_text("42")


def test_the_modules_of_the_page_under_node() -> None:
    done = subprocess.run(
        [require("node"), "--test", *map(str, sorted(Path(ROOT, "tests/js").glob("*.test.mjs")))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^# pass [1-9]", done.stdout, re.MULTILINE)
