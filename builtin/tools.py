"""The four tools of the built-in agent: search_docs, calculate, current_time and wait.

Each returns a small JSON object. A tool that cannot do what is asked raises ToolException, and its
sentence becomes an error ToolMessage. No argument of a tool is evaluated as code or used as a path.
"""

import ast
import asyncio
import functools
import math
import operator
import re
import unicodedata
import zoneinfo
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

from langchain_core.tools import BaseTool, ToolException, tool
from langgraph.prebuilt import ToolRuntime

from builtin.search import read_passages, search

MAX_WAIT_S = 60  # half of the default RUN_TIMEOUT_S
MAX_EXPRESSION_CHARS = 200  # bounds the nesting of an expression too
MAX_RESULT = 10**300  # below the limit of a double, so that no browser reads Infinity

# Ideographs, kana and their marks: Japanese has no spaces between words.
CJK = r"\u3005\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f"
JAPANESE = re.compile(f"[{CJK}]")


def make_tools(docs: Path) -> list[BaseTool]:
    """Return the four tools; ``docs`` is a directory or one file, read at the first search."""
    passages = functools.cache(lambda: read_passages(docs))

    @tool
    async def search_docs(query: str) -> dict[str, Any]:
        """Search the documents of this project; use the words that the documents would use."""
        hits = await asyncio.to_thread(lambda: search(passages(), query))
        shown = [{"source": h.source, "heading": h.heading, "passage": h.text} for h in hits]
        return {"query": query, "hits": shown}

    @tool
    async def calculate(expression: str) -> dict[str, Any]:
        """Calculate an arithmetic expression, such as 12 * (3 + 4) or sqrt(2) ** 3."""
        return {"expression": expression, "result": evaluate(expression)}

    @tool
    async def current_time(timezone: str) -> dict[str, str]:
        """Return the time in an IANA time zone or a large city, such as Asia/Tokyo, Paris, UTC."""
        name, zone = await asyncio.to_thread(find_zone, timezone)
        now = datetime.now(zone).replace(microsecond=0)
        return {"timezone": name, "time": now.isoformat(), "weekday": f"{now:%A}"}

    @tool
    async def wait(seconds: float, runtime: ToolRuntime[Any, Any]) -> dict[str, float]:
        """Wait for 0 to 60 seconds and report progress every second."""
        if not 0 <= seconds <= MAX_WAIT_S:  # NaN is refused here as well
            raise ToolException(f"I can wait 0 to {MAX_WAIT_S} seconds.")
        loop = asyncio.get_running_loop()
        start = loop.time()
        for second in [*range(1, math.ceil(seconds)), seconds]:
            await asyncio.sleep(start + second - loop.time())
            runtime.emit_output_delta(f"{second:g} / {seconds:g} s")
        return {"waited_s": seconds}

    tools: list[BaseTool] = [search_docs, calculate, current_time, wait]
    for each in tools:
        each.handle_tool_error = True  # the text of a ToolException becomes an error ToolMessage
        # Pydantic's own text quotes its internals and a web address.
        each.handle_validation_error = "The arguments do not fit the tool's parameters."
    return tools


# Calculating.

BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
# Checked before parsing, because the parser knows far more and warns of oddities such as `1or 2`.
ARITHMETIC = re.compile(r"(?:[\d.+\-*/%() ]|(?<=\d)e(?=[+\-]?\d)|sqrt(?=\())+", re.ASCII)
SYMBOLS = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-", "∗": "*", "⋅": "*", "^": "**"})
NO_ARITHMETIC = "I can read only numbers, + - * / // % **, parentheses and sqrt(…)."
NO_RESULT: dict[type[Exception], str] = {
    ZeroDivisionError: "Division by zero has no result.",
    OverflowError: "A number in it has more than 300 digits.",
    ValueError: "The result is not a real number.",
}


def evaluate(expression: str) -> int | float:
    """Return the value of an arithmetic expression, never by ``eval``; fractions to 15 digits."""
    text = normalised(expression).strip().lower()
    if len(text) > MAX_EXPRESSION_CHARS:
        raise ToolException(f"The expression is longer than {MAX_EXPRESSION_CHARS} characters.")
    try:
        if not ARITHMETIC.fullmatch(text):
            raise SyntaxError
        value = node_value(ast.parse(text, mode="eval").body)
    except (ArithmeticError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ToolException(NO_RESULT.get(type(error), NO_ARITHMETIC)) from None
    if isinstance(value, float):
        value = float(f"{value:.15g}")
        return int(value) if value.is_integer() and abs(value) < 1e15 else value
    return value


def node_value(node: ast.expr) -> int | float:
    """Return the value of a parsed expression; any other syntax raises SyntaxError."""
    match node:
        case ast.Constant(value=(int() | float()) as value):
            result = value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            result = -node_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            result = node_value(operand)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = node_value(left), node_value(right)
            # A power of more than 1000 bits is never begun.
            if isinstance(op, ast.Pow) and abs(a) > 1 and b * math.log2(abs(a)) > 1000:
                raise OverflowError
            result = BINARY[type(op)](a, b)
        case ast.Call(func=ast.Name(id="sqrt"), args=[argument]):
            result = math.sqrt(node_value(argument))  # ValueError for a negative number
        case _:
            raise SyntaxError
    if isinstance(result, complex):  # (-8) ** 0.5
        raise ValueError
    if not abs(result) < MAX_RESULT:  # infinity and NaN are refused here as well
        raise OverflowError
    return result


def normalised(text: str) -> str:
    """Return ``text`` in NFKC, with the operators that Python has, and 1,000 as 1000."""
    text = unicodedata.normalize("NFKC", text).translate(SYMBOLS)
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)


# Telling the time.

# Names that the database of time zones lacks. A zone's first name is used in Japanese answers.
PLACES = {
    "Asia/Tokyo": "東京 日本 大阪 京都 japan osaka kyoto",
    "Asia/Seoul": "ソウル 韓国 korea",
    "Asia/Shanghai": "上海 北京 中国 china beijing",
    "Asia/Singapore": "シンガポール",
    "Asia/Kolkata": "インド india",
    "Europe/Paris": "パリ フランス france",
    "Europe/Berlin": "ベルリン ドイツ germany",
    "Europe/London": "ロンドン イギリス england uk",
    "America/New_York": "ニューヨーク nyc",
    "America/Los_Angeles": "ロサンゼルス california",
    "Pacific/Honolulu": "ハワイ hawaii",
    "Australia/Sydney": "シドニー",
}


def find_zone(name: str) -> tuple[str, tzinfo]:
    """Return the full name and the zone of an IANA name or of a city; no path is made of it.

    UTC works without a database of time zones, which Windows and slim containers may lack.
    """
    wanted = " ".join(unicodedata.normalize("NFKC", name).replace("_", " ").lower().split())
    if wanted in ("utc", "gmt", "協定世界時"):
        return "UTC", UTC
    zone = zone_names().get(wanted)
    if zone is None:
        raise ToolException(
            "I know no time zone of that name; try an IANA name such as Asia/Tokyo."
        )
    return zone, zoneinfo.ZoneInfo(zone)


@functools.cache
def zone_names() -> dict[str, str]:
    """Return the zones by name, by city and by PLACES, in lower case; reading them takes 30 ms."""
    known = sorted(zoneinfo.available_timezones())
    cities = {zone.rsplit("/", 1)[-1]: zone for zone in known}
    places = {name: zone for zone in PLACES if zone in known for name in PLACES[zone].split()}
    names = cities | {zone: zone for zone in known} | places
    return {name.replace("_", " ").lower(): zone for name, zone in names.items()}
