"""Claims about the tools of the built-in agent: what a search quotes, sums, times and waits."""

import json
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
from builtin.tools import evaluate, find_zone, make_tools

README = Path(__file__).resolve().parent.parent / "README.md"


def table(text: str) -> list[list[str]]:
    """Return the cells of ``a → b | c → d``."""
    return [
        cell.strip().split(" → ") for line in text.strip().split("\n") for cell in line.split("|")
    ]


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
        ("current_time", {"timezone": "x"}, "no time zone"),
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
    message, _ = await call("current_time", {"timezone": "Tokyo"})
    told = json.loads(message.text)
    assert told["timezone"] == "Asia/Tokyo"
    assert told["time"].endswith("+09:00")
    assert told["weekday"].endswith("day")


async def test_results_stay_readable_json() -> None:
    message, _ = await call("search_docs", {"query": "ライセンス"})
    assert "ライセンス" in message.text
    assert json.loads(message.text)["query"] == "ライセンス"
