"""Claims about the tools of the built-in agent: what a search quotes, sums, times and waits."""

import json
import zoneinfo
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import ToolException
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from builtin.tools import evaluate, make_tools

README = Path(__file__).resolve().parent.parent / "README.md"


def table(text: str) -> list[list[str]]:
    """Return the cells of ``a → b | c → d``."""
    return [
        cell.strip().split(" → ") for line in text.strip().split("\n") for cell in line.split("|")
    ]


VALUES = """
12 * (3 + 4) → 84 | 0.1 + 0.2 → 0.3 | 6 / 2 → 3 | (1+2)*3 → 9 | -3 + 4 → 1 | .5 * 3 → 1.5
2 ** -1 → 0.5 | 1 ** 10 ** 200 → 1 | -0.0 → 0 | 2 ** 64 → 1.84467440737096e+19 | 1.5 → 1.5
"""
REFUSED = """
1 + → numbers | (1, 2) → numbers | 1or 2 → numbers | 1e3 → numbers | () → numbers | 1 (2) → numbers
__import__('os') → numbers | 1 if 1 else 2 → numbers | 007 → numbers | 2j → numbers
5 % 0 → numbers | 1 // 2 → numbers | (-8) ** 0.5 → numbers
1.5 ** 10**200 → numbers | 9**200 * 9**200 → numbers | 10**308 * 10 → numbers | 1) + (1 → numbers
1/0 → Division | 0 ** -1 → Division
"""
HOSTILE = [["", "numbers"], ["1\ud800", "numbers"], ["(" * 200, "numbers"], ["1+" * 200, "numbers"]]


@pytest.mark.parametrize(("expression", "result"), table(VALUES))
def test_arithmetic_has_its_value(expression: str, result: str) -> None:
    assert json.dumps(evaluate(expression)) == result


@pytest.mark.parametrize("expression", ["-" * 198 + "1", "(" * 99 + "1" + ")" * 99, " 1\n"])
def test_deep_nesting_and_blanks_are_still_arithmetic(expression: str) -> None:
    assert evaluate(expression) == 1


@pytest.mark.parametrize(("expression", "reason"), table(REFUSED) + HOSTILE)
def test_other_arithmetic_is_refused(expression: str, reason: str) -> None:
    with pytest.raises(ToolException, match=reason):
        evaluate(expression)


@pytest.mark.parametrize("expression", ["9**9**9**9", "9**9**9", "(10**299)**(10**299)"])
def test_a_power_without_end_is_never_begun(expression: str) -> None:
    """Of whole numbers it would run for minutes, or use up the memory."""
    with pytest.raises(ToolException, match="numbers"):
        evaluate(expression)


async def call(name: str, args: dict[str, Any]) -> tuple[ToolMessage, list[Any]]:
    """Return the ToolMessage of one call in a ToolNode, and the progress that it reported."""
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(make_tools(README)))
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


async def test_wait_reports_each_second_and_the_end() -> None:
    message, outputs = await call("wait", {"seconds": 1.2})
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
        ("current_time", {"timezone": "Atlantis"}, "no such time zone"),
        ("current_time", {"timezone": ""}, "no such time zone"),
        ("current_time", {"timezone": "../../etc/passwd"}, "no such time zone"),
        ("current_time", {"timezone": "\ud800"}, "no such time zone"),
    ],
)
async def test_a_refusal_is_an_error_message_in_a_plain_sentence(
    name: str, args: dict[str, Any], words: str
) -> None:
    message, _ = await call(name, args)
    assert message.status == "error"
    assert words in message.text
    assert "http" not in message.text


async def test_the_time_has_its_zone_and_weekday() -> None:
    message, _ = await call("current_time", {"timezone": "Asia/Tokyo"})
    told = json.loads(message.text)
    assert told["timezone"] == "Asia/Tokyo"
    assert told["time"].endswith("+09:00")
    assert told["weekday"].endswith("day")


async def test_utc_works_without_the_database_of_zones() -> None:
    """Windows has none without the package tzdata."""
    zoneinfo.reset_tzpath(to=[])
    try:
        message, _ = await call("current_time", {"timezone": "UTC"})
    finally:
        zoneinfo.reset_tzpath()
    assert json.loads(message.text)["time"].endswith("+00:00")


async def test_results_stay_readable_json() -> None:
    message, _ = await call("search_docs", {"query": "ライセンス"})
    assert "ライセンス" in message.text
    assert json.loads(message.text)["query"] == "ライセンス"
