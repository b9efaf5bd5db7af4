"""The four tools of the built-in agent: search_docs, calculate, current_time and wait.

Each returns a small JSON object. A tool that cannot do what is asked raises ToolException, and its
sentence becomes an error ToolMessage. No argument of a tool is evaluated as code.
"""

import ast
import asyncio
import functools
import math
import operator
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from langchain_core.tools import BaseTool, ToolException, tool
from langgraph.prebuilt import ToolRuntime

from builtin.search import read_passages, search

MAX_WAIT_S = 60  # half of the default RUN_TIMEOUT_S
CANNOT_CALCULATE = "I can calculate with numbers up to 10**308, + - * / ** and parentheses."


def make_tools(docs: Path) -> list[BaseTool]:
    """Return the four tools; ``docs`` is a folder or one file, read at the first search."""
    passages = functools.cache(lambda: read_passages(docs))

    @tool
    async def search_docs(query: str) -> dict[str, Any]:
        """Search the documents of this project; use the words that the documents would use."""
        hits = await asyncio.to_thread(lambda: search(passages(), query))
        shown = [{"source": h.source, "heading": h.heading, "passage": h.text} for h in hits]
        return {"query": query, "hits": shown}

    @tool
    async def calculate(expression: str) -> dict[str, Any]:
        """Calculate with numbers, + - * / ** and parentheses, such as 12 * (3 + 4)."""
        return {"expression": expression, "result": evaluate(expression)}

    @tool
    async def current_time(timezone: str) -> dict[str, str]:
        """Return the time in an IANA time zone, such as Asia/Tokyo or UTC."""
        try:
            # Windows and slim containers may lack the database of zones, which UTC does not need.
            now = datetime.now(UTC if timezone == "UTC" else ZoneInfo(timezone))
        except (OSError, ValueError, ZoneInfoNotFoundError):
            raise ToolException("I know no such time zone. Try one like Asia/Tokyo.") from None
        time = now.isoformat(timespec="seconds")
        return {"timezone": timezone, "time": time, "weekday": f"{now:%A}"}

    @tool
    async def wait(seconds: float, runtime: ToolRuntime[Any, Any]) -> dict[str, float]:
        """Wait for 0 to 60 seconds and report progress every second."""
        if not 0 <= seconds <= MAX_WAIT_S:  # NaN is refused here as well
            raise ToolException(f"I can wait 0 to {MAX_WAIT_S} seconds.")
        waited = 0.0
        while waited < seconds:
            step = min(1, seconds - waited)
            await asyncio.sleep(step)
            waited += step
            runtime.emit_output_delta(f"{waited:g} / {seconds:g} s")
        return {"waited_s": seconds}

    tools: list[BaseTool] = [search_docs, calculate, current_time, wait]
    for each in tools:
        each.handle_tool_error = True  # the text of a ToolException becomes an error ToolMessage
        # Pydantic's own text quotes its internals and a web address.
        each.handle_validation_error = "The arguments do not fit the tool's parameters."
    return tools


OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,  # of floats: a power that is too large fails at once
}


def evaluate(expression: str) -> int | float:
    """Return the value of an arithmetic expression to 15 digits, never by ``eval``."""
    try:
        # Python's parser knows far more, and its stack is not endless.
        if not re.fullmatch(r"[0-9.+\-*/()\s]{1,200}", expression):
            raise SyntaxError
        value = node_value(ast.parse(expression.strip(), mode="eval").body)
        if not math.isfinite(value):  # TypeError for a complex number: (-8) ** 0.5
            raise OverflowError
    except ZeroDivisionError:
        raise ToolException("Division by zero has no result.") from None
    except (KeyError, OverflowError, SyntaxError, TypeError, ValueError):
        raise ToolException(CANNOT_CALCULATE) from None
    value = float(f"{value:.15g}")
    return int(value) if value.is_integer() and abs(value) < 1e15 else value


def node_value(node: ast.expr) -> float:
    """Return the value of a parsed expression; any other syntax raises SyntaxError."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -node_value(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](node_value(left), node_value(right))
    raise SyntaxError
