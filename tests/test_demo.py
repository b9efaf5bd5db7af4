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
from langchain_core.tools import BaseTool, ToolException
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

import demo
from demo import DemoModel, DocsIndex, evaluate, find_zone, make_tools, reply, sections

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
GUIDE = "# 手引き\n\n## 再接続\n\nSSEの接続が切れたら、最後の番号を送ります。\n"
ALL = frozenset({"search_docs", "calculate", "current_time", "wait"})


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(README, "utf-8")
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "ja.txt").write_text(GUIDE, "utf-8")
    (tmp_path / "latin1.md").write_bytes(b"# Caf\xe9\n\nEspresso caf\xe9\x00\x02.\n")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.md").write_text("# Secret\n\nharpsichord\n", "utf-8")
    return tmp_path


def build(tools: list[BaseTool], model: DemoModel | None = None) -> Any:
    bound = (model or DemoModel()).bind_tools(tools)

    async def agent(state: MessagesState) -> dict[str, list[BaseMessage]]:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("agent", agent)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_edge("tools", "agent")
    return graph.compile(checkpointer=InMemorySaver())


@pytest.fixture
def talk(docs: Path) -> Callable[..., list[tuple[list[Any], str]]]:
    """Say lines in one thread; return for each its tool calls and its answer."""

    def say(*lines: str) -> list[tuple[list[Any], str]]:
        graph = build(make_tools(docs))
        config = {"configurable": {"thread_id": "t"}}
        turns, seen = [], 0
        for line in lines:
            state = asyncio.run(graph.ainvoke({"messages": [HumanMessage(line)]}, config))
            new, seen = state["messages"][seen:], len(state["messages"])
            calls = [c for m in new if isinstance(m, AIMessage) for c in m.tool_calls]
            turns.append(([(c["name"], *c["args"].values()) for c in calls], str(new[-1].text)))
        return turns

    return say


# Searching.


@pytest.mark.parametrize(
    ("query", "heading"),
    [
        ("How do I change the port?", "Settings"),
        ("settings", "Settings"),
        ("deploy nginx", "Deploying"),
        ("HEARTBEAT_S", "Settings"),
        ("再接続", "再接続"),
        ("接続が切れたら?", "再接続"),
        ("SSE", "再接続"),
        ("デプロイの方法を教えて", "Deploying"),
        ("reconnect", "再接続"),
        ("espresso", "Caf\ufffd"),
    ],
)
def test_a_question_finds_its_section(docs: Path, query: str, heading: str) -> None:
    assert DocsIndex(docs).search(query)[0]["heading"] == heading


def test_of_a_table_only_the_rows_that_match_are_quoted(docs: Path) -> None:
    assert DocsIndex(docs / "README.md").search("port") == [
        {
            "source": "README.md",
            "heading": "Settings",
            "passage": "| variable | default | meaning |\n|---|---|---|\n"
            "| `PORT` | 8000 | the port to listen on |",
        }
    ]


@pytest.mark.parametrize("query", ["", "?", "the of", "harpsichord", "zebra", "は", "\ud800",
                                   "which football team won the world cup stream"])  # fmt: skip
def test_what_is_not_there_gives_no_hits(docs: Path, query: str) -> None:
    assert DocsIndex(docs).search(query) == []


@pytest.mark.parametrize(
    "query", ['"port', "port OR", "port*", "NEAR(port", "a:port", "-port", "(port", "port'; DROP"]
)
def test_fts_syntax_in_a_query_is_only_text(docs: Path, query: str) -> None:
    assert DocsIndex(docs).search(query)[0]["heading"] == "Settings"


def test_a_comment_in_a_fence_is_no_heading() -> None:
    assert [heading for heading, _ in sections("# A\n```\n# \n# b\n```\n", "x")] == ["A"]
    headings = [heading for heading, _ in sections(README, "README")]
    assert headings == ["Harbour", "Quick start", "Settings", "Deploying", "Cursor"]


def test_an_unclosed_fence_ends_with_the_file() -> None:
    assert list(sections("# A\n```\n# b\n", "x")) == [("A", "```\n# b")]


def test_a_long_section_is_cut_around_its_match(tmp_path: Path) -> None:
    (tmp_path / "long.md").write_text("# L\n\n" + "word " * 999 + "needle " + "word " * 999)
    passage = DocsIndex(tmp_path).search("needle")[0]["passage"]
    assert "needle" in passage and len(passage) < 450


