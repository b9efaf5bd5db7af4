"""Claims about the tools and the demo model; the graph is real."""

import asyncio
import json
import threading
import time
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import ToolException
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

import demo
from demo import SAY, DemoModel, build_index, evaluate, find_sections, find_zone, make_tools, reply
from tests.scripted import loop_graph

README = """# Harbour

A server that streams an agent's answer.

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

Behind nginx, turn `proxy_buffering` off. Heartbeats keep a proxy from closing the stream.

## Cursor

A heartbeat moves no cursor. A cursor is an event id.
"""
GUIDE = (
    "# 手引き\n\n## 再接続\n\nSSEの接続が切れたら、送ります。\n\n## 果物\n\nりんごを食べます。\n"
)
ALL = {"search_docs", "calculate", "current_time", "wait"}


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
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.md").write_text("# Secret\n\nharpsichord\n", "utf-8")
    return tmp_path


def search(docs: Path, query: str) -> list[dict[str, str]]:
    return find_sections(build_index(docs), query)


@pytest.fixture
def talk(docs: Path) -> Callable[..., list[tuple[list[Any], str]]]:
    """Say lines in one thread; return for each its tool calls and its answer."""

    def say(*lines: str) -> list[tuple[list[Any], str]]:
        graph = loop_graph(DemoModel(), make_tools(docs))
        graph.checkpointer = InMemorySaver()
        turns, seen = [], 0
        for line in lines:
            asked = {"messages": [HumanMessage(line)]}
            state = asyncio.run(graph.ainvoke(asked, {"configurable": {"thread_id": "t"}}))
            new, seen = state["messages"][seen:], len(state["messages"])
            calls = [c for m in new if isinstance(m, AIMessage) for c in m.tool_calls]
            turns.append(([(c["name"], *c["args"].values()) for c in calls], str(new[-1].text)))
        return turns

    return say


# Searching.

QUESTIONS = """
How do I change the port? → Settings | settings → Settings | HEARTBEAT_S の既定値は? → Settings
deploy nginx → Deploying | espresso → Caf\ufffd | nginx の設定方法を教えて → Deploying
再接続 → 再接続 | 接続が切れたら? → 再接続 | SSE → 再接続 | りんごは? → 果物
"port → Settings | port OR → Settings | port* → Settings | NEAR(port → Settings
a:port → Settings | -port → Settings | port'; DROP → Settings
"""


@pytest.mark.parametrize(("query", "heading"), table(QUESTIONS))
def test_a_question_finds_its_section(docs: Path, query: str, heading: str) -> None:
    assert search(docs, query)[0]["heading"] == heading


def test_of_a_table_only_the_rows_that_match_are_quoted(docs: Path) -> None:
    [hit] = search(docs / "README.md", "port")
    rows = (
        "| variable | default | meaning |\n|---|---|---|\n| `PORT` | 8000 | the port to listen on |"
    )
    assert hit == {"source": "README.md", "heading": "Settings", "passage": rows}


@pytest.mark.parametrize(
    "query",
    ["", "?", "the of", "harpsichord", "zebra", "は", "\ud800", "football world cup stream"],
)
def test_what_is_not_there_gives_no_hits(docs: Path, query: str) -> None:
    assert search(docs, query) == []
    assert search(docs / "none", query) == []


def test_a_comment_in_a_fence_is_no_heading(docs: Path) -> None:
    hit = search(docs, "comment")[0]
    assert hit["heading"] == "Quick start"
    assert hit["passage"] == "```sh\n# a comment, no heading\npython app.py\n```"


