"""The README's code blocks and commands, run as they stand there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from playwright.async_api import Browser, Route, expect

from edge.settings import Settings
from tests.client import FRAME, Event, kinds
from tests.conftest import ROOT, Process
from tests.programs import require
from tests.test_frontends import packages  # noqa: F401
from tests.test_page import browser  # noqa: F401

Launch = Callable[..., Awaitable[Process]]

README = (ROOT / "README.md").read_text()
JAPANESE = (ROOT / "README.ja.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [code for name, code in found if name == language]


def test_every_block_is_one_that_a_test_here_knows() -> None:
    """A new block fails this test until another one runs it."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
    assert [language for language, _ in found] == [
        *("sh", "powershell", "sh", "", "sh"),  # start it, watch it, resume and stop
        *("sh", "python", "sh"),  # a model and a graph
        *("js", "jsx", "js"),  # pages
        *("sh", "", "sh"),  # the container, the files, the tests
    ]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 250


async def first_line(command: str, cwd: Path, timeout_s: float = 60) -> str:
    """Run a command of the README in a shell until the server says that it serves."""
    process = await asyncio.create_subprocess_shell(
        f"exec 2>&1; {command.strip()} --port 0",
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout
    try:
        async with asyncio.timeout(timeout_s):
            async for line in process.stdout:
                if line.startswith((b"Serving", b"AGENT")):
                    return line.decode()
        return ""
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def here(command: str) -> str:
    """Return a command with this Python and this server's own path."""
    return command.replace(".venv/bin/python", sys.executable).replace(
        "app.py", str(ROOT / "app.py")
    )


@pytest.mark.slow
async def test_the_first_command_starts_the_server_from_a_fresh_copy(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns(".*", "node_modules", "__pycache__", "*.db*")
    shutil.copytree(ROOT, tmp_path / "copy", ignore=ignored)
    line = await first_line(blocks("sh")[0], tmp_path / "copy", 150)
    assert line.startswith("Serving the built-in agent (demo model, no key needed) on http://127.")


def test_the_command_for_windows_is_the_same() -> None:
    [windows], [unix, *_] = blocks("powershell"), blocks("sh")
    assert windows == unix.replace("python3", "py").replace(" && ", "; ").replace(
        ".venv/bin/", ".venv\\Scripts\\"
    )
    for text in (README, JAPANESE):
        assert (blocks("powershell", text), blocks("sh", text)[0]) == ([windows], unix)


async def test_the_command_for_a_model_starts_with_it(tmp_path: Path) -> None:
    [command] = [block for block in blocks("sh") if block.startswith("OPENAI_API_KEY")]
    line = await first_line(here(command.replace("…", "x")), tmp_path)
    assert line.startswith("Serving the built-in agent (gpt-5-mini) on ")


@pytest.mark.parametrize("text", [README, JAPANESE], ids=["English", "Japanese"])
async def test_the_graph_runs_as_it_stands(launch: Launch, tmp_path: Path, text: str) -> None:
    [code] = blocks("python", text)
    (tmp_path / "mine.py").write_text(code)
    [command] = [block for block in blocks("sh", text) if "AGENT=mine:graph" in block]
    assert (await first_line(here(command), tmp_path)).startswith("Serving mine:graph on ")
    server = await launch(AGENT="mine:graph")  # It starts in that folder.
    assert (await server.run("hello"))[-2]["content"].endswith(": hello")


async def test_the_command_for_an_example_starts_it(tmp_path: Path) -> None:
    [command] = re.findall("`(cd examples && .*?)`", README)
    line = await first_line(command.replace("../.venv/bin/python", sys.executable), ROOT)
    assert line.startswith("Serving approval:graph on ")


async def test_the_curl_command_prints_what_the_readme_shows(launch: Launch) -> None:
    require("curl")
    server = await launch()
    [command] = [block for block in blocks("sh") if "東京" in block]
    process = await asyncio.create_subprocess_shell(
        command.replace("localhost:8000", server.url), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    [shown] = [block for block in blocks("") if block.startswith("retry: 2000")]
    printed = events_in(out)
    for event in events_in(shown.encode()):
        same = [e for e in printed if e["type"] == event["type"] and e.keys() == event.keys()]
        assert same, event
        if event["type"] == "tool_call":
            assert event["input"] in [e["input"] for e in same]
    assert kinds(printed)[-1] == "done"


def events_in(raw: bytes) -> list[Event]:
    return [json.loads(data) for _, data, _ in FRAME.findall(raw + b"\n")]


async def test_the_three_commands_show_a_resume_and_a_stop(launch: Launch) -> None:
    require("curl")
    server = await launch()
    [commands] = [block for block in blocks("sh") if "wait 20 seconds" in block]
    ask, resume, stop = commands.replace("localhost:8000", server.url).splitlines()
    first = await asyncio.create_subprocess_shell(ask, stdout=asyncio.subprocess.PIPE)
    assert first.stdout
    seen = await first.stdout.readuntil(b"id: 5\n\n")
    first.kill()
    run_id = events_in(seen)[0]["run_id"]
    second = await asyncio.create_subprocess_shell(
        resume.replace("53fe…", run_id), stdout=asyncio.subprocess.PIPE
    )
    assert second.stdout
    seen = await second.stdout.readuntil(b"id: 6\n\n")
    third = await asyncio.create_subprocess_shell(
        stop.replace("53fe…", run_id), stdout=asyncio.subprocess.PIPE
    )
    document, _ = await third.communicate()
    assert json.loads(document)["status"] == "cancelled"
    out = seen + await second.stdout.read()
    ids = [int(id_) for _, _, id_ in FRAME.findall(out)]
    assert ids == [*range(6, 6 + len(ids))]
    assert events_in(out)[-1]["reason"] == "cancelled"


async def test_the_javascript_runs_as_it_stands(launch: Launch, tmp_path: Path) -> None:
    require("node")
    server = await launch()
    [code] = [block for block in blocks("js") if "streamChat" in block]
    shutil.copy(ROOT / "static/stream.js", tmp_path / "stream.js")
    # A page has a document, and paths are those of its own server.
    page = f"""
        let text = "";
        globalThis.document = {{ body: {{ append: (piece) => (text += piece) }} }};
        const fetched = globalThis.fetch;
        globalThis.fetch = (path, options) => fetched(new URL(path, "{server.url}"), options);
    """
    (tmp_path / "page.mjs").write_text(page)
    (tmp_path / "code.mjs").write_text(f'import "./page.mjs";\n{code}')
    (tmp_path / "package.json").write_text('{"type": "module"}')
    node = await asyncio.create_subprocess_exec(
        "node", "code.mjs", cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await node.communicate()
    assert out.decode().strip() == "completed"


@pytest.mark.slow
async def test_the_page_with_usechat_runs_as_it_stands(
    launch: Launch,
    browser: Browser,  # noqa: F811
    packages: Path,  # noqa: F811
) -> None:
    server = await launch()
    [code] = blocks("jsx")
    shown = 'import { createRoot } from "react-dom/client";\n'
    shown += "createRoot(document.body).render(<Chat />);"
    bundle = subprocess.run(
        [
            *(packages / "node_modules/.bin/esbuild", "--bundle", "--format=esm", "--loader=jsx"),
            *("--jsx=automatic", '--define:process.env.NODE_ENV="production"'),
        ],
        input=code + shown,
        cwd=packages,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    async def serve(route: Route) -> None:
        await route.fulfill(
            body=f"<body></body><script type=module>{bundle}</script>", content_type="text/html"
        )

    page = await browser.new_page()
    await page.route(f"{server.url}/front/", serve)
    await page.goto(f"{server.url}/front/")
    await page.get_by_role("textbox").fill("6 * 7")
    await page.keyboard.press("Enter")
    await expect(page.locator("body")).to_contain_text("42")


@pytest.mark.slow
async def test_the_program_for_ag_ui_runs_as_it_stands(
    launch: Launch,
    packages: Path,  # noqa: F811
) -> None:
    server = await launch()
    [code] = [block for block in blocks("js") if "@ag-ui" in block]
    code = code.replace("http://127.0.0.1:8000", server.url)
    node = await asyncio.create_subprocess_exec(
        *(require("node"), "--input-type=module", "-e", code),
        cwd=packages,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await node.communicate()
    assert b"42" in out


def test_the_table_of_settings_has_their_defaults() -> None:
    settings = Settings()
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \| (\S+) \| ", README, re.M)
    assert len(rows) > 10
    for names, shown in rows:
        for name in re.findall(r"\w+", names):
            default = getattr(settings, name.lower())
            if isinstance(default, int | float) and not names.count(","):
                assert shown == f"{default:g}" or shown == str(default), name
