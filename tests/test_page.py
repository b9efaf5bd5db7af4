"""The page in a real browser, and its modules under Node."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Browser, ConsoleMessage, Locator, Page, async_playwright, expect

from tests.conftest import Process, listen
from tests.programs import require
from tests.upstream import STALL, Upstream, text

Launch = Callable[..., Awaitable[Process]]

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# What comes of itself may be late on a machine that others use, too.
expect.set_options(timeout=20_000)

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
    """Open the page of a server; at the end nothing may have gone wrong in it.

    Where a test breaks connections, ``breaks`` lets Chromium say so on the console.
    """
    problems: list[str] = []

    async def visit(server: Process, breaks: bool = False, url: str = "", **options: Any) -> Page:
        def on_console(message: ConsoleMessage) -> None:
            if message.type == "error" and not (breaks and "Failed to load" in message.text):
                problems.append(message.text)

        url = url or server.url
        page = await browser.new_page(**options)
        page.set_default_timeout(10_000)
        page.on("console", on_console)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on(
            "request",
            lambda r: None if r.url.startswith((url, "blob:")) else problems.append(r.url),
        )
        await page.goto(url)
        return page

    yield visit
    assert problems == []


async def ask(page: Page, message: str) -> None:
    await page.locator("#message").fill(message)
    await expect(page.locator("#send")).to_be_enabled()
    await page.keyboard.press("Enter")


async def restored(page: Page) -> None:
    """Wait until a page that was just loaded takes a message."""
    await expect(page.locator("#state")).not_to_have_attribute("data-state", "connecting")


async def ended(page: Page) -> None:
    await expect(page.get_by_role("log").locator("[aria-busy=true]")).to_have_count(0)


async def answer_of(page: Page) -> str:
    """Return the text of the last answer once it is whole."""
    await ended(page)
    return await page.locator(".turn.agent").last.locator(".markdown").last.inner_text()


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name)


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
    await expect(page.get_by_role("textbox")).to_be_focused()
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


async def test_two_tools_run_side_by_side(launch: Launch, visit: Launch) -> None:
    page = await visit(await launch())
    await ask(page, "Wait 6 seconds, and what is 6 * 7?")
    cards = page.locator("details.tool")
    waiting, calculated = (cards.filter(has_text=tool) for tool in ("wait", "calculate"))
    await expect(calculated).to_have_attribute("data-state", "ok")
    await expect(waiting).to_have_attribute("data-state", "running")
    await expect(waiting.locator(".state")).to_have_text(re.compile(r"· [1-5] s"))
    await expect(waiting).to_have_attribute("data-state", "ok")
    await waiting.locator("summary").click()
    await expect(waiting.locator("li").first).to_be_visible()
    await expect(waiting.locator("pre").first).to_contain_text('"seconds": 6')


async def test_escape_stops_and_the_question_can_be_asked_again(
    launch: Launch, visit: Launch, upstream: Upstream
) -> None:
    upstream.replies = [[*text("Half"), STALL], text("Whole.")]
    page = await visit(await launch(OPENAI_BASE_URL=upstream.url))
    await ask(page, "hi")
    await expect(page.get_by_role("log")).to_contain_text("Half")
    await page.keyboard.press("Escape")
    await upstream.dropped.wait()
    await ended(page)
    await expect(page.get_by_role("log")).to_contain_text("Stopped")
    await expect(page.get_by_role("textbox")).to_be_focused()
    await button(page, "Retry").click()
    assert await answer_of(page) == "Whole."


async def test_stop_does_not_wait_for_a_server_that_hangs(
    launch: Launch, visit: Launch, upstream: Upstream
) -> None:
    upstream.replies = [[*text("Half"), STALL]]
    server = await launch(OPENAI_BASE_URL=upstream.url)
    page = await visit(server, breaks=True)
    # Stop takes the place of Send, where a second click comes soon.
    await page.get_by_role("textbox").fill("hi")
    await button(page, "Send").dblclick()
    await expect(page.get_by_role("log")).to_contain_text("Half")
    server.process.send_signal(signal.SIGSTOP)
    await button(page, "Stop").click()
    await expect(page.get_by_role("log")).to_contain_text("Stopped")
    await expect(button(page, "Retry")).to_be_visible()
    server.process.send_signal(signal.SIGCONT)


async def test_what_is_written_and_not_yet_taken_outlives_a_reload(
    launch: Launch, visit: Launch, upstream: Upstream
) -> None:
    upstream.replies = [[STALL], text("Answer.")]
    server = await launch(OPENAI_BASE_URL=upstream.url, MAX_RUNS="1")
    start = await (await server.ask("The only run at a time.")).until("start")
    await upstream.stalling.wait()
    page = await visit(server, breaks=True)
    box = page.get_by_role("textbox")
    await box.fill("A draft")
    await page.reload()
    await expect(box).to_have_value("A draft")
    await restored(page)
    async with page.expect_response(lambda response: response.status == 503):
        await page.keyboard.press("Enter")
    await expect(page.get_by_role("log")).to_contain_text("A draft")
    await page.reload()
    await restored(page)
    await expect(box).to_have_value("A draft")
    await server.call("POST", f"/api/runs/{start['run_id']}/cancel")
    await page.keyboard.press("Enter")
    await answer_of(page)
    await page.reload()
    await expect(page.get_by_role("log")).to_contain_text("Answer.")
    await expect(box).to_have_value("")


async def test_a_message_outlives_a_token_that_is_no_longer_good(
    launch: Launch, visit: Launch
) -> None:
    server = await launch(API_TOKEN="one")
    page = await visit(server, breaks=True)
    token = page.get_by_label("access token")
    await token.fill("one")
    await page.keyboard.press("Enter")
    await restored(page)
    server.process.kill()
    await server.process.wait()
    await launch("--port", server.url.rpartition(":")[2], API_TOKEN="two")
    await ask(page, "6 * 7")
    await expect(token).to_be_focused()
    await expect(token).to_have_value("one")
    await token.fill("two")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("textbox")).to_have_value("6 * 7")
    await restored(page)
    await button(page, "Send").click()
    await expect(page.get_by_role("log")).to_contain_text("42")


async def test_a_page_whose_server_does_not_answer_yet_reads_its_conversation_later(
    launch: Launch, visit: Launch
) -> None:
    page = await visit(await launch(), breaks=True)
    await ask(page, "6 * 7")
    await answer_of(page)
    await page.route("**/api/threads/**", lambda route: route.abort())
    await page.reload()
    await expect(page.locator("#state")).to_have_attribute("data-state", "away")
    await page.unroute("**/api/threads/**")
    await expect(page.get_by_role("log")).to_contain_text("42")
    await expect(page.locator("#state")).to_have_attribute("data-state", "ended")


async def test_a_reload_shows_each_answer_under_its_own_question(
    launch: Launch, visit: Launch, upstream: Upstream
) -> None:
    """Another page went on with the thread, while the run that this one knows is still kept."""
    upstream.replies = [text("One."), text("Two.")]
    server = await launch(OPENAI_BASE_URL=upstream.url)
    page = await visit(server)
    await ask(page, "one")
    await answer_of(page)
    thread_id = page.url.rpartition("/")[2]
    await server.run("two", thread_id=thread_id)
    await page.reload()
    answers = page.locator(".turn.agent .markdown")
    await expect(answers).to_have_text(["One.", "Two."])


async def test_several_questions_are_answered_together(launch: Launch, visit: Launch) -> None:
    page = await visit(await launch(AGENT="tests.agents:asking_twice"))
    await ask(page, "hi")
    question = page.locator(".question")
    await expect(question).to_contain_text("Question 1 of 2")
    await question.get_by_role("button", name="Reject").click()
    await expect(question).to_contain_text("Question 2 of 2")
    await question.get_by_role("button", name="Change").click()
    await question.get_by_role("button", name="Approve").click()
    await expect(page.locator("#message")).to_be_focused()
    await page.keyboard.type("No.")
    await page.keyboard.press("Enter")
    await expect(question.locator(".answered")).to_have_text(
        ["You approvedMay I do one?", "You answered: No.May I do two?"]
    )
    await ended(page)
    shown = await page.locator(".turn.agent .body").inner_text()
    await page.reload()
    await expect(page.locator(".question.closed .answered")).to_have_count(2)
    assert await page.locator(".turn.agent .body").inner_text() == shown
    await expect(page.locator(".turn.agent .markdown")).to_have_text(["One: True", "Two: No."])


STORY = [f"Line {n} of *many*.\n\n" for n in range(40)]


async def test_a_run_that_is_cut_reads_like_one_that_is_not(
    launch: Launch, visit: Launch, upstream: Upstream
) -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    cut = [*text(*STORY[:10]), gates[0], *text(*STORY[10:20]), gates[1], *text(*STORY[20:])]
    upstream.replies = [text(*STORY), cut]
    page = await visit(await launch(OPENAI_BASE_URL=upstream.url), breaks=True)
    await ask(page, "whole")
    whole = await answer_of(page)
    await ask(page, "cut")
    answer = page.locator(".turn.agent").last
    for gate, line in zip(gates, (9, 19), strict=True):
        await expect(answer).to_contain_text(f"Line {line} of")
        await button(page, "Cut connection").click()
        await expect(page.locator("#frames [data-name=lost]")).to_have_count(1 + line // 19)
        gate.set()
    assert await answer_of(page) == whole
    await expect(page.locator("#frames [data-name=connect]")).to_have_count(3)


async def test_a_reload_joins_the_run(launch: Launch, visit: Launch, upstream: Upstream) -> None:
    go = asyncio.Event()
    upstream.replies = [text("First."), [*text("Half, "), go, *text("and whole.")]]
    page = await visit(await launch(OPENAI_BASE_URL=upstream.url))
    await ask(page, "one")
    await answer_of(page)
    await ask(page, "two")
    log = page.get_by_role("log")
    await expect(log).to_contain_text("Half,")
    await page.reload()
    await expect(log).to_contain_text("Half,")
    await expect(log).to_contain_text("First.")
    go.set()
    assert await answer_of(page) == "Half, and whole."
    await expect(log.locator(".turn")).to_have_count(4)


async def test_a_server_that_was_killed_is_told_and_asked_again(
    launch: Launch, visit: Launch, upstream: Upstream
) -> None:
    upstream.replies = [[*text("Half"), STALL], text("Whole.")]
    server = await launch(OPENAI_BASE_URL=upstream.url)
    page = await visit(server, breaks=True)
    await ask(page, "hi")
    log = page.get_by_role("log")
    await expect(log).to_contain_text("Half")
    server.process.kill()
    await server.process.wait()
    await expect(page.locator("#state")).to_have_attribute("data-state", "reconnecting")
    port = server.url.rpartition(":")[2]
    await launch("--port", port, OPENAI_BASE_URL=upstream.url)
    await expect(log).to_contain_text("may have been restarted", timeout=20_000)
    await button(page, "Retry").click()
    assert await answer_of(page) == "Whole."


@pytest.mark.parametrize(
    ("choice", "words", "answer"),
    [("Approve", "", "True"), ("Reject", "", "False"), ("Answer", "Why?", "Why?")],
)
async def test_a_question_of_the_graph_is_answered(
    launch: Launch, visit: Launch, choice: str, words: str, answer: str
) -> None:
    server = await launch(AGENT="tests.agents:asking", RUN_TTL_S="0.1")
    page = await visit(server, breaks=True)
    await ask(page, "hi")
    form = page.locator(".question")
    await expect(form).to_contain_text("May I?")
    await page.wait_for_function(GONE)
    await page.reload()  # The run is forgotten by now, the question is not.
    if words:
        await expect(page.locator("#state")).to_have_attribute("data-state", "asking")
        await page.locator("#message").fill(words)
        await page.keyboard.press("Enter")
    else:
        await form.get_by_role("button", name=choice, exact=True).click()
    assert await answer_of(page) == f"Answered: {answer}"
    await expect(page.locator(".turn.user")).to_have_count(1)


def reviewing(*requests: Any, **config: Any) -> dict[str, Any]:
    return {"action_requests": requests, "review_configs": [{"action_name": "f", **config}]}


QUESTIONS: list[tuple[Any, Any]] = [
    (reviewing({"name": "f", "description": None}), {"decisions": [{"type": "approve"}]}),
    (reviewing({"name": "f"}, allowed_decisions=["approve"]), {"decisions": [{"type": "approve"}]}),
    # What is no review is a question like any other.
    (reviewing({"name": "f"}, allowed_decisions=["sing"]), True),
    (reviewing({"name": "f"}, None), True),
    (reviewing(), True),
    ({"type": "tool_approval", "name": 7}, True),
    (None, True),
]


async def test_whatever_a_graph_asks_can_be_answered(launch: Launch, visit: Launch) -> None:
    page = await visit(await launch(AGENT="tests.agents:asking_anything"))
    for value, answer in QUESTIONS:
        await ask(page, json.dumps(value))
        await page.locator(".question").get_by_role("button", name="Approve").click()
        assert await answer_of(page) == f"Answered: {json.dumps(answer)}"
        await button(page, "New chat").click()


async def test_an_answer_that_does_not_arrive_can_be_given_again(
    launch: Launch, visit: Launch
) -> None:
    page = await visit(await launch(AGENT="tests.agents:asking"), breaks=True)
    await ask(page, "hi")
    approve = page.locator(".question").get_by_role("button", name="Approve")
    await expect(approve).to_be_visible()
    await page.route("**/api/chat", lambda route: route.fulfill(status=404, json={"error": {}}))
    await approve.click()
    await expect(page.locator(".failure")).to_be_visible()
    await page.unroute("**/api/chat")
    await approve.click()
    assert await answer_of(page) == "Answered: True"
    await expect(page.locator(".failure")).to_have_count(0)


async def test_another_question_leaves_the_agents_unanswered(launch: Launch, visit: Launch) -> None:
    page = await visit(await launch(AGENT="tests.agents:asking"))
    await ask(page, "hi")
    await button(page, "Ask something else").click()
    await expect(page.locator(".question")).to_have_count(0)
    await ask(page, "another")
    await expect(page.locator(".question")).to_contain_text("May I?")
    await expect(page.locator(".turn.user .body")).to_have_text(["hi", "another"])


GONE = """async () => {
  const run = await fetch(`/api/runs/${sessionStorage.getItem("run")}`);
  return run.status === 404;
}"""


async def test_a_tool_call_is_edited_before_it_runs(launch: Launch, visit: Launch) -> None:
    page = await visit(await launch(AGENT="tests.agents:reviewed"))
    await ask(page, "double it")
    form = page.locator(".question")
    await form.get_by_role("button", name="Edit").click()
    edited = form.get_by_label("n", exact=True)
    await edited.fill("{")
    await form.get_by_role("button", name="Approve").click()
    await expect(form.locator(":invalid").last).to_be_visible()
    await edited.fill("21")
    await form.get_by_role("button", name="Approve").click()
    assert await answer_of(page) == "Done."
    await page.locator("details.tool summary").click()
    await expect(page.locator("details.tool pre").last).to_contain_text("42")


async def test_an_input_method_keeps_its_enter(launch: Launch, visit: Launch) -> None:
    page = await visit(await launch(), locale="ja-JP")
    box = page.get_by_role("textbox")
    await box.focus()
    typing = await page.context.new_cdp_session(page)
    await typing.send(
        "Input.imeSetComposition", {"text": "とうきょう", "selectionStart": 5, "selectionEnd": 5}
    )
    enter = {"key": "Process", "code": "Enter", "windowsVirtualKeyCode": 229}
    await typing.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **enter})
    # Safari ends the composition before its Enter, and tells so by the code alone.
    await box.dispatch_event("keydown", {"key": "Enter", "keyCode": 229})
    await box.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    await expect(page.locator(".turn")).to_have_count(0)
    await restored(page)
    await typing.send("Input.insertText", {"text": "東京の時刻は"})
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("?")
    await expect(box).to_have_value("東京の時刻は\n?")
    await page.keyboard.press("Enter")
    await expect(page.locator("details.tool")).to_contain_text("current_time")
    await ended(page)


ATTACKS = """\
<img src=x onerror=alert(1)><script>alert(2)</script><svg onload=alert(3)>

