"""Claims about the tools of the built-in agent: what a search quotes, sums, times and waits."""

import asyncio
import json
import re
import threading
import zoneinfo
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import ToolException
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from builtin import tools
from builtin.tools import build_index, evaluate, find_passages, find_zone, make_tools

ROOT = Path(__file__).resolve().parent.parent
README = """# Harbour

A server that streams an agent's answer.

![A picture of the harbour](harbour.png)

## Quick start

```sh
# a comment, no heading
python app.py
```

## Settings

Each setting is an environment variable.

| variable | default | meaning |
|---|---|---|
| `PORT` | 8000 | the port to listen on |
| `HEARTBEAT_S` | 15 | seconds of silence before a heartbeat |

## Deploying

Publish the port only to the proxy. The proxy needs one line:

```nginx
proxy_buffering off;
```

Heartbeats keep a proxy from closing the stream.

- **Caddy** flushes each event by itself.
- **Traefik** does so, too, without `compress`.

## Cursor

A heartbeat moves no cursor. A cursor is an event id.
"""
GUIDE = (
    "# 手引き\n\n## 再接続\n\nSSEの接続が切れたら、送ります。\n\n## 果物\n\nりんごを食べます。\n"
)


def table(text: str) -> list[list[str]]:
    """Return the cells of ``a → b | c → d``."""
    return [
        cell.strip().split(" → ") for line in text.strip().split("\n") for cell in line.split("|")
    ]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(README, "utf-8")
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "ja.txt").write_text(GUIDE, "utf-8")
    (tmp_path / "latin1.md").write_bytes(b"# Caf\xe9\n\nEspresso caf\xe9\x00\x02.\n")
    (tmp_path / "folder.md").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.md").write_text("# Secret\n\nharpsichord\n", "utf-8")
    return tmp_path


def search(docs: Path, query: str) -> list[dict[str, str]]:
    return find_passages(build_index(docs), query)


def first_passage(folder: Path, text: str, query: str) -> str:
    """Return what a search quotes first from a file with this text."""
    (folder / "one.md").write_text(text, "utf-8")
    return search(folder / "one.md", query)[0]["passage"]


# Searching.

QUESTIONS = """
How do I change the port? → Settings | settings → Settings | HEARTBEAT_S の既定値は? → Settings
deploy nginx → Deploying | espresso → Caf\ufffd | Traefik の設定方法を教えて → Deploying
再接続 → 再接続 | 接続が切れたら? → 再接続 | SSE → 再接続 | りんごは? → 果物
"port → Settings | port OR → Settings | port* → Settings | NEAR(port → Settings
a:port → Settings | -port → Settings | port'; DROP → Settings | ポートは? → Settings
"""


@pytest.mark.parametrize(("query", "heading"), table(QUESTIONS))
def test_a_question_finds_its_section(docs: Path, query: str, heading: str) -> None:
    assert search(docs, query)[0]["heading"] == heading


@pytest.mark.parametrize(
    "query",
    ["", "?", "the of", "harpsichord", "zebra", "は", "\ud800", "___", "world cup of football"],
)
def test_what_is_not_there_gives_no_hits(docs: Path, query: str) -> None:
    assert search(docs, query) == []
    assert search(docs / "none", query) == []


def test_a_row_of_a_table_is_quoted_under_the_tables_head(docs: Path) -> None:
    rows = (
        "| variable | default | meaning |\n|---|---|---|\n| `PORT` | 8000 | the port to listen on |"
    )
    hit = {"source": "README.md", "heading": "Settings", "passage": rows}
    assert search(docs / "README.md", "How do I change the port?")[0] == hit


def test_the_name_of_a_section_finds_its_beginning(docs: Path) -> None:
    passage = search(docs, "settings")[0]["passage"]
    assert passage.startswith("Each setting is an environment variable.\n\n| variable |")
    assert passage.endswith("before a heartbeat |")