def test_what_is_in_the_language_of_the_question_comes_first(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Timeout\n\nThe timeout ends a run.\n", "utf-8")
    (tmp_path / "b.md").write_text("# タイムアウト\n\n実行は終わります。\n", "utf-8")
    index = DocsIndex(tmp_path)
    assert [hit["source"] for hit in index.search("timeout")] == ["a.md", "b.md"]
    assert [hit["source"] for hit in index.search("タイムアウト")] == ["b.md", "a.md"]


def test_a_missing_path_has_no_hits(tmp_path: Path) -> None:
    assert DocsIndex(tmp_path / "none").search("port") == []


def test_threads_share_one_index(docs: Path) -> None:
    built: list[int] = []
    found: list[int] = []

    class SlowIndex(DocsIndex):
        def _build(self) -> Any:
            built.append(1)
            time.sleep(0.05)
            return super()._build()

    index = SlowIndex(docs)
    threads = [
        threading.Thread(target=lambda: found.append(len(index.search("heartbeat"))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3] * 8 and len(built) == 1


# Calculating.


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12 * (3 + 4)", 84),
        ("0.1 + 0.2", 0.3),
        ("6 / 2", 3),
        ("7 // 2 + 7 % 2", 4),
        ("2 ** 100", 2**100),
        ("2^10", 1024),
        ("12×3÷4", 9),
        ("(1+2)*3", 9),
        ("-3 + +4", 1),
        ("1,000,000 + 1", 1000001),
        ("sqrt(16)", 4),
        ("1e3 + 1", 1001),
        ("2 ** -1", 0.5),
        ("1 ** 10 ** 200", 1),
        ("007 + 1", 8),
        ("-0.0", 0),
    ],
)
def test_arithmetic_has_its_value(expression: str, result: float) -> None:
    value = evaluate(expression)
    assert value == result and type(value) is type(result)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("9**9**9", "large"),
        ("2**100000000", "large"),
        ("10**300", "large"),
        ("1e999", "large"),
        ("1e308 * 10", "large"),
        ("9**200 * 9**200", "large"),
        ("1/0", "zero"),
        ("0 ** -1", "zero"),
        ("5 % 0", "zero"),
        ("(-8) ** 0.5", "complex"),
        ("sqrt(-1)", "complex"),
        ("", "syntax"),
        ("1 +", "syntax"),
        ("(1, 2)", "syntax"),
        ("1or 2", "syntax"),
        ("__import__('os')", "syntax"),
        ("1 if 1 else 2", "syntax"),
        ("sqrt", "syntax"),
        ("sqrt(1)(2)", "syntax"),
        ("1\ud800", "syntax"),
        ("(" * 200, "syntax"),
        ("-" * 199 + "1", None),
        ("(" * 99 + "1" + ")" * 99, None),
        ("1+" * 200 + "1", "long"),
    ],
)
def test_arithmetic_is_refused_at_once(expression: str, reason: str | None) -> None:
    start = time.perf_counter()
    if reason:
        with pytest.raises(ToolException) as caught:
            evaluate(expression)
        assert str(caught.value) == demo.REFUSALS[reason][0]
    else:
        assert abs(evaluate(expression)) == 1
    assert time.perf_counter() - start < 0.1


# Telling the time.


@pytest.mark.parametrize(
    ("name", "zone"),
    [
        ("Asia/Tokyo", "Asia/Tokyo"),
        ("tokyo", "Asia/Tokyo"),
        ("東京", "Asia/Tokyo"),
        (" New  York ", "America/New_York"),
        ("Lisbon", "Europe/Lisbon"),
        ("america/buenos_aires", "America/Buenos_Aires"),
        ("utc", "UTC"),
        ("UTC", "UTC"),
    ],
)
def test_a_city_has_its_zone(name: str, zone: str) -> None:
    assert find_zone(name)[0] == zone


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "/etc/passwd", "Asia", "Atlantis", "\0"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ToolException, match="no time zone of that name"):
        find_zone(name)


def test_without_zone_data_only_utc_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    assert find_zone("UTC")[0] == "UTC"
    with pytest.raises(ToolException, match="no time zone data"):
        find_zone("Tokyo")