[one](javascript:alert(4)) [two](data:text/html,<script>alert(5)</script>)
[three](https://a.example) [four](vbscript:x) [five]( java&#10;script:x )
![picture](https://evil.example/x.png) <https://b.example>

| a | b |
|---|---|
| <img src=x onerror=alert(6)> | `x` |
"""


async def test_an_answer_that_attacks_does_nothing(
    launch: Launch, visit: Launch, upstream: Upstream
) -> None:
    nested = ">" * 1000 + " deep\n\n" + "*" * 2000 + "\n\n" + "[" * 2000 + "\n\n```js\nnever closed"
    upstream.replies = [text(*(ATTACKS + nested))]
    page = await visit(await launch(OPENAI_BASE_URL=upstream.url))
    await ask(page, "<img src=x onerror=alert(7)>")
    log = page.get_by_role("log")
    await expect(log).to_contain_text("never closed", timeout=30_000)
    await ended(page)
    assert await log.locator("img, script, svg, iframe, style, object").count() == 0
    assert await log.evaluate(
        "log => [...log.querySelectorAll('*')].every(el => [...el.attributes].every("
        "({name}) => !name.startsWith('on') && name !== 'style'))"
    )
    links = await log.locator("a").evaluate_all("links => links.map(link => link.href)")
    assert {link.split(":")[0] for link in links} == {"https"}
    await expect(log).to_contain_text("<img src=x onerror=alert(1)>")


async def test_offline_is_told_and_made_good(
    launch: Launch, visit: Launch, upstream: Upstream
) -> None:
    go = asyncio.Event()
    upstream.replies = [[*text("Half, "), go, *text("and whole.")]]
    page = await visit(await launch(OPENAI_BASE_URL=upstream.url), breaks=True)
    await ask(page, "hi")
    await expect(page.get_by_role("log")).to_contain_text("Half,")
    await page.context.set_offline(True)
    # What is open stays open for Chromium, so the cut is made by hand.
    await button(page, "Cut connection").click()
    await expect(page.locator("#state")).to_have_attribute("data-state", "offline")
    go.set()
    await page.context.set_offline(False)
    assert await answer_of(page) == "Half, and whole."


async def test_the_wire_panel_warns_of_what_buffers(
    launch: Launch, visit: Launch, upstream: Upstream
) -> None:
    server = await launch(OPENAI_BASE_URL=upstream.url)

    async def hold_back(request: web.Request) -> web.Response:
        async with server.session.request(
            request.method, request.path_qs, data=await request.read(), headers=request.headers
        ) as response:
            headers = {"Content-Type": response.headers.get("Content-Type", "")}
            return web.Response(status=response.status, body=await response.read(), headers=headers)

    proxy = web.Application()
    proxy.router.add_route("*", "/{path:.*}", hold_back)
    runner, url = await listen(proxy)

    async def warns(through: str) -> bool:
        slow = [asyncio.Event(), asyncio.Event()]
        upstream.requests.clear()
        upstream.stalling.clear()
        upstream.replies = [[*text("One "), slow[0], *text("two "), slow[1], *text("three.")]]
        page = await visit(server, url=through)
        await ask(page, "hi")
        await upstream.stalling.wait()
        for seconds, event in enumerate(slow, 1):
            asyncio.get_running_loop().call_later(seconds, event.set)
        await expect(page.get_by_role("log")).to_contain_text("three.")
        await ended(page)
        warning = await page.locator("#wire-warning").inner_text()
        await page.close()
        return "proxy" in warning

    try:
        assert await warns(url)
        # A pause of the machine holds frames back, too.
        assert not all([await warns(server.url), await warns(server.url)])
    finally:
        await runner.cleanup()


async def test_it_does_not_fight_who_scrolls(
    launch: Launch, visit: Launch, upstream: Upstream
) -> None:
    go = asyncio.Event()
    upstream.replies = [[*text(*STORY), go, *text(*STORY, "The end.")]]
    page = await visit(await launch(OPENAI_BASE_URL=upstream.url), reduced_motion="reduce")
    await ask(page, "hi")
    await expect(page.get_by_role("textbox")).to_be_focused()
    await expect(page.get_by_role("log")).to_contain_text("Line 39 of")
    assert await page.evaluate("document.getAnimations().length") == 0
    await page.locator("#scroll").hover()
    await page.mouse.wheel(0, -400)
    await expect(button(page, "To the end")).to_be_visible()
    top = await page.evaluate("document.querySelector('#scroll').scrollTop")
    go.set()
    await ended(page)
    assert await page.evaluate("document.querySelector('#scroll').scrollTop") == top
    await button(page, "To the end").click()
    await expect(page.get_by_text("The end.")).to_be_in_viewport()


async def test_the_end_key_follows_again(launch: Launch, visit: Launch, upstream: Upstream) -> None:
    go = asyncio.Event()
    upstream.replies = [[*text(*STORY), go, *text(*STORY, "The end.")]]
    page = await visit(await launch(OPENAI_BASE_URL=upstream.url))
    await ask(page, "hi")
    await expect(page.get_by_role("log")).to_contain_text("Line 39 of")
    await page.locator("#scroll").focus()
    await page.keyboard.press("Home")
    await page.wait_for_function("() => document.querySelector('#scroll').scrollTop === 0")
    await page.keyboard.press("End")
    go.set()
    await expect(page.get_by_text("The end.")).to_be_in_viewport()


async def test_a_small_screen_begins_at_the_welcome(launch: Launch, visit: Launch) -> None:
    page = await visit(await launch(), viewport={"width": 320, "height": 480})
    await restored(page)
    await page.evaluate("new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)))")
    assert await page.evaluate("document.querySelector('#scroll').scrollTop") == 0


async def test_content_that_shrinks_is_no_reader_who_scrolls(
    launch: Launch, visit: Launch, upstream: Upstream
) -> None:
    page = await visit(await launch(), viewport={"width": 360, "height": 500})
    for question in ("Wait 2 seconds, and what is 6 * 7?", "Wait 2 seconds, and what is 1 / 0?"):
        await ask(page, question)
        await answer_of(page)
    await expect(page.locator(".meta").last).to_be_in_viewport()
    await expect(page.locator("#to-end")).to_be_hidden()


async def test_a_tool_that_a_person_changed_shows_its_new_input_after_a_reload(
    launch: Launch, visit: Launch
) -> None:
    page = await visit(await launch(AGENT="tests.agents:reviewed"))
    await ask(page, "double it")
    await expect(page.locator(".question")).to_be_visible()
    await page.reload()
    await page.locator(".question").get_by_role("button", name="Edit").click()
    await page.get_by_label("n", exact=True).fill("21")
    await page.locator(".question").get_by_role("button", name="Approve").click()
    assert await answer_of(page) == "Done."
    await expect(page.locator(".tool .gist")).to_have_text("n: 21")
    await expect(page.locator(".answered")).to_contain_text("You changed and approved")
    took = await page.locator(".meta").inner_text()
    await page.reload()
    await expect(page.locator(".answered")).to_contain_text("You changed and approved")
    await expect(page.locator(".meta")).to_have_text(took)
