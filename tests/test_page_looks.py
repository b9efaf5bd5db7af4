"""How the page looks and feels: speed, weight, keyboard, accessibility, print, and the picture."""

# A fixture that is imported has the name of the argument that uses it.
# ruff: noqa: F811

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from tests.conftest import ROOT
from tests.programs import install, require
from tests.test_page import (
    Launch,
    answer_of,
    ask,
    browser,  # noqa: F401
    ended,
    restored,
    visit,  # noqa: F401
)
from tests.upstream import Upstream, text

pytestmark = pytest.mark.slow

ROUNDS = 8

# Resolves when the answer to what stands in the field is there. A test that looks again and again
# would itself be the longest task of the page.
ANSWERED = """() => new Promise((resolve) => {
  let begun = false;
  new MutationObserver(() => {
    const busy = document.querySelector("[aria-busy]") !== null;
    begun ||= busy;
    if (begun && !busy) requestAnimationFrame(() => setTimeout(resolve));
  }).observe(document.querySelector("#log"), {
    subtree: true, childList: true, attributeFilter: ["aria-busy"],
  });
  document.querySelector("#composer").requestSubmit();
})"""


async def longest_task_ms(browser: Browser, page: Page, script: str) -> float:
    """Run a script in the page and return the processor time of the longest task meanwhile.

    Other work on the machine makes a task last longer, but takes no processor time of the page.
    """
    await browser.start_tracing(page=page, categories=["toplevel", "devtools.timeline"])
    await page.evaluate(script)
    events = json.loads(await browser.stop_tracing())["traceEvents"]
    pages = {e["pid"] for e in events if e["name"] == "FunctionCall"}
    threads = {
        (e["pid"], e["tid"])
        for e in events
        if e["name"] == "thread_name" and e["args"]["name"] == "CrRendererMain"
    }
    tasks = [
        e.get("tdur", 0) / 1000
        for e in events
        if e["name"] == "ThreadControllerImpl::RunTask"
        and e["pid"] in pages
        and (e["pid"], e["tid"]) in threads
    ]
    assert len(tasks) > 10
    return max(tasks)


