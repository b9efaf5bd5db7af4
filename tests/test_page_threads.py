"""The page's conversations: going back to one, asking again, and the truth after a reload."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.conftest import Process
from tests.test_page import Launch, answer_of, ask, browser, button, ended, visit  # noqa: F401
from tests.upstream import STALL, Upstream, text

pytestmark = pytest.mark.slow

Tab = Callable[[Process], Awaitable[Page]]


@pytest.fixture
async def tab(browser: Browser) -> AsyncIterator[Tab]:  # noqa: F811
    """Open tabs of one browser, which share their storage."""
    context: BrowserContext = await browser.new_context(viewport={"width": 1440, "height": 900})

    async def tab(server: Process) -> Page:
        page = await context.new_page()
        page.set_default_timeout(10_000)
        await page.goto(server.url)
        return page

    yield tab
    await context.close()


async def messages(server: Process, page: Page) -> list[tuple[str, str]]:
    """Return the roles and texts of the shown conversation, as the server has it."""
    async with server.session.get(f"/api/threads/{page.url.rpartition('/')[2]}") as response:
        return [(m["role"], m.get("content")) for m in (await response.json())["messages"]]


def questions(page: Page) -> Any:
    return page.locator(".turn.user .body")


async def state(page: Page, name: str) -> None:
    await expect(page.locator("#state")).to_have_attribute("data-state", name)


async def test_a_conversation_is_found_again_until_it_is_deleted(launch: Launch, tab: Tab) -> None:
    server = await launch()
    page = await tab(server)
    await ask(page, "6 * 7")
    await answer_of(page)
    address = page.url
    assert re.search(r"#/t/[\w-]{36}$", address)
    await button(page, "New chat").first.click()
    await expect(questions(page)).to_have_count(0)
    await button(page, "Go back").click()
    await expect(page.locator("#log")).to_contain_text("42")
    assert page.url == address
    other = await tab(server)
    await other.get_by_role("link", name="6 * 7").click()
    await expect(other.locator("#log")).to_contain_text("42")
    assert other.url == address
    for _ in range(2):
        await button(other, "Delete “6 * 7”").click()
    await expect(other.locator("#notice")).to_contain_text("Deleted")
    await expect(other.get_by_role("link")).to_have_count(0)
    async with server.session.get(f"/api/threads/{address.rpartition('/')[2]}") as response:
        assert response.status == 404
    await page.reload()
    await expect(page.locator("#forgotten")).to_be_visible()


async def test_a_conversation_that_the_server_forgot_can_be_started_again(
    launch: Launch, tab: Tab
) -> None:
    server = await launch()
    page = await tab(server)
    await ask(page, "6 * 7")
    await answer_of(page)
    server.process.kill()
    await server.process.wait()
    again = await launch("--port", server.url.rpartition(":")[2])
    # Without a reload the next answer says where the server's memory begins.
    await ask(page, "5 + 5")
    await answer_of(page)
    await expect(page.locator(".divider")).to_contain_text("no longer has what stands above")
    again.process.kill()
    await again.process.wait()
    await launch("--port", server.url.rpartition(":")[2])
    await page.reload()
    await expect(page.locator("#forgotten")).to_contain_text("6 * 7")
    await button(page, "Start again").click()
    await expect(page.locator("#message")).to_have_value("6 * 7")
    await page.keyboard.press("Enter")
    await expect(page.locator("#log")).to_contain_text("42")


BLOCKED = """
for (const name of ["localStorage", "sessionStorage"])
  Object.defineProperty(window, name, { get() { throw new DOMException("no", "SecurityError"); } });