def test_an_item_of_a_list_is_quoted_from_its_own_line(docs: Path) -> None:
    passage = search(docs, "Traefik")[0]["passage"]
    assert passage == "- **Traefik** does so, too, without `compress`."


def test_a_comment_in_a_fence_is_no_heading(docs: Path) -> None:
    hit = search(docs, "comment")[0]
    assert hit["heading"] == "Quick start"
    assert hit["passage"] == "```sh\n# a comment, no heading\npython app.py\n```"


def test_a_picture_is_not_quoted(docs: Path) -> None:
    assert search(docs, "picture") == []


def test_an_unclosed_fence_ends_with_the_file(tmp_path: Path) -> None:
    assert first_passage(tmp_path, "# A\n```\n# needle\n", "needle") == "```\n# needle"


def test_a_fence_that_does_not_fit_is_left_out_whole(tmp_path: Path) -> None:
    text = "# A\n\nneedle\n\n```\n" + "line\n" * 200 + "```\n"
    assert first_passage(tmp_path, text, "needle") == "needle\n\n…"


@pytest.mark.parametrize("gap", ["![A picture](x.png)", "<br>", "```\n" + "line\n" * 400 + "```"])
def test_nothing_is_quoted_across_what_is_left_out(tmp_path: Path, gap: str) -> None:
    text = f"# A\n\n{gap}\n\nneedle:\n\n{gap}\n\nMore.\n"
    assert first_passage(tmp_path, text, "needle") == "needle:\n\n…"
    assert search(tmp_path, "line") == []


def test_a_sentence_that_ends_with_a_colon_keeps_its_command(tmp_path: Path) -> None:
    fence = "```\n" + "line\n" * 200 + "```"
    text = f"# A\n\nneedle:\n\n{fence}\n\nMore.\n"
    assert first_passage(tmp_path, text, "needle") == f"needle:\n\n{fence}\n\n…"


def test_the_head_of_a_table_keeps_a_row(tmp_path: Path) -> None:
    head, row = "| needle | b |\n|---|---|", f"| c | {'d ' * 400}|"
    text = f"# A\n\n{head}\n{row}\n{row}\n"
    assert first_passage(tmp_path, text, "needle") == f"{head}\n{row}\n\n…"


@pytest.mark.parametrize(
    ("unit", "end"), [("It has some words, and then it ends. ", "ends."), ("word ", "word")]
)
def test_a_long_text_is_cut_after_a_sentence_or_else_a_word(
    tmp_path: Path, unit: str, end: str
) -> None:
    (tmp_path / "one.md").write_text(f"# A\n\n{unit * 200}\n", "utf-8")
    passages = [row[0] for row in build_index(tmp_path).execute("SELECT passage FROM passages")]
    assert len(passages) > 1
    for passage in passages:
        assert passage.startswith(unit[:2])
        assert passage.removesuffix("\n\n…").endswith(end)
        assert len(passage) <= tools.MAX_PASSAGE_CHARS + len("\n\n…")


def test_a_long_text_is_quoted_where_its_match_is(tmp_path: Path) -> None:
    filler = "It has some words, and then it ends. " * 99
    passage = first_passage(tmp_path, f"# A\n\n{filler}A needle. {filler}", "needle")
    assert "A needle." in passage


def test_a_long_text_is_not_cut_in_inline_code(tmp_path: Path) -> None:
    (tmp_path / "one.md").write_text("# A\n\n" + "word `a. b. c. d` " * 200, "utf-8")
    passages = [row[0] for row in build_index(tmp_path).execute("SELECT passage FROM passages")]
    assert len(passages) > 1
    assert [passage.count("`") % 2 for passage in passages] == [0] * len(passages)


