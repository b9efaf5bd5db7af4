"""The React page with the real React, and the types of all of the page's JavaScript."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, Route, expect

from tests.conftest import ROOT, Process
from tests.programs import install, require
from tests.test_page import Launch, browser  # noqa: F401
from tests.upstream import STALL, Upstream, text

pytestmark = pytest.mark.slow

HTML = (ROOT / "static/react/index.html").read_text()
MAP = re.search('<script type="importmap">(.*?)</script>', HTML, re.S)
assert MAP
MODULES: dict[str, str] = json.loads(MAP[1])["imports"]
"""Where React comes from: the address of each module."""

NAMES = {
    "react": (
        "StrictMode, createElement, useCallback, useEffect, useRef, useState, version, "
        "__CLIENT_INTERNALS_DO_NOT_USE_OR_WARN_USERS_THEY_CANNOT_UPGRADE"
    ),
    "react-dom/client": "createRoot",
}


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of the import map's versions, and what tools need."""
    path = tmp_path_factory.mktemp("react")
    pinned = {
        f"{name.split('/')[0]}@{re.search(r'@([0-9.]+)', url)[1]}" for name, url in MODULES.items()
    }
    install(path, *pinned, "esbuild@0.28", "typescript@6", "@types/react@19", "@types/react-dom@19")
    return path


@pytest.fixture(scope="session")
def bundles(packages: Path) -> dict[str, str]:
    """Each module of the import map as the script that is served for its address."""
    scripts = {}
    for name, url in MODULES.items():
        entry = packages / "entry.mjs"
        entry.write_text(f"export {{ {NAMES[name]} }} from {json.dumps(name)};")
        # React is one for all: what asks for it with `require` gets what the map names.
        banner = 'import * as React from "react"; const require = () => React;'
        shared = ["--external:react", f"--banner:js={banner}"] if name != "react" else []
        done = subprocess.run(
            [
                str(packages / "node_modules/.bin/esbuild"),
                *(entry.name, "--bundle", "--format=esm", *shared),
                '--define:process.env.NODE_ENV="development"',
            ],
            cwd=packages,
            capture_output=True,
            text=True,
            timeout=150,
            check=True,
        )
        scripts[url] = done.stdout
    return scripts


@pytest.fixture
async def visit(
    browser: Browser,  # noqa: F811
    bundles: dict[str, str],
) -> AsyncIterator[Any]:
    """Open the React page; at the end nothing may have gone wrong in it."""
    problems: list[str] = []

    async def serve(route: Route) -> None:
        await route.fulfill(
            body=bundles[route.request.url],
            content_type="text/javascript",
            headers={"Access-Control-Allow-Origin": "*"},
        )

    async def visit(server: Process) -> Page:
        page = await browser.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        await page.route("https://esm.sh/**", serve)
        await page.goto(f"{server.url}/static/react/index.html")
        return page

    yield visit
    assert problems == []


async def ask(page: Page, question: str) -> None:
    await page.get_by_role("textbox").fill(question)
    await page.keyboard.press("Enter")


async def test_react_shows_a_run(launch: Launch, visit: Any) -> None:
    page = await visit(await launch())
    await ask(page, "12 * (3 + 4) と東京の時刻は?")
    await expect(page.locator(".tool[data-state=ok]")).to_have_count(2)
    await expect(page.locator(".text")).to_contain_text("84")
    await expect(page.get_by_role("button", name="Send")).to_be_visible()
    await expect(page.locator("[aria-busy=true]")).to_have_count(0)
    await ask(page, "times 2")
    await expect(page.locator(".text").last).to_contain_text("168")