# The model and its graph.

REQUESTS = [
    ("12 * (3 + 4)", [("calculate", "12 * (3 + 4)")]),
    ("what is 15% of 80?", [("calculate", "15 / 100 * 80")]),
    ("80の15%は?", [("calculate", "80 * 15 / 100")]),
    ("100を3で割って", [("calculate", "100 / 3")]),
    ("What's the time in Tokyo right now?", [("current_time", "Asia/Tokyo")]),
    ("2の10乗", [("calculate", "2 ** 10")]),
    ("3たす4", [("calculate", "3 + 4")]),
    ("(what is 2 + 2)", [("calculate", "2 + 2")]),
    ("12*3は?", [("calculate", "12*3")]),
    ("3+4, 5*6", [("calculate", "3+4"), ("calculate", "5*6")]),
    ("10-3", [("calculate", "10-3")]),
    ("1/0 and 2*3", [("calculate", "1/0"), ("calculate", "2*3")]),
    ("what time is it?", [("current_time", "UTC")]),
    ("今何時", [("current_time", "UTC")]),
    ("What time is it in tokyo", [("current_time", "Asia/Tokyo")]),
    ("東京の時刻は?", [("current_time", "Asia/Tokyo")]),
    (
        "time in London and New York",
        [("current_time", "Europe/London"), ("current_time", "America/New_York")],
    ),
    ("time in Lisbon and Oslo", [("current_time", "Lisbon"), ("current_time", "Oslo")]),
    ("What time is it in Asia/Dili?", [("current_time", "Asia/Dili")]),
    ("wait 5 seconds", [("wait", 5.0)]),
    ("Please wait for 2.5 s.", [("wait", 2.5)]),
    ("wait 1" + "0" * 400 + " seconds", [("wait", 1e9)]),
    ("5秒待って", [("wait", 5.0)]),
    ("1分待って", [("wait", 60.0)]),
    ("wait -5 seconds", [("wait", -5.0)]),
    (
        "12 * (3 + 4) と東京の時刻は?",
        [("calculate", "12 * (3 + 4)"), ("current_time", "Asia/Tokyo")],
    ),
    ("wait 3 seconds and 1 + 1", [("wait", 3.0), ("calculate", "1 + 1")]),
    ("1 + 1 and how do I deploy?", [("calculate", "1 + 1"), ("search_docs", "how do I deploy")]),
    ("how do I deploy?", [("search_docs", "how do I deploy?")]),
    ("search the docs for nginx", [("search_docs", "nginx")]),
    ("What is the run time limit?", [("search_docs", "What is the run time limit?")]),
    ("何時間かかりますか", [("search_docs", "何時間かかりますか")]),
    ("is there 24/7 support", [("search_docs", "is there 24/7 support")]),
    ("released on 2026-11-22 by 10:30", [("search_docs", "released on 2026-11-22 by 10:30")]),
    ("HTTP/2 or UTF-8", [("search_docs", "HTTP/2 or UTF-8")]),
    ("how long does Python 3.11.2 last", [("search_docs", "how long does Python 3.11.2 last")]),
]


@pytest.mark.parametrize(("text", "expected"), REQUESTS)
def test_a_request_becomes_tool_calls(text: str, expected: list[Any]) -> None:
    message = reply([SystemMessage("Be brief."), HumanMessage(text)], ALL)
    assert [(call["name"], *call["args"].values()) for call in message.tool_calls] == expected
    assert message.text == ""


def test_two_requests_get_one_answer_in_the_language_of_the_question(talk: Any) -> None:
    [(calls, text)] = talk("12 * (3 + 4) と東京の時刻は?")
    assert calls == [("calculate", "12 * (3 + 4)"), ("current_time", "Asia/Tokyo")]
    assert "= **84** です。" in text and "東京の時刻は **" in text and "UTC+09:00" in text


def test_a_calculation_goes_on_from_the_last_result(talk: Any) -> None:
    lines = ["3 - 10", "double that", "times 2", "それを2倍して", "それに6を足して", "it / 5"]
    expressions = [turn[0][0][1] for turn in talk(*lines)[1:]]
    assert expressions == ["(-7) * 2", "(-14) * 2", "(-28) * 2", "(-56) + 6", "(-50) / 5"]