def test_an_unclosed_fence_ends_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n```\n# needle\n", "utf-8")
    assert [hit["heading"] for hit in search(tmp_path, "needle")] == ["A"]


def test_a_long_section_is_cut_around_its_match(tmp_path: Path) -> None:
    (tmp_path / "long.md").write_text(
        "# L\n\nIntro.\n\n" + "word " * 999 + "needle " + "word " * 999
    )
    passage = search(tmp_path, "needle")[0]["passage"]
    assert "needle" in passage
    assert len(passage) < 450


async def test_searches_at_once_share_one_index(docs: Path, monkeypatch: Any) -> None:
    built = []
    begun, asked = threading.Event(), threading.Event()

    def slow(root: Path) -> Any:
        built.append(root)
        begun.set()
        assert asked.wait(10)
        return build_index(root)

    monkeypatch.setattr(demo, "build_index", slow)
    tool = make_tools(docs)[0]
    searches = [asyncio.create_task(tool.ainvoke({"query": "heartbeat"})) for _ in range(8)]
    assert await asyncio.to_thread(begun.wait, 10)
    asked.set()
    results = await asyncio.gather(*searches)
    assert [len(result["hits"]) for result in results] == [3] * 8
    assert built == [docs]


# Calculating and telling the time.

VALUES = """
12 * (3 + 4) → 84 | 0.1 + 0.2 → 0.3 | 6 / 2 → 3 | 7 // 2 + 7 % 2 → 4 | 2^10 → 1024 | 12×3÷4 → 9
(1+2)*3 → 9 | -3 + +4 → 1 | 1,000,000 + 1 → 1000001 | sqrt(16) → 4 | 1e3 + 1 → 1001
2 ** -1 → 0.5 | 1 ** 10 ** 200 → 1 | -0.0 → 0 | 2 ** 64 → 18446744073709551616
"""
REFUSED = """
9**9**9 → 300 digits | 2**100000000 → 300 digits | 10**300 → 300 digits | 1e999 → 300 digits
1e308 * 10 → 300 digits | 9**200 * 9**200 → 300 digits | 1.5 ** 10**200 → 300 digits
1/0 → Division | 0 ** -1 → Division | 5 % 0 → Division
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
def test_other_arithmetic_is_refused_at_once(expression: str, reason: str) -> None:
    start = time.thread_time()
    with pytest.raises(ToolException, match=reason):
        evaluate(expression)
    assert time.thread_time() - start < 0.1


CITIES = """
Asia/Tokyo → Asia/Tokyo | tokyo → Asia/Tokyo | 東京 → Asia/Tokyo | New  York  → America/New_York
Lisbon → Europe/Lisbon | america/buenos_aires → America/Buenos_Aires | utc → UTC | UTC → UTC
"""


@pytest.mark.parametrize(("name", "zone"), table(CITIES))
def test_a_city_has_its_zone(name: str, zone: str) -> None:
    assert find_zone(name)[0] == zone


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "/etc/passwd", "Asia", "Atlantis", "\0"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ToolException, match="no time zone of that name"):
        find_zone(name)


def test_without_zone_data_only_utc_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    assert find_zone("UTC")[0] == "UTC"
    with pytest.raises(ToolException, match="no time zone of that name"):
        find_zone("Tokyo")


# What a message asks for.

REQUESTS = """
12 * (3 + 4) → calculate 12 * (3 + 4) | what is 15% of 80? → calculate 15 / 100 * 80
80の15%は? → calculate 80 * 15 / 100 | 100を3で割って → calculate 100 / 3
2の10乗 → calculate 2 ** 10 | 3たす4 → calculate 3 + 4 | (what is 2 + 2) → calculate 2 + 2
12*3は? → calculate 12*3
10-3 → calculate 10-3 | １２×３＋４ → calculate 12*3+4 | 200 + 10% → calculate 200 + 10%
3 plus 4 times 2 → calculate 3 + 4 * 2 | 9 divided by 3 minus 1 → calculate 9 / 3 - 1
1/0 and 2*3 → calculate 1/0; calculate 2*3 | 3+4, 5*6 → calculate 3+4; calculate 5*6
sqrt(16) → calculate sqrt(16) | .5 * 3 → calculate .5 * 3 | -5 + 3 → calculate -5 + 3
What's the time in Tokyo right now? → current_time Asia/Tokyo | what time is it? → current_time UTC
今何時 → current_time UTC | What time is it in tokyo → current_time Asia/Tokyo
東京の時刻は? → current_time Asia/Tokyo | アトランティスの時刻は? → current_time アトランティス
time in London and New York → current_time Europe/London; current_time America/New_York
time in Lisbon and Oslo → current_time Lisbon; current_time Oslo
Tokyo time → current_time Asia/Tokyo | what's the time in lisbon? → current_time lisbon
time is it in Asia/Dili? → current_time Asia/Dili
wait 5 seconds → wait 5.0 | Please wait for 2.5 s. → wait 2.5 | 5秒待って → wait 5.0
1分待って → wait 60.0 | wait -5 seconds → wait -5.0 | wait 2 minutes → wait 120.0
12 * (3 + 4) と東京の時刻は? → calculate 12 * (3 + 4); current_time Asia/Tokyo
wait 3 seconds and 1 + 1 → calculate 1 + 1; wait 3.0
1 + 1 and how do I deploy? → calculate 1 + 1; search_docs how do I deploy
"""
SEARCHES = """
how do I deploy? | search the docs for nginx | What is the run time limit? | what is the time limit?
何時間かかりますか | is there 24/7 support | released on 2026-11-22 by 10:30 | HTTP/2 or UTF-8
call 03-1234-5678 | how long does Python 3.11.2 last | open 10:30-11:00 | double that | times 2
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    table(REQUESTS) + [[text, f"search_docs {text}"] for [text] in table(SEARCHES)],
)
def test_a_request_becomes_tool_calls(text: str, expected: str) -> None:
    message = reply([SystemMessage("Be brief."), HumanMessage(text)], ALL)
    calls = [" ".join([c["name"], *map(str, c["args"].values())]) for c in message.tool_calls]
    assert "; ".join(calls) == expected
    assert message.text == ""


def test_a_number_too_long_for_json_stays_finite() -> None:
    message = reply([HumanMessage(f"wait 1{'0' * 400} seconds")], ALL)
    assert message.tool_calls[0]["args"] == {"seconds": 1e9}


def test_a_tool_that_is_not_bound_is_not_called() -> None:
    message = reply([HumanMessage("1 + 1 and wait 2 seconds")], {"calculate"})
    assert [call["name"] for call in message.tool_calls] == ["calculate"]
    assert "not bound" in DemoModel().invoke("1 + 1").text


HOSTILE_UNITS = r"""
1|(|)|1+|1-1,|((1|1.|1-|%|1e|sqrt(|-(|東京|東京と時刻|what |my |の|1の|0|a|9**|/|A/B
2026-|,000|1に|1の1%|x,|tokyo time in |wait 1 |what is my |in a |and B |tell me more |\n
1 +1 and how nginx |times 1 |( |- |1% |1 + |and Ab |#
"""


@pytest.mark.parametrize(
    "unit", [" ", *HOSTILE_UNITS.strip().replace("\n", "|").replace("\\n", "\n").split("|")]
)
def test_32000_characters_are_read_in_linear_time(unit: str) -> None:
    text = (unit * 32_000)[:32_000]
    result = ToolMessage('{"result": 2}', tool_call_id="x", name="calculate")
    for ending in ("", "x", "\nwhat time is it in Tokyo?"):
        start = time.thread_time()
        calls = reply([HumanMessage("1 + 1"), result, HumanMessage(text + ending)], ALL).tool_calls
        assert time.thread_time() - start < 10
        assert len(calls) <= demo.MAX_CALLS


ODD: list[list[BaseMessage]] = [
    [],
    [SystemMessage("Be brief.")],
    [AIMessage("Hello")],
    [ToolMessage("", tool_call_id="x", status="error")],
    [HumanMessage("1+1"), AIMessage("", tool_calls=[{"name": "x", "args": {}, "id": "x"}])],
    [HumanMessage([{"type": "text", "text": "hello"}])],
    [HumanMessage("hi"), ToolMessage("[1]", tool_call_id="x", name="calculate")],
    [HumanMessage("double that"), HumanMessage("tell me more")],
]


@pytest.mark.parametrize("messages", ODD)
def test_an_odd_history_still_gets_an_answer(messages: list[BaseMessage]) -> None:
    message = reply(messages, ALL)
    assert message.text or message.tool_calls


# A conversation.


def test_two_requests_get_one_answer_in_the_language_of_the_question(talk: Any) -> None:
    [(_, text)] = talk("12 * (3 + 4) と東京の時刻は?")
    first, second = text.split("\n\n")
    assert first == "`12 * (3 + 4)` = **84** です。"
    assert second.startswith("東京は **")
    assert second.endswith("UTC+09:00)。")


def test_a_calculation_goes_on_from_the_last_result(talk: Any) -> None:
    lines = (
        "3 - 10",
        "double that",
        "times 2",
        "それを2倍して",
        "それに6を足して",
        "divide it by 5",
    )
    expressions = [turn[0][0][1] for turn in talk(*lines, "1 - that", "-5 + 3")[1:]]
    assert expressions[:4] == ["(-7) * 2", "(-14) * 2", "(-28) * 2", "(-56) + 6"]
    assert expressions[4:] == ["(-50) / 5", "1 - (-10)", "-5 + 3"]


def test_a_time_question_goes_on_with_another_place(talk: Any) -> None:
    lines = ("time in Atlantis", "and in London?", "パリは?", "What about Lisbon?")
    turns = talk(*lines, "how do I deploy in production?", "What about Nginx?")
    assert [turn[0][0][1] for turn in turns[1:4]] == ["Europe/London", "Europe/Paris", "Lisbon"]
    assert [turn[0][0][0] for turn in turns[4:]] == ["search_docs", "search_docs"]
    assert "パリは **" in turns[2][1]
    assert "in Lisbon" in turns[3][1]


def test_earlier_words_are_quoted(talk: Any) -> None:
    turns = talk("My name is Aiko", "thanks", "what is my name?", "what did I ask before?")
    turns += talk(
        "what is my name?",
        "私の名前は?",
        "私の名前はアイコです",
        "私の名前は?",
        "さっき何を聞いた?",
    )
    assert not any(calls for calls, _ in turns)
    assert turns[2][1] == "You wrote earlier:\n\n> My name is Aiko"
    assert turns[3][1].endswith("> what is my name?")
    assert "not told me" in turns[4][1]
    assert "まだうかがっていません" in turns[5][1]
    assert turns[7][1] == "前にこう書かれていました。\n\n> 私の名前はアイコです"
    assert turns[8][1].endswith("> 私の名前は?")


def test_tell_me_more_quotes_what_was_found_beyond_the_first(talk: Any) -> None:
    turns = talk("heartbeat", "tell me more", "もっと詳しく")
    assert "Say “tell me more” for 1 more." in turns[0][1]
    assert [text.count("(`README.md`)") for _, text in turns] == [2, 1, 0]


ANSWERS = """
Hello! → OPENAI_API_KEY | what can you do? → OPENAI_BASE_URL | こんにちは → デモモデル
thanks! → welcome | 何ができる? → 5秒待って | zebra? → found nothing
シマウマは? → 見つかりませんでした
1 + 1 → `1 + 1` = **2** | wait 100 seconds → That did not work: I can wait 0 to 60
1/0 は? → うまくいきませんでした。Division
"""


@pytest.mark.parametrize(("text", "words"), table(ANSWERS))
def test_an_answer_is_in_the_language_of_the_question(talk: Any, text: str, words: str) -> None:
    assert words in talk(text)[0][1]


def test_a_sum_without_letters_keeps_the_language_of_the_thread(talk: Any) -> None:
    assert talk("こんにちは", "1 + 1")[1][1] == "`1 + 1` = **2** です。"


# Through the graph.


async def stream(docs: Path, text: str) -> tuple[list[Any], list[Any]]:
    graph = loop_graph(DemoModel(), make_tools(docs))
    asked: Any = {"messages": [HumanMessage(text)]}
    modes: Any = ["messages", "tools"]
    parts: list[Any] = [
        part async for part in graph.astream(asked, stream_mode=modes, version="v2")
    ]
    chunks = [part["data"][0] for part in parts if part["type"] == "messages"]
    return chunks, [part["data"] for part in parts if part["type"] == "tools"]


async def test_tool_calls_stream_in_fragments_and_add_up(docs: Path) -> None:
    chunks, _ = await stream(docs, "1 + 1 と東京の時刻は?")
    fragments = [f for c in chunks if isinstance(c, AIMessageChunk) for f in c.tool_call_chunks]
    assert [fragment["index"] for fragment in fragments] == [0, 0, 1, 1]
    assert all(str(fragment["id"]).startswith("call_") for fragment in fragments[::2])
    assert json.loads(f"{fragments[2]['args']}{fragments[3]['args']}") == {"timezone": "Asia/Tokyo"}


async def test_the_text_streams_in_words_and_ends_with_usage(docs: Path) -> None:
    chunks, _ = await stream(docs, "what can you do?")
    assert "".join(chunk.text for chunk in chunks) == SAY["help"][0]
    assert [chunk.text for chunk in chunks[:4]] == ["I ", "am ", "the ", "**demo "]
    usage = chunks[-1].usage_metadata
    assert (usage["output_tokens"], usage["input_tokens"]) == (len(chunks) - 1, 4)


async def test_japanese_streams_a_few_characters_at_a_time(docs: Path) -> None:
    chunks, _ = await stream(docs, "何ができる?")
    assert "".join(chunk.text for chunk in chunks) == SAY["help"][1]
    assert max(len(chunk.text) for chunk in chunks) < 25


async def test_wait_reports_progress(docs: Path) -> None:
    _, tools = await stream(docs, "wait 1.2 seconds")
    deltas = [data["delta"] for data in tools if data["event"] == "tool-output-delta"]
    assert deltas == ["1 / 1.2 s", "1.2 / 1.2 s"]


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("wait", {"seconds": float("nan")}, "I can wait"),
        ("wait", {"seconds": "soon"}, "do not fit"),
        ("search_docs", {}, "do not fit"),
        ("calculate", {"expression": "1/0"}, "Division by zero"),
        ("current_time", {"timezone": "x"}, "no time zone"),
    ],
)
async def test_a_refusal_is_an_error_message_in_our_words(
    docs: Path, name: str, args: dict[str, Any], words: str
) -> None:
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(make_tools(docs)))
    graph.add_edge(START, "tools")
    call = {"name": name, "args": args, "id": "c", "type": "tool_call"}
    state: Any = {"messages": [AIMessage("", tool_calls=[call])]}
    message = (await graph.compile().ainvoke(state))["messages"][-1]
    assert message.status == "error"
    assert words in message.text


async def test_results_stay_readable_json(docs: Path) -> None:
    call = {"name": "search_docs", "args": {"query": "再接続"}, "id": "c", "type": "tool_call"}
    message = await make_tools(docs)[0].ainvoke(call)
    assert "再接続" in message.content
    assert json.loads(message.content)["query"] == "再接続"


async def test_pieces_are_paced_on_average() -> None:
    planned = len(demo.PIECE.findall(SAY["help"][0])) / 200
    rounds = []
    while not rounds or (min(rounds) >= planned * 1.3 and len(rounds) < 5):
        start = time.perf_counter()
        async for _ in DemoModel(tokens_per_s=200).astream("what can you do?"):
            await asyncio.sleep(0.003)  # a reader that takes its time does not slow the rate
        rounds.append(time.perf_counter() - start)
    assert planned <= min(rounds) < planned * 1.3