def test_a_text_without_any_border_is_still_quoted(tmp_path: Path) -> None:
    passage = first_passage(tmp_path, "# A\n\n" + "無" * 2000, "無無")
    assert passage == "無" * tools.MAX_PASSAGE_CHARS + "\n\n…"


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")), ids=lambda path: path.name)
def test_no_quotation_from_this_project_cuts_a_word_or_code(path: Path) -> None:
    text = path.read_text("utf-8")
    passages = build_index(path).execute("SELECT passage FROM passages").fetchall()
    assert len(passages) > 5
    for (passage,) in passages:
        quoted = passage.removesuffix("\n\n…")
        assert len(re.findall("(?m)^ *```", quoted)) % 2 == 0, quoted
        assert re.sub("(?s)```.*?```", "", quoted).count("`") % 2 == 0, quoted
        # The head of a table need not stand right before the row that is quoted.
        body = quoted.split("\n", 2)[-1] if quoted.startswith("|") else quoted
        begin = text.index(body)
        assert text[begin - 1].isspace(), quoted
        assert text[begin + len(body)].isspace(), quoted


async def test_searches_at_once_share_one_index(
    docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    begun, asked = threading.Event(), threading.Event()

    def slow(root: Path) -> Any:
        built.append(root)
        begun.set()
        assert asked.wait(60)
        return build_index(root)

    monkeypatch.setattr(tools, "build_index", slow)
    tool = make_tools(docs)[0]
    searches = [asyncio.create_task(tool.ainvoke({"query": "heartbeat"})) for _ in range(8)]
    assert await asyncio.to_thread(begun.wait, 60)
    asked.set()
    results = await asyncio.gather(*searches)
    assert [result["hits"][0]["heading"] for result in results] == ["Settings"] * 8
    assert built == [docs]


# Calculating.

VALUES = """
12 * (3 + 4) → 84 | 0.1 + 0.2 → 0.3 | 6 / 2 → 3 | 7 // 2 + 7 % 2 → 4 | 2^10 → 1024 | 12×3÷4 → 9
(1+2)*3 → 9 | -3 + +4 → 1 | 1,000,000 + 1 → 1000001 | sqrt(16) → 4 | 1e3 + 1 → 1001
2 ** -1 → 0.5 | 1 ** 10 ** 200 → 1 | -0.0 → 0 | 2 ** 64 → 18446744073709551616
"""
REFUSED = """
10**300 → 300 digits | 1e999 → 300 digits | 1e308 * 10 → 300 digits | 1.5 ** 10**200 → 300 digits
9**200 * 9**200 → 300 digits | 1/0 → Division | 0 ** -1 → Division | 5 % 0 → Division
(-8) ** 0.5 → not a real | sqrt(-1) → not a real
1 + → only | (1, 2) → only | 1or 2 → only | sqrt → only | sqrt() → only | __import__('os') → only
1 if 1 else 2 → only | sqrt(1)(2) → only | 007 → only | 2j → only
"""
HOSTILE = [["", "only"], ["1\ud800", "only"], ["(" * 200, "only"], ["1+" * 200 + "1", "longer"]]


@pytest.mark.parametrize(("expression", "result"), table(VALUES))
def test_arithmetic_has_its_value(expression: str, result: str) -> None:
    assert json.dumps(evaluate(expression)) == result


@pytest.mark.parametrize("expression", ["-" * 198 + "1", "(" * 99 + "1" + ")" * 99])
def test_deep_nesting_is_still_arithmetic(expression: str) -> None:
    assert evaluate(expression) == 1


@pytest.mark.parametrize(("expression", "reason"), table(REFUSED) + HOSTILE)
def test_other_arithmetic_is_refused(expression: str, reason: str) -> None:
    with pytest.raises(ToolException, match=reason):
        evaluate(expression)


@pytest.mark.parametrize("expression", ["9**9**9**9", "9**9**9", "(10**299)**(10**299)"])
def test_a_power_without_end_is_never_begun(expression: str) -> None:
    """It would run for minutes, or use up the memory, before anything could refuse it."""
    with pytest.raises(ToolException, match="300 digits"):
        evaluate(expression)


# Telling the time.

CITIES = """
Asia/Tokyo → Asia/Tokyo | tokyo → Asia/Tokyo | 東京 → Asia/Tokyo | New  York  → America/New_York
Lisbon → Europe/Lisbon | america/buenos_aires → America/Buenos_Aires | utc → UTC | UTC → UTC
UK → Europe/London | ＵＴＣ → UTC
"""


@pytest.fixture
def no_zones(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the database of time zones away, as on Windows without the package tzdata."""
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    tools.zone_names.cache_clear()
    yield
    tools.zone_names.cache_clear()


@pytest.mark.parametrize(("name", "zone"), table(CITIES))
def test_a_city_has_its_zone(name: str, zone: str) -> None:
    assert find_zone(name)[0] == zone


def test_every_place_that_is_known_by_name_has_a_zone() -> None:
    for zone, names in tools.PLACES.items():
        assert {find_zone(name)[0] for name in names.split()} == {zone}


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "/etc/passwd", "Asia", "Atlantis", "\0"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ToolException, match="no time zone of that name"):
        find_zone(name)


@pytest.mark.usefixtures("no_zones")
def test_without_zone_data_only_utc_is_known() -> None:
    assert find_zone("UTC") == ("UTC", UTC)  # not a ZoneInfo, which would read the database
    for name in ("Tokyo", "東京"):
        with pytest.raises(ToolException, match="no time zone of that name"):
            find_zone(name)


# Through a graph.


async def call(docs: Path, name: str, args: dict[str, Any]) -> tuple[ToolMessage, list[Any]]:
    """Return the ToolMessage of one call in a ToolNode, and the progress that it reported."""
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(make_tools(docs)))
    graph.add_edge(START, "tools")
    asked = AIMessage("", tool_calls=[{"name": name, "args": args, "id": "c", "type": "tool_call"}])
    modes: Any = ["values", "tools"]
    state: Any = {"messages": [asked]}
    message, outputs = None, []
    async for part in graph.compile().astream(state, stream_mode=modes, version="v2"):
        data: Any = part["data"]
        if part["type"] == "values":
            message = data["messages"][-1]
        elif data["event"] == "tool-output-delta":
            outputs.append(data["delta"])
    assert isinstance(message, ToolMessage)
    return message, outputs


async def test_wait_reports_each_second_and_the_end(docs: Path) -> None:
    message, outputs = await call(docs, "wait", {"seconds": 1.2})
    assert outputs == ["1 / 1.2 s", "1.2 / 1.2 s"]
    assert json.loads(message.text) == {"waited_s": 1.2}


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("wait", {"seconds": float("nan")}, "I can wait 0 to 60 seconds"),
        ("wait", {"seconds": -1}, "I can wait 0 to 60 seconds"),
        ("wait", {"seconds": 61}, "I can wait 0 to 60 seconds"),
        ("wait", {"seconds": "soon"}, "do not fit"),
        ("search_docs", {}, "do not fit"),
        ("calculate", {"expression": "1/0"}, "Division by zero"),
        ("current_time", {"timezone": "x"}, "no time zone"),
    ],
)
async def test_a_refusal_is_an_error_message_in_a_plain_sentence(
    docs: Path, name: str, args: dict[str, Any], words: str
) -> None:
    message, _ = await call(docs, name, args)
    assert message.status == "error"
    assert words in message.text
    assert "http" not in message.text


async def test_the_time_has_its_zone_and_weekday(docs: Path) -> None:
    message, _ = await call(docs, "current_time", {"timezone": "Tokyo"})
    told = json.loads(message.text)
    assert told["timezone"] == "Asia/Tokyo"
    assert told["time"].endswith("+09:00")
    assert told["weekday"].endswith("day")


async def test_results_stay_readable_json(docs: Path) -> None:
    message, _ = await call(docs, "search_docs", {"query": "再接続"})
    assert "再接続" in message.text
    assert json.loads(message.text)["query"] == "再接続"
