"""Claims about the demo model: how it reads a message and how it streams; the graph is real."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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

from builtin import demo
from builtin.agent import built_in
from builtin.demo import LINES, PIECE, DemoModel, reply
from builtin.search import read_passages, search
from tests.questions import HEADINGS, MORE, QUESTIONS

README = Path(__file__).resolve().parent.parent / "README.md"
Talk = Callable[..., list[tuple[list[str], str]]]


def table(text: str) -> list[list[str]]:
    """Return the cells of ``a → b | c → d``."""
    return [
        cell.strip().split(" → ") for line in text.strip().split("\n") for cell in line.split("|")
    ]


def calls_of(messages: list[BaseMessage]) -> list[str]:
    """Return each tool call as the tool's name and its arguments."""
    calls = [call for m in messages if isinstance(m, AIMessage) for call in m.tool_calls]
    return [" ".join([call["name"], *map(str, call["args"].values())]) for call in calls]


@pytest.fixture(scope="module")
def talk() -> Talk:
    """Say lines in one thread of the built-in agent; return the tool calls and answer of each."""
    graph, _ = built_in(README, 0, "", "", "")

    async def say(lines: tuple[str, ...]) -> list[tuple[list[str], str]]:
        messages: list[BaseMessage] = []
        turns = []
        for line in lines:
            seen = len(messages) + 1
            state = await graph.ainvoke({"messages": [*messages, HumanMessage(line)]})
            messages = state["messages"]
            turns.append((calls_of(messages[seen:]), messages[-1].text))
        return turns

    return lambda *lines: asyncio.run(say(lines))


# What a newcomer asks.


def is_expected(answer: str, place: str, words: str) -> bool:
    if place.startswith("("):
        return answer in LINES[place.strip("()")] and words in answer
    first = answer.split("\n\n")[1:2]
    headings = [HEADINGS[key] for key in place.split("/")]
    return first in [[f"**{each}** (`README.md`)"] for each in headings] and words in answer


def test_nearly_all_of_a_newcomers_questions_get_the_expected_answer_first(talk: Talk) -> None:
    """Three may fail, so that an edit of the README does not break the build by one ranking."""
    assert len(QUESTIONS) == 60
    wrong = [row for row in QUESTIONS if not is_expected(talk(row[0])[0][1], *row[1:])]
    assert len(wrong) <= 3, wrong


def test_nearly_all_further_questions_get_the_expected_answer_first(talk: Talk) -> None:
    wrong = [row for row in MORE if not is_expected(talk(row[0])[0][1], *row[1:])]
    assert len(wrong) <= 4, wrong


@pytest.mark.parametrize("heading", HEADINGS.values())
def test_a_new_paragraph_in_the_readme_tips_few_answers(tmp_path: Path, heading: str) -> None:
    """A paragraph that has many of the questions' words is added to one section after another."""
    text = README.read_text("utf-8")
    mark = f"# {heading}\n"
    assert mark in text
    added = "\nThe server runs each test of a model, a graph and a proxy, and stops at an error.\n"
    (tmp_path / "README.md").write_text(text.replace(mark, mark + added), "utf-8")
    passages = read_passages(tmp_path / "README.md")
    wrong = []
    for question, place, _ in QUESTIONS:
        if not place.startswith("("):
            [hit, *_] = search(passages, question)
            if hit.heading not in [HEADINGS[key] for key in place.split("/")]:
                wrong.append(question)
    assert len(wrong) <= 3, wrong


def test_every_example_of_the_first_answer_works(talk: Talk) -> None:
    turns = talk(
        "How do I change the port?",
        "What is 15% of 80?",
        "double that",
        "What time is it in Tokyo and London?",
    )
    assert "`PORT` |" in turns[0][1]
    assert [turn[1] for turn in turns[1:3]] == ["`15 / 100 * 80` = **12**", "`12 * 2` = **24**"]
    assert "in Tokyo" in turns[3][1] and "in London" in turns[3][1]
    turns = talk("ポートの設定方法は?", "80の15%は?", "それを2倍して", "東京とロンドンの時刻は?")
    assert "`PORT` |" in turns[0][1]
    assert turns[2][1] == "`12 * 2` = **24** です。"
    assert "東京は **" in turns[3][1] and "ロンドンは **" in turns[3][1]


