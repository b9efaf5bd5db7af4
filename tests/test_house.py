"""The house: which room may import which, and the tables that the contract and the code share."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge.requests import REFUSALS
from edge.settings import Settings
from events import StreamEvent
from graphs.failures import FAILURES
from tests.conftest import ROOT

FLOORS = [
    {"events"},
    {"graphs"},
    {"threads"},
    {"agent"},
    {"runs"},
    {"builtin", "dialects"},
    {"edge"},
    {"app"},
]
"""The rooms from the ground up: each may import what lies below it, and itself."""

CONTRACT = (ROOT / "docs/protocol.md").read_text()


def rooms() -> dict[Path, str]:
    files = [*ROOT.glob("*.py")]
    files += [f for room in ROOT.glob("*/__init__.py") for f in room.parent.glob("*.py")]
    found = {file: file.relative_to(ROOT).parts[0].removesuffix(".py") for file in files}
    return {file: room for file, room in found.items() if room != "tests"}


def imports(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            names.add(node.module or "")
    return names


def test_imports_go_one_way() -> None:
    floor = {room: n for n, names in enumerate(FLOORS) for room in names}
    assert {*rooms().values()} <= floor.keys()
    for file, room in rooms().items():
        used = {name.partition(".")[0] for name in imports(file)} & floor.keys() - {room}
        assert not [name for name in used if floor[name] >= floor[room]], file


def test_each_room_knows_no_more_than_it_promises() -> None:
    for file, room in rooms().items():
        used = {name.partition(".")[0] for name in imports(file)}
        allowed = {
            "events": sys.stdlib_module_names,
            "dialects": sys.stdlib_module_names | {"events", "dialects"},
            "builtin": used - {"events", "threads", "agent", "runs", "aiohttp"},
            "threads": used - {"agent", "runs", "aiohttp"},
            "runs": used - {"aiohttp", "langchain_core", "langgraph"},
            "agent": used - {"aiohttp", "runs"},
        }.get(room, used)
        assert used <= allowed | {"__future__"}, file


def test_one_process_with_memory_loads_neither_redis_nor_databases() -> None:
    loaded = (
        "import sys, app, builtin.agent; print([m for m in sys.modules if m.partition('.')[0] in "
        "('redis', 'psycopg', 'aiosqlite', 'openai') or m in ('runs.redis', 'threads.database')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def section(title: str) -> str:
    found = re.search(rf"^#+ {re.escape(title)}$(.*?)^#+ ", CONTRACT, re.M | re.S)
    assert found, title
    return found[1]


def test_refusals_are_those_of_the_contract() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (.*) \|$", section("Refusals"), re.M)
    promised = {
        code: int(status) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)
    }
    promised.pop("run_id")
    promised.pop("ref")
    assert promised == {code: status for code, (status, _) in REFUSALS.items()}


def test_failures_are_those_of_the_contract() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (yes|no)(, .*)? \|$", section("What always holds"), re.M)
    promised = {code: retryable == "yes" for code, retryable, _ in rows}
    assert promised.keys() == {failure.code for failure in FAILURES.values()}
    for failure in FAILURES.values():
        # Some failures of a code are worth a second try and some are not: the contract says which.
        both = [but for code, _, but in rows if code == failure.code and but]
        assert failure.retryable == promised[failure.code] or both, failure


def test_events_and_their_fields_are_those_of_the_contract() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \| ", section("Frames"), re.M))
    told = dict(re.findall(r"^ {4}(\w+) +([a-z].*)$", StreamEvent.__doc__ or "", re.M))
    assert rows.keys() == told.keys() - {"type"}
    fields = StreamEvent.__dataclass_fields__.keys()
    for type_, text in rows.items():
        # What stands in brackets are a field's values or parts.
        names = {*re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", text))} & fields
        assert names == {*re.findall(r"\w+", re.sub("``.*?``", "", told[type_]))} & fields, type_


@pytest.mark.parametrize("name", Settings.__dataclass_fields__)
def test_each_setting_is_in_the_contract(name: str) -> None:
    assert f"`{name.upper()}`" in section_to_the_end("Settings")


def section_to_the_end(title: str) -> str:
    return CONTRACT.partition(f"## {title}\n")[2]
