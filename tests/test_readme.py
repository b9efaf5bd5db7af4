"""The README's code blocks and commands, run as they stand there."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from edge.settings import Settings
from tests.client import FRAME, Event, kinds
from tests.conftest import ROOT, Process
from tests.programs import require

Launch = Callable[..., Awaitable[Process]]

README = (ROOT / "README.md").read_text()
JAPANESE = (ROOT / "README.ja.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [code for name, code in found if name == language]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 250


@pytest.mark.parametrize("text", [README, JAPANESE], ids=["English", "Japanese"])
async def test_the_graph_runs_as_it_stands(launch: Launch, tmp_path: Path, text: str) -> None:
    [code] = blocks("python", text)
    (tmp_path / "mine.py").write_text(code)
    [command] = [block for block in blocks("sh", text) if "AGENT=mine:graph" in block]
    assert command == "AGENT=mine:graph .venv/bin/python app.py\n"
    server = await launch(AGENT="mine:graph")  # It starts in that folder.
    assert (await server.run("hello"))[-2]["content"].endswith(": hello")


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


async def test_the_two_commands_show_a_resume(launch: Launch) -> None:
    require("curl")
    server = await launch()
    [commands] = [block for block in blocks("sh") if "wait 20 seconds" in block]
    ask, resume = commands.replace("localhost:8000", server.url).splitlines()
    first = await asyncio.create_subprocess_shell(
        ask.replace("20 seconds", "2 seconds"), stdout=asyncio.subprocess.PIPE
    )
    assert first.stdout
    seen = await first.stdout.readuntil(b"id: 5\n\n")
    first.kill()
    run_id = events_in(seen)[0]["run_id"]
    second = await asyncio.create_subprocess_shell(
        resume.replace("53fe…", run_id), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await second.communicate()
    ids = [int(id_) for _, _, id_ in FRAME.findall(out)]
    assert ids == [*range(6, 6 + len(ids))]
    assert events_in(out)[-1]["reason"] == "completed"


async def test_the_javascript_runs_as_it_stands(launch: Launch, tmp_path: Path) -> None:
    require("node")
    server = await launch()
    [code] = blocks("js")
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


def test_the_table_of_settings_has_their_defaults() -> None:
    settings = Settings()
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \| (\S+) \| ", README, re.M)
    assert len(rows) > 10
    for names, shown in rows:
        for name in re.findall(r"\w+", names):
            default = getattr(settings, name.lower())
            if isinstance(default, int | float) and not names.count(","):
                assert shown == f"{default:g}" or shown == str(default), name