# What a message asks for.

REQUESTS = """
12 * (3 + 4) → calculate 12 * (3 + 4) | what is 15% of 80? → calculate 15 / 100 * 80
80の15%は? → calculate 80 * 15 / 100 | 7の3倍は? → calculate 7 * 3
12*3は? → calculate 12*3 | 10-3 → calculate 10-3 | １２×３＋４ → calculate 12*3+4
1,000,000 + 1 → calculate 1000000 + 1 | 3 plus 4 times 2 → calculate 3 + 4 * 2
9 divided by 3 minus 1 → calculate 9 / 3 - 1 | divide 9 by 3 → search_docs divide 9 by 3
1/0 and 2*3 → calculate 1/0; calculate 2*3 | 3+4, 5*6 → calculate 3+4; calculate 5*6
.5 * 3 → calculate .5 * 3 | -5 + 3 → calculate -5 + 3
double 21 → calculate 21 * 2 | (17 + 25) * 3 / 7 を計算して → calculate (17 + 25) * 3 / 7
What's the time in Tokyo right now? → current_time Asia/Tokyo | what time is it? → current_time UTC
今何時 → current_time UTC | What time is it in tokyo → current_time Asia/Tokyo
東京の時刻は? → current_time Asia/Tokyo | アトランティスの時刻は? → current_time UTC
東京はいま何時？ → current_time Asia/Tokyo | what's the date today? → current_time UTC
What day is it today? → current_time UTC | 今日は何日ですか → current_time UTC
100割る7は? → calculate 100/ 7
8掛ける7 → calculate 8* 7 | 8引く3 → calculate 8- 3 | 8足す3 → calculate 8+ 3
time in London and New York → current_time Europe/London; current_time America/New_York
time in Lisbon, Oslo → current_time Europe/Lisbon; current_time Europe/Oslo
6 * 7, and the time? → calculate 6 * 7; current_time UTC
wait 5 seconds → wait 5.0 | Please wait for 2.5 s. → wait 2.5 | 5秒待って → wait 5.0
wait a minute → wait 60.0 | add 3 and 4 → calculate 3 + 4
1分待って → wait 60.0 | wait 2 minutes → wait 120.0
12 * (3 + 4) と東京の時刻は? → calculate 12 * (3 + 4); current_time Asia/Tokyo
wait 2 hours → wait 7200.0 | wait 2 days → wait 172800.0 | 2時間待って → wait 7200.0
2^10 → calculate 2**10 | 10たす5 → calculate 10+ 5 | 12 x 4 → calculate 12 * 4
what is 7 x 8? → calculate 7 * 8 | 3x4 → calculate 3* 4
what is the time in America/New_York? → current_time America/New_York
Wait 8 seconds, then tell me → wait 8.0 | wait 3 seconds and 1 + 1 → wait 3.0; calculate 1 + 1
"""
SEARCHES = """
how do I deploy? | What is the run time limit? | what is the time limit? | why not 1 +
何時間かかりますか | HTTP/2 or UTF-8 | how long does Python 3.11.2 last | open 10:30-11:00
how do I write a graph? | on what day was it released | 何日かかりますか
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    table(REQUESTS) + [[text, f"search_docs {text}"] for [text] in table(SEARCHES)],
)
def test_a_request_becomes_tool_calls(text: str, expected: str) -> None:
    message = reply([SystemMessage("Be brief."), HumanMessage(text)])
    assert "; ".join(calls_of([message])) == expected
    assert message.text == ""


@pytest.mark.parametrize("text", ["double that", "times 2", "それを2倍して", "and plus 6"])
def test_without_an_earlier_result_the_answer_says_so(text: str) -> None:
    message = reply([HumanMessage(text)])
    assert message.text in LINES["no_result"]
    assert not message.tool_calls


@pytest.mark.parametrize("text", [f"wait 1{'0' * 400} seconds", f"1{'0' * 400}秒待って"])
def test_a_number_too_long_for_json_stays_finite(text: str) -> None:
    for call in reply([HumanMessage(text)]).tool_calls:
        json.dumps(call["args"], allow_nan=False)


HOSTILE_UNITS = r"""
1|(|)|1+|1-1,|((1|1.|1-|%|1%|1 |1 1|1e|sqrt(|-(|東京|東京と時刻|what |my |の|1の|0|a|9**|/|A/B|!
2026-|,000|1に|1の1%|x,|tokyo time in |wait 1 |in a |and |and B |\n|it |it -|thanks |what time
1 +1 and how nginx |times 1 |( |- |1% |1 + |and Ab |#|please |search |書いて|divide |は|today
no |hello, how
"""


def reading_time_s(unit: str, chars: int) -> float:
    """Return the processor time that the model takes for messages of so many characters."""
    text = (unit * chars)[:chars]
    found = {"expression": "1 + 1", "result": 2}
    result = ToolMessage(json.dumps(found), tool_call_id="x", name="current_time")
    start = time.thread_time()
    for ending in ("", "x", "\nwhat time is it in Tokyo?"):
        message = reply([HumanMessage("1 + 1"), result, HumanMessage(text + ending)])
        assert len(message.tool_calls) <= demo.MAX_CALLS
    return time.thread_time() - start


@pytest.mark.parametrize(
    "unit", [" ", *HOSTILE_UNITS.strip().replace("\n", "|").replace("\\n", "\n").split("|")]
)
def test_a_message_is_read_in_linear_time(unit: str) -> None:
    """Sixteen times the text takes about 16 times as long; a quadratic pattern would take 256."""
    for _ in range(5):  # a machine that was busy elsewhere gets another chance
        # Some clocks tick every 16 ms, so a shorter time counts as 5 ms.
        short = max(0.005, reading_time_s(unit, 4_000))
        if reading_time_s(unit, 64_000) < 64 * short:
            return
    raise AssertionError("the time grows faster than the text")


ODD: list[list[BaseMessage]] = [
    [],
    [SystemMessage("Be brief.")],
    [AIMessage("Hello")],
    [ToolMessage("", tool_call_id="x", status="error")],
    [HumanMessage("1+1"), AIMessage("", tool_calls=[{"name": "x", "args": {}, "id": "x"}])],
    [HumanMessage([{"type": "text", "text": "hello"}])],
    [HumanMessage("hi"), ToolMessage("[1]", tool_call_id="x", name="calculate")],
    [HumanMessage("double that"), HumanMessage("double that")],
]


@pytest.mark.parametrize("messages", ODD)
def test_an_odd_history_still_gets_an_answer(messages: list[BaseMessage]) -> None:
    message = reply(messages)
    assert message.text or message.tool_calls


# A conversation.


def test_two_requests_get_one_answer_in_the_language_of_the_question(talk: Talk) -> None:
    [(_, text)] = talk("12 * (3 + 4) と東京の時刻は?")
    first, second = text.split("\n\n")
    assert first == "`12 * (3 + 4)` = **84** です。"
    assert second.startswith("東京は **")
    assert second.endswith("UTC+09:00)。")


def test_a_calculation_goes_on_from_the_last_result(talk: Talk) -> None:
    lines = ("3 - 10", "double that", "times 2", "それを2倍して", "and plus 6")
    turns = talk(*lines, "it divided by 5", "hello", "then double that", "-5 + 3")
    assert [call for calls, _ in turns for call in calls] == [
        "calculate 3 - 10",
        *("calculate (-7) * 2", "calculate (-14) * 2", "calculate (-28) * 2"),
        *("calculate (-56) + 6", "calculate (-50) / 5", "calculate (-10) * 2"),
        "calculate -5 + 3",
    ]


ANSWERS = """
Hello! → OPENAI_API_KEY | what can you do? → OPENAI_BASE_URL | こんにちは → デモモデル
thanks! → welcome | 何ができる? → それを2倍して | zebra? → found nothing
シマウマは? → 見つかりませんでした
10 mod 3 → I can calculate
1 + 1 → `1 + 1` = **2** | wait 100 seconds → That did not work: I can wait 0 to 60
wait 2 hours → I can wait 0 to 60 seconds | what time is it in Mumbai → such as Asia/Kolkata
大阪の時刻は? → UTCは | what is the square root of 16 → I can calculate
20% off 50 → I can calculate
1/0 は? → うまくいきませんでした。Division
"""


@pytest.mark.parametrize(("text", "words"), table(ANSWERS))
def test_an_answer_is_in_the_language_of_the_question(talk: Talk, text: str, words: str) -> None:
    assert words in talk(text)[0][1]


def test_a_sum_without_letters_keeps_the_language_of_the_thread(talk: Talk) -> None:
    assert talk("こんにちは", "1 + 1")[1][1] == "`1 + 1` = **2** です。"


def test_a_quotation_stays_a_quotation_in_markdown(talk: Talk) -> None:
    [(_, answer)] = talk("How do I run the tests?")
    lead, source, *quoted = answer.split("\n\n")
    assert (lead, source) == ("From the documents:", "**Test** (`README.md`)")
    assert all(line.startswith("> ") for line in "\n\n".join(quoted).split("\n"))
    assert "\n\n".join(quoted).startswith("> ```sh\n> python3 -m venv")


# Through the graph.


async def stream(text: str) -> list[Any]:
    """Return the chunks of messages that the built-in agent streams for one question."""
    graph, _ = built_in(README, 0, "", "", "")
    asked: Any = {"messages": [HumanMessage(text)]}
    return [chunk async for chunk, _ in graph.astream(asked, stream_mode="messages")]


async def test_tool_calls_stream_in_one_chunk_with_usage() -> None:
    chunks = await stream("1 + 1 と東京の時刻は?")
    asked = next(chunk for chunk in chunks if isinstance(chunk, AIMessageChunk))
    assert calls_of([asked]) == ["calculate 1 + 1", "current_time Asia/Tokyo"]
    assert len({call["id"] for call in asked.tool_calls}) == 2
    assert asked.usage_metadata and asked.usage_metadata["output_tokens"] == 2


async def test_the_text_streams_in_words_and_ends_with_usage() -> None:
    chunks = await stream("what can you do?")
    assert "".join(chunk.text for chunk in chunks) == LINES["about"][0]
    assert [chunk.text for chunk in chunks[:4]] == ["I ", "am ", "the ", "**demo "]
    usage = chunks[-1].usage_metadata
    assert usage["output_tokens"] == len(chunks) - 1
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert not any(chunk.usage_metadata for chunk in chunks[:-1])


def test_usage_counts_the_pieces_of_all_messages() -> None:
    usage = reply([HumanMessage("what can you do?")]).usage_metadata
    assert usage and usage["input_tokens"] == 4


async def test_japanese_streams_a_few_characters_at_a_time() -> None:
    chunks = await stream("何ができる?")
    assert "".join(chunk.text for chunk in chunks) == LINES["about"][1]
    assert max(len(chunk.text) for chunk in chunks) < 25


async def test_a_slow_reader_does_not_slow_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece has its own due time. The clock is made up, so a slow machine changes nothing."""
    now, pauses = 0.0, []

    async def sleep(seconds: float) -> None:
        nonlocal now
        pauses.append(round(seconds, 6))
        now += seconds

    clock = SimpleNamespace(
        sleep=sleep,
        to_thread=asyncio.to_thread,
        get_running_loop=lambda: SimpleNamespace(time=lambda: now),
    )
    monkeypatch.setattr(demo, "asyncio", clock)
    pieces = 0
    async for _ in DemoModel(tokens_per_s=10).astream("thanks"):
        pieces += 1
        if pieces == 1:
            now += 0.25  # the reader takes two and a half pieces' time
    assert pauses == [0, 0, 0, 0.05]
    assert pieces == len(PIECE.findall(LINES["thanks"][0])) + 1


async def test_without_a_pace_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(demo.asyncio, "sleep", sleep)
    async for _ in DemoModel().astream("thanks"):
        pass
    assert set(pauses) == {0}