window.BroadcastChannel = class {
  constructor() { throw new DOMException("no", "SecurityError"); }
};
"""


async def test_it_works_where_storage_is_blocked(
    launch: Launch,
    browser: Browser,  # noqa: F811
) -> None:
    page = await browser.new_page(viewport={"width": 1440, "height": 900})
    await page.add_init_script(BLOCKED)
    await page.goto((await launch()).url)
    await ask(page, "6 * 7")
    await answer_of(page)
    await expect(page.get_by_role("link", name="6 * 7")).to_be_visible()
    await page.reload()
    await expect(page.locator("#log")).to_contain_text("42")


async def test_edit_and_regenerate_replace_the_turn(
    launch: Launch,
    visit: Launch,  # noqa: F811
    upstream: Upstream,
) -> None:
    replies = ["One.", "Two.", "Two again.", "Edited."]
    upstream.replies = [text(reply) for reply in replies]
    server = await launch(OPENAI_BASE_URL=upstream.url)
    page = await visit(server)
    for question in ("first", "second"):
        await ask(page, question)
        await ended(page)
    await button(page, "Regenerate").last.click()
    await expect(page.locator("#log")).to_contain_text("Two again.")
    await ended(page)
    await expect(questions(page)).to_have_text(["first", "second"])
    await button(page, "Edit your question").first.click()
    box = page.get_by_role("textbox", name="Edit your question")
    await expect(box).to_be_focused()
    area = await box.bounding_box()
    assert area and area["width"] > 200 and area["height"] > 30
    await box.fill("changed")
    await page.keyboard.press("Enter")
    await expect(page.locator("#log")).to_contain_text("Edited.")
    await ended(page)
    await expect(questions(page)).to_have_text(["changed"])
    assert await messages(server, page) == [("user", "changed"), ("assistant", "Edited.")]


async def test_an_edit_that_is_refused_leaves_the_conversation(
    launch: Launch,
    visit: Launch,  # noqa: F811
) -> None:
    page = await visit(await launch(), breaks=True)
    await ask(page, "6 * 7")
    await answer_of(page)
    error = {"error": {"code": "invalid_request", "message": "No."}}
    await page.route("**/api/chat", lambda route: route.fulfill(status=400, json=error))
    await button(page, "Regenerate").click()
    await expect(page.locator(".failure")).to_contain_text("No.")
    await expect(questions(page)).to_have_text(["6 * 7"])
    await expect(page.locator("#log")).to_contain_text("42")


async def test_a_reload_shows_failed_and_stopped_turns_as_they_were(
    launch: Launch,
    visit: Launch,  # noqa: F811
    upstream: Upstream,
) -> None:
    thought = [{"reasoning_content": "Let me *think*."}, *text("Thought.")]
    upstream.replies = [thought, 401, 429, [*text("Half"), STALL], text("Better.")]
    page = await visit(await launch(OPENAI_BASE_URL=upstream.url))
    for question in ("one", "two", "three"):
        await ask(page, question)
        await ended(page)
    await ask(page, "four")
    await expect(page.locator("#log")).to_contain_text("Half")
    await expect(page).to_have_title(re.compile("^Answering"))
    await page.keyboard.press("Escape")
    await ended(page)

    async def shown() -> list[Any]:
        await expect(page.locator(".failure")).to_have_count(2)
        turns = await page.locator(".turn.agent .body").all_inner_texts()
        # What stands in the log of the server is not in the thread.
        turns = [re.sub(r"\s*To find this.*", "", turn).split() for turn in turns]
        retries = page.locator(".retry, .again:visible")
        return [turns, await retries.all_inner_texts()]

    before = await shown()
    await page.reload()
    await expect(page.locator(".turn.agent")).to_have_count(4)
    await ended(page)
    assert await shown() == before
    await expect(page.locator(".meta").last).to_contain_text("Stopped")
    await expect(page.locator(".meta").first).to_contain_text("7 tokens in, 5 out")
    # The model reasoned for a moment only, whose length is not shown.
    await expect(page.locator(".reasoning summary")).to_have_text(re.compile("^Reason"))
    await page.locator(".reasoning summary").click()
    await expect(page.locator(".reasoning em")).to_have_text("think")
    await button(page, "Retry").last.click()
    await expect(page.locator("#log")).to_contain_text("Better.")
    await expect(questions(page)).to_have_text(["one", "two", "three", "four"])


async def test_two_tabs_of_a_thread_follow_the_same_run(
    launch: Launch, tab: Tab, upstream: Upstream
) -> None:
    go = asyncio.Event()
    upstream.replies = [text("First."), [*text("Half, "), go, *text("and whole.")]]
    server = await launch(OPENAI_BASE_URL=upstream.url)
    one = await tab(server)
    await ask(one, "one")
    await answer_of(one)
    two = await tab(server)
    await two.get_by_role("link", name="one").click()
    await expect(two.locator("#log")).to_contain_text("First.")
    await ask(one, "two")
    await expect(two.locator("#log")).to_contain_text("Half,")
    await expect(button(two, "Stop")).to_be_visible()
    go.set()
    for page in (one, two):
        assert await answer_of(page) == "Half, and whole."
        await expect(questions(page)).to_have_text(["one", "two"])


async def test_the_state_is_the_truth_about_the_server(
    launch: Launch,
    visit: Launch,  # noqa: F811
) -> None:
    server = await launch()
    page = await visit(server, breaks=True)
    await ask(page, "6 * 7")
    await answer_of(page)
    await state(page, "ended")
    server.process.kill()
    await server.process.wait()
    await ask(page, "5 + 5")
    await expect(page.locator("#countdown")).to_have_text(re.compile(r"in \d+ s"))
    await expect(page.locator(".failure")).to_contain_text("cannot be reached")
    # No connection began, so none was cut.
    await expect(page.locator("#wire-cuts")).to_be_empty()
    await state(page, "away")
    await launch("--port", server.url.rpartition(":")[2])
    await state(page, "ended")
    await button(page, "Retry").click()
    await expect(page.locator("#log")).to_contain_text("10")
    await expect(questions(page)).to_have_text(["6 * 7", "5 + 5"])


async def test_the_wire_says_how_a_cut_ended_and_opens_its_rows(
    launch: Launch,
    visit: Launch,  # noqa: F811
    upstream: Upstream,
) -> None:
    go = asyncio.Event()
    upstream.replies = [[*text("Half, "), go, *text("and ", "whole.")]]
    page = await visit(await launch(OPENAI_BASE_URL=upstream.url), breaks=True)
    await expect(page.locator("#wire-hints")).to_contain_text("Cut connection")
    await ask(page, "hi")
    await expect(page.locator("#log")).to_contain_text("Half,")
    await button(page, "Cut connection").click()
    go.set()
    assert await answer_of(page) == "Half, and whole."
    line = "Cut after event 3, resumed at event 4: nothing lost, nothing doubled."
    await expect(page.locator("#wire-cuts")).to_have_text(line)
    row = page.locator("#frames li", has_text="text_delta × 2")
    await row.locator("summary").click()
    await expect(row.locator("pre")).to_have_text(re.compile(r"^event: text_delta\ndata: .*and "))
    await page.reload()
    await expect(page.locator("#wire-sum")).to_contain_text("read again")
    await expect(page.locator("#frames li", has_text="text_delta × 3")).to_be_visible()
    await expect(page.locator("#frames")).not_to_contain_text(re.compile(r"\d\.\d{3} s"))
    await expect(page.locator("#times")).to_be_hidden()


async def test_reasoning_has_its_duration_after_a_reload_too(
    launch: Launch,
    visit: Launch,  # noqa: F811
    upstream: Upstream,
) -> None:
    go = asyncio.Event()
    upstream.replies = [[{"reasoning_content": "Hm."}, go, *text("Thought.")]]
    page = await visit(await launch(OPENAI_BASE_URL=upstream.url))
    await ask(page, "hi")
    summary = page.locator(".reasoning summary")
    await expect(summary).to_have_text("Reasoning…")
    asyncio.get_running_loop().call_later(0.3, go.set)
    await answer_of(page)
    await expect(summary).to_have_text(re.compile(r"^Reasoned for \d+\.\d+ s$"))
    await expect(page.locator(".meta")).to_contain_text("Took")
    turn = page.locator(".turn.agent")
    shown = await turn.inner_text()
    await page.reload()
    await expect(turn).to_have_text(shown, use_inner_text=True)