def test_a_time_question_goes_on_with_another_place(talk: Any) -> None:
    turns = talk("time in Tokyo", "and in London?", "パリは?", "What about Lisbon?")
    assert [turn[0][0][1] for turn in turns[1:]] == ["Europe/London", "Europe/Paris", "Lisbon"]
    assert "パリの時刻は" in turns[2][1] and "in Lisbon" in turns[3][1]


def test_a_document_question_after_a_time_question_is_a_search(talk: Any) -> None:
    assert talk("time in Tokyo", "how do I deploy in production?")[1][0][0][0] == "search_docs"


def test_earlier_words_are_quoted(talk: Any) -> None:
    turns = talk("My name is Aiko", "what is my name?", "what did I ask before?", "私の名前は?")
    assert [calls for calls, _ in turns] == [[], [], [], []]
    assert "> My name is Aiko" in turns[1][1]
    assert "> what is my name?" in turns[2][1]
    assert "> My name is Aiko" in turns[3][1]


def test_without_earlier_words_it_says_so(talk: Any) -> None:
    assert "first message" in talk("what did I ask before?")[0][1]
    assert "まだうかがっていません" in talk("私の名前は?")[0][1]


def test_tell_me_more_quotes_what_was_found_beyond_the_first(talk: Any) -> None:
    turns = talk("heartbeat", "tell me more", "もっと詳しく")
    assert "Say “tell me more” for 1 more." in turns[0][1]
    headings = [text.count("(`README.md`)") for _, text in turns]
    assert headings == [2, 1, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "demo model"),
        ("Hello!", "OPENAI_API_KEY"),
        ("what can you do?", "OPENAI_BASE_URL"),
        ("こんにちは", "デモモデル"),
        ("何ができる?", "5秒待って"),
        ("zebra?", "found nothing"),
        ("シマウマは?", "見つかりませんでした"),
        ("wait 100 seconds", "`100`: I can wait 0 to 60 seconds."),
        ("1/0 は?", "`1/0`: 0 で割ることはできません。"),
        ("アトランティスの時刻は?", "`アトランティス`: その名前のタイムゾーン"),
        ("1 + 1", "`1 + 1` = **2**"),
    ],
)
def test_an_answer_is_in_the_language_of_the_question(talk: Any, text: str, words: str) -> None:
    assert words in talk(text)[0][1]


def test_a_sum_without_letters_keeps_the_language_of_the_thread(talk: Any) -> None:
    assert talk("こんにちは", "1 + 1")[1][1] == "`1 + 1` = **2** です。"


async def collect(graph: Any, text: str) -> tuple[list[Any], list[Any]]:
    parts = [
        part
        async for part in graph.astream(
            {"messages": [HumanMessage(text)]},
            {"configurable": {"thread_id": "s"}},
            stream_mode=["messages", "tools"],
            version="v2",
        )
    ]
    chunks = [p["data"][0] for p in parts if p["type"] == "messages"]
    return chunks, [p["data"] for p in parts if p["type"] == "tools"]


def test_tool_calls_stream_in_fragments_and_add_up(docs: Path) -> None:
    chunks, _ = asyncio.run(collect(build(make_tools(docs)), "1 + 1 と東京の時刻は?"))
    fragments = [f for c in chunks if isinstance(c, AIMessageChunk) for f in c.tool_call_chunks]
    assert [fragment["index"] for fragment in fragments] == [0, 0, 1, 1]
    assert all(str(fragment["id"]).startswith("call_") for fragment in fragments[::2])
    assert json.loads(f"{fragments[2]['args']}{fragments[3]['args']}") == {"timezone": "Asia/Tokyo"}


def test_the_text_streams_in_words_and_ends_with_usage(docs: Path) -> None:
    chunks, _ = asyncio.run(collect(build(make_tools(docs)), "what can you do?"))
    assert "".join(chunk.text for chunk in chunks) == demo.SAY["help"][0]
    assert [chunk.text for chunk in chunks[:4]] == ["I ", "am ", "the ", "**demo "]
    usage = chunks[-1].usage_metadata
    assert usage["output_tokens"] == len(chunks) - 1 and usage["input_tokens"] == 4