def paragraphs(tokens: int) -> list[Any]:
    return text(*(["**Word** ", "of `many`, ", "and\n- one\n", "- two\n\n", "so "] * (tokens // 5)))


async def test_a_long_answer_leaves_the_page_responsive_and_costs_linear_time(
    launch: Launch, visit: Launch, upstream: Upstream, browser: Browser
) -> None:
    server = await launch(OPENAI_BASE_URL=upstream.url)

    async def cost(tokens: int) -> tuple[float, float]:
        """Return the longest task in ms, and the processor time of the page's tasks in s."""
        upstream.replies = [paragraphs(tokens)]
        page = await visit(server)
        await restored(page)
        await page.locator("#message").fill("hi")
        measuring = await page.context.new_cdp_session(page)
        await measuring.send("Performance.enable", {"timeDomain": "threadTicks"})
        longest = await longest_task_ms(browser, page, ANSWERED)
        metrics = (await measuring.send("Performance.getMetrics"))["metrics"]
        worked = {metric["name"]: metric["value"] for metric in metrics}["TaskDuration"]
        await page.close()
        return longest, worked

    # The best of several rounds, since other work on the machine only ever adds.
    longest = half = whole = float("inf")
    for _ in range(ROUNDS):
        half = min(half, (await cost(2500))[1])
        task, worked = await cost(5000)
        longest, whole = min(longest, task), min(whole, worked)
        if longest < 50 and whole < 2.7 * half:
            return
    raise AssertionError(f"{longest} ms in one task; {half} s became {whole} s")


# Opens each card and shows all of its result.
OPENED = """async () => {
  const frame = () => new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)));
  for (const card of document.querySelectorAll("details.tool")) {
    card.querySelector("summary").click();
    while (!card.querySelector("pre button")) await frame();
    await frame();
    card.querySelector("pre button").click();
    await frame();
    await frame();
  }
}"""


async def test_a_large_tool_result_opens_in_short_tasks(
    launch: Launch, visit: Launch, browser: Browser
) -> None:
    server = await launch(AGENT="tests.agents:dumping")
    longest = float("inf")
    for _ in range(ROUNDS):
        page = await visit(server)
        await ask(page, "dump")
        await answer_of(page)
        assert await page.locator("details.tool").count() == 2
        longest = min(longest, await longest_task_ms(browser, page, OPENED))
        shown = await page.locator("details.tool").first.text_content()
        assert shown and len(shown) > 200_000
        await page.close()
        if longest < 50:
            return
    raise AssertionError(f"{longest} ms in one task")


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("axe")
    install(path, "axe-core@4")
    return (path / "node_modules/axe-core/axe.min.js").read_text()


LOOKS = [
    {"color_scheme": "light"},
    {"color_scheme": "dark"},
    {"color_scheme": "light", "locale": "ja-JP", "viewport": {"width": 360, "height": 800}},
]


@pytest.mark.parametrize("look", LOOKS, ids=["light", "dark", "narrow"])
async def test_everybody_can_use_it(
    launch: Launch, visit: Launch, upstream: Upstream, axe: str, look: dict[str, Any]
) -> None:
    async def check(page: Page) -> None:
        await page.evaluate(axe)
        violations = (await page.evaluate("axe.run()"))["violations"]
        assert [(v["id"], [node["html"] for node in v["nodes"]]) for v in violations] == []
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    look = {**look, "reduced_motion": "reduce"}
    page = await visit(await launch(), **look)
    await expect(page.locator("#suggestions button").first).to_be_visible()
    await check(page)
    await ask(page, "Wait 5 seconds; what is 6 * 7, 1 / 0, and 東京の時刻?")
    await expect(page.locator("details.tool[data-state=running]").first).to_be_visible()
    await check(page)
    await ended(page)
    for card in await page.locator("details.tool summary").all():
        await card.click()
    await page.locator("#threads-toggle").click()
    await check(page)
    if await page.locator("#drawer-close").is_visible():
        await page.keyboard.press("Escape")
        await page.locator("#wire-toggle").click()
        await check(page)
        await page.keyboard.press("Escape")
    await ask(page, "Wait 30 seconds")
    await expect(page.locator("details.tool[data-state=running]")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.locator("details.tool[data-state=cancelled]")).to_be_visible()
    await check(page)
    upstream.replies = [[*SAMPLE, {"error": {"message": "x"}}]]
    page = await visit(await launch(OPENAI_BASE_URL=upstream.url), **look)
    await ask(page, "hi")
    await expect(page.locator(".failure")).to_be_visible()
    await page.locator("details.reasoning summary").click()
    await check(page)
    page = await visit(await launch(AGENT="tests.agents:reviewed"), **look)
    await ask(page, "double it")
    await expect(page.locator(".question")).to_be_visible()
    await check(page)


ANSWER = """\
**12 × (3 + 4) is 84**, and in Tokyo it is just after three in the morning.

| city | time | offset |
|---|---|---|
| Tokyo | 03:05 | +09:00 |
| Berlin | 19:05 | +01:00 |

> Times change with the season, sums do not.

To have it again:

```python
from zoneinfo import ZoneInfo
print(datetime.now(ZoneInfo("Asia/Tokyo")))
```
"""
SAMPLE = [
    {"reasoning_content": "A sum and a time. Two tools can find them at once."},
    *text(*re.findall(r"\S+\s*", ANSWER)),
]


async def test_a_picture_of_the_page(launch: Launch, visit: Launch, tmp_path: Path) -> None:
    """With ``PICTURE=docs/page.png`` in the environment it becomes the README's."""
    path = Path(os.environ.get("PICTURE", tmp_path / "page.png"))
    page = await visit(
        await launch(DEMO_TOKENS_PER_S="50"),
        viewport={"width": 1160, "height": 760},
        device_scale_factor=1.25,
        reduced_motion="reduce",
    )
    await ask(page, "15% of 80, and what time is it in Tokyo?")
    await answer_of(page)
    await expect(page.locator(".meta")).to_contain_text("Took")
    path.write_bytes(await page.screenshot())
    assert path.stat().st_size > 50_000


# Japanese takes three bytes a letter.
@pytest.mark.parametrize(("locale", "most"), [("en", 150 * 1000), ("ja", 150 * 1024)])
async def test_a_visit_loads_little(launch: Launch, visit: Launch, locale: str, most: int) -> None:
    page = await visit(await launch(), viewport={"width": 1440, "height": 900}, locale=locale)
    await ask(page, "6 * 7")
    await answer_of(page)
    urls = await page.evaluate("performance.getEntriesByType('resource').map((e) => e.name)")
    names = {Path(url).name for url in urls if "/static/" in url}
    weight = sum(Path(ROOT, "static", name).stat().st_size for name in {*names, "index.html"})
    assert weight <= most, weight


def test_the_files_of_the_page_are_short() -> None:
    files = [path for path in Path(ROOT, "static").iterdir() if path.is_file()]
    lengths = {path.name: len(path.read_text().splitlines()) for path in files}
    assert {name: n for name, n in lengths.items() if n > 600} == {}


async def test_a_phone_has_one_row_of_header_and_targets_for_fingers(
    launch: Launch, visit: Launch
) -> None:
    page = await visit(await launch(), viewport={"width": 360, "height": 800})
    await ask(page, "6 * 7")
    await answer_of(page)
    header = await page.locator("header").bounding_box()
    assert header
    assert header["height"] < 60
    sizes = await page.locator("button:visible").evaluate_all(
        "all => all.map(el => [el.textContent, el.offsetWidth, el.offsetHeight])"
    )
    assert sizes
    assert [size for size in sizes if size[1] < 44 or size[2] < 44] == []


async def tab_to(page: Page, selector: str) -> None:
    """Press Tab until this has the focus, which has to be seen."""
    for _ in range(40):
        await page.keyboard.press("Tab")
        if await page.evaluate("s => document.activeElement.matches(s)", selector):
            outline = "getComputedStyle(document.activeElement).outlineStyle !== 'none'"
            assert selector == "#message" or await page.evaluate(outline)
            return
    raise AssertionError(f"no Tab leads to {selector}")


async def test_the_keyboard_alone_is_enough(launch: Launch, visit: Launch) -> None:
    page = await visit(await launch(), viewport={"width": 1440, "height": 900})
    press = page.keyboard.press
    await restored(page)
    await page.keyboard.type("6 * 7")
    await press("Enter")
    assert "42" in await answer_of(page)
    await tab_to(page, ".tool summary")
    await press("Enter")
    await expect(page.locator(".tool pre").last).to_contain_text("42")
    await tab_to(page, ".again")
    await press("Enter")
    await ended(page)
    await expect(page.locator("#message")).to_be_focused()
    await tab_to(page, ".turn.user button")
    await press("Enter")
    await expect(page.locator(".editor textarea")).to_be_focused()
    await press("Escape")
    await expect(page.locator(".turn.user button")).to_be_focused()
    await press("Enter")
    await expect(page.locator(".editor textarea")).to_be_focused()
    await press("Control+A")
    await page.keyboard.type("6 * 8")
    await press("Enter")
    assert "48" in await answer_of(page)
    await tab_to(page, "#frames summary")
    await press("Enter")
    await expect(page.locator("#frames pre")).to_be_visible()
    await tab_to(page, "#new")
    await press("Enter")
    await expect(page.locator(".turn")).to_have_count(0)
    await tab_to(page, "#notice button")
    await press("Enter")
    await expect(page.get_by_role("log")).to_contain_text("48")
    await tab_to(page, "#thread-list .delete")
    await press("Enter")
    await press("Enter")
    await expect(page.locator("#thread-list li")).to_have_count(0)
    await expect(page.locator("#new")).to_be_focused()


async def test_the_keyboard_alone_answers_the_agent(launch: Launch, visit: Launch) -> None:
    page = await visit(
        await launch(AGENT="tests.agents:reviewed"), viewport={"width": 360, "height": 800}
    )
    await restored(page)
    await page.keyboard.type("double it")
    await page.keyboard.press("Enter")
    await expect(page.locator("#message")).to_have_attribute("placeholder", "To reject, say why")
    await expect(page.locator("#message")).to_be_focused()
    await tab_to(page, "#threads-toggle")
    await page.keyboard.press("Enter")
    await expect(page.locator("#drawer-close")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.locator("#threads-toggle")).to_be_focused()
    await tab_to(page, "#wire-toggle")
    await page.keyboard.press("Enter")
    await expect(page.locator("#wire-close")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.locator("#wire-toggle")).to_be_focused()
    await tab_to(page, ".question .primary")
    await page.keyboard.press("Enter")
    assert await answer_of(page) == "Done."
    await expect(page.locator(".answered")).to_contain_text("You approved")
    await expect(page.locator("#message")).to_be_focused()


async def test_print_has_the_conversation_and_no_buttons(
    launch: Launch, visit: Launch, upstream: Upstream
) -> None:
    upstream.replies = [SAMPLE]
    page = await visit(await launch(OPENAI_BASE_URL=upstream.url))
    await ask(page, "hi")
    await ended(page)
    await page.emulate_media(media="print")
    for hidden in ("button", "textarea", "#wire", "#drawer", "header"):
        assert await page.locator(f"{hidden}:visible").count() == 0, hidden
    # All of it is on the paper, and nothing is cut.
    assert await page.evaluate(
        "document.body.scrollHeight >= document.querySelector('#log').scrollHeight"
    )
    for part in await page.locator("#log :is(pre, .table)").all():
        assert await part.evaluate("el => el.scrollWidth <= el.clientWidth")


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