async def test_react_stops_a_run_and_lets_go_of_it(
    launch: Launch, visit: Any, upstream: Upstream
) -> None:
    upstream.replies = [[*text("Half"), STALL]]
    page = await visit(await launch(OPENAI_BASE_URL=upstream.url, DISCONNECT_GRACE_S="0"))
    await ask(page, "hi")
    await expect(page.locator(".text")).to_have_text("Half")
    await page.get_by_role("button", name="Stop").click()
    await upstream.dropped.wait()
    await expect(page.get_by_role("button", name="Send")).to_be_visible()
    upstream.dropped.clear()
    await ask(page, "again")
    await expect(page.locator(".text")).to_have_text(["Half", "Half"])
    # Who leaves no longer reads, and with no grace that ends the run.
    await page.goto("about:blank")
    await upstream.dropped.wait()


async def test_react_answers_a_question(launch: Launch, visit: Any) -> None:
    page = await visit(await launch(AGENT="tests.agents:asking"))
    await ask(page, "hi")
    await expect(page.get_by_role("log")).to_contain_text("May I?")
    await page.get_by_role("button", name="Approve").click()
    await expect(page.locator(".text")).to_have_text("Answered: True")


async def test_only_the_react_page_may_load_react(launch: Launch) -> None:
    server = await launch()
    assert MAP
    digest = base64.b64encode(hashlib.sha256(MAP[1].encode()).digest()).decode()
    policy = re.search('<meta http-equiv="Content-Security-Policy" content="(.*?)">', HTML)
    assert policy
    assert policy.end() < MAP.start(), "a policy holds for what follows it"
    assert f"script-src 'self' https://esm.sh 'sha256-{digest}'" in policy[1]
    assert "default-src 'self'" in policy[1]
    assert "unsafe" not in policy[1]
    async with server.session.get("/static/react/index.html") as response:
        assert policy[0] in await response.text()
        # Policies add up: a header without esm.sh would forbid what the page allows.
        assert "Content-Security-Policy" not in response.headers
    for path in ("/", "/static/style.css", "/static/nothing"):
        async with server.session.get(path) as response:
            sent = response.headers["Content-Security-Policy"]
            assert "esm.sh" not in sent
            assert "unsafe" not in sent


def test_the_types_of_the_javascript(packages: Path) -> None:
    config = {
        "compilerOptions": {
            **{"noEmit": True, "allowJs": True, "checkJs": True, "strict": True},
            **{"target": "es2024", "module": "esnext", "moduleResolution": "bundler"},
            "lib": ["es2024", "dom", "dom.iterable", "dom.asynciterable"],
            "paths": {
                "react": [f"{packages}/node_modules/@types/react/index.d.ts"],
                "react-dom/client": [f"{packages}/node_modules/@types/react-dom/client.d.ts"],
            },
            "types": [],
        },
        "include": [f"{ROOT}/static/**/*.js"],
    }
    (packages / "tsconfig.json").write_text(json.dumps(config))
    done = subprocess.run(
        [str(packages / "node_modules/.bin/tsc"), "-p", "tsconfig.json"],
        cwd=packages,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


ALONE = """
import { streamChat } from "./stream.js";

let text = "";
let connections = 0;
let deltas = 0;
const done = await streamChat("How do I use my own graph?", {
  url: `${process.argv[2]}/api/chat`,
  onOpen: ({ cut }) => {
    connections += 1;
    globalThis.cut = cut;
  },
  onEvent: (event) => {
    if (event.type === "text_delta") {
      text += event.content;
      deltas += 1;
      if (deltas === 5) globalThis.cut();
    }
    if (event.type === "final_answer" && event.content !== text) process.exitCode = 1;
  },
});
console.log(done.reason, connections);
"""


async def test_stream_js_works_alone(launch: Launch, tmp_path: Path) -> None:
    """Copied into an empty folder, through a cut in the middle."""
    (tmp_path / "stream.js").write_text((ROOT / "static/stream.js").read_text())
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "main.js").write_text(ALONE)
    server = await launch(DEMO_TOKENS_PER_S="100")
    done = subprocess.run(
        [require("node"), "main.js", server.url],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "completed 2\n", "")