def test_japanese_streams_a_few_characters_at_a_time(docs: Path) -> None:
    chunks, _ = asyncio.run(collect(build(make_tools(docs)), "何ができる?"))
    assert "".join(chunk.text for chunk in chunks) == demo.SAY["help"][1]
    assert max(len(chunk.text) for chunk in chunks) < 25


def test_wait_reports_progress(docs: Path) -> None:
    _, tools = asyncio.run(collect(build(make_tools(docs)), "wait 1.2 seconds"))
    deltas = [data["delta"] for data in tools if data["event"] == "tool-output-delta"]
    assert deltas == ["1 / 1.2 s", "1.2 / 1.2 s"]


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("wait", {"seconds": float("nan")}, "I can wait"),
        ("wait", {"seconds": "soon"}, "do not fit"),
        ("search_docs", {}, "do not fit"),
        ("calculate", {"expression": "1/0"}, "Division by zero"),
    ],
)
def test_a_refusal_is_an_error_message_in_our_words(
    docs: Path, name: str, args: dict[str, Any], words: str
) -> None:
    call = {"name": name, "args": args, "id": "c", "type": "tool_call"}
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(make_tools(docs)))
    graph.add_edge(START, "tools")
    state: Any = {"messages": [AIMessage("", tool_calls=[call])]}
    message = asyncio.run(graph.compile().ainvoke(state))["messages"][-1]
    assert message.status == "error" and words in message.text


def test_results_stay_readable_json(docs: Path) -> None:
    tool = make_tools(docs)[0]
    message = tool.invoke({"name": tool.name, "args": {"query": "再接続"}, "id": "c",
                           "type": "tool_call"})  # fmt: skip
    assert "再接続" in message.content and json.loads(message.content)["query"] == "再接続"


def test_pieces_are_paced_on_average() -> None:
    async def timed() -> float:
        start = time.perf_counter()
        async for _ in DemoModel(tokens_per_s=200).astream("what can you do?"):
            await asyncio.sleep(0.003)  # a reader that takes its time does not slow the rate
        return time.perf_counter() - start

    pieces = len(demo.PIECE.findall(demo.SAY["help"][0]))
    assert pieces / 200 <= asyncio.run(timed()) < pieces / 200 * 1.3


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [SystemMessage("Be brief.")],
        [AIMessage("Hello")],
        [ToolMessage("cancelled", tool_call_id="x", status="error")],
        [HumanMessage("1+1"), AIMessage("", tool_calls=[{"name": "x", "args": {}, "id": "x"}])],
        [HumanMessage([{"type": "text", "text": "hello"}])],
        [HumanMessage("hi"), ToolMessage("[1]", tool_call_id="x", name="calculate")],
        [HumanMessage("double that"), HumanMessage("tell me more")],
    ],
)
def test_an_odd_history_still_gets_an_answer(messages: list[BaseMessage]) -> None:
    message = reply(messages, ALL)
    assert message.text or message.tool_calls


def test_a_tool_that_is_not_bound_is_not_called() -> None:
    message = reply([HumanMessage("1 + 1 and wait 2 seconds")], frozenset({"calculate"}))
    assert [call["name"] for call in message.tool_calls] == ["calculate"]
    assert "not bound" in DemoModel().invoke("1 + 1").text


@pytest.mark.parametrize(
    "unit",
    ["1", "(", ")", " ", "1 ", "1+", "1-1,", "((1", "1.", "1-", "%", "- ", "1e", "sqrt(", "東京",
     "東京と時刻", "tokyo time in ", "wait ", "wait 1 ", "my ", "what is my ", "の", "1の", "0",
     "in a ", "in b ", "a", "9**", "and ", "tell me more ", "1 +1 and how nginx ", "/", "A/B",
     "2026-", ",000", "1に", "1の1%", "x,", "times 1 ", "#", "|", "\n", "```\n"],
)  # fmt: skip
def test_32000_characters_are_read_in_linear_time(unit: str) -> None:
    text = (unit * 32_000)[:32_000]
    result = ToolMessage('{"result": 2}', tool_call_id="x", name="calculate")
    history = [HumanMessage("1 + 1"), result]
    for ending in ("", "x", "\nwhat time is it in Tokyo?"):
        start = time.perf_counter()
        calls = reply([*history, HumanMessage(text + ending)], ALL).tool_calls
        assert time.perf_counter() - start < 1
        assert len(calls) <= demo.MAX_CALLS
