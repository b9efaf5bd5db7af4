"""Load what AGENT names, and wrap a Runnable that is no graph.

Nothing in here knows threads or events.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, cast, get_type_hints, is_typeddict

from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.channels import LastValue
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from events import SettingError
from graphs.messages import as_text

HERE = Path(__file__).resolve().parent.parent

Graph = Pregel[Any, Any, Any, Any]


def find(spec: str) -> Any:
    """Return what ``module:attribute`` names, from the working directory or a package.

    Raises SettingError.
    """
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise SettingError(f"AGENT wants module:attribute, got {spec!r}")
    sys.path.insert(0, os.getcwd())
    try:
        return attrgetter(attribute)(importlib.import_module(name))
    except (Exception, SystemExit) as error:
        raise _failed(spec, error) from error


def _failed(spec: str, error: BaseException) -> SettingError:
    line = f"AGENT wants module:attribute; {spec!r} cannot be loaded: "
    line += f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, ImportError | AttributeError) and (names := _hidden()):
        line += f"; the server has modules of its own named {', '.join(names)}: rename yours"
    return SettingError(line)


def _hidden() -> list[str]:
    """Return the modules of the working directory that the server's own ones hide."""
    here = {path.stem for path in Path.cwd().iterdir() if path.is_dir() or path.suffix == ".py"}
    files = {name: getattr(sys.modules.get(name), "__file__", None) or "" for name in here}
    own = [name for name, file in files.items() if Path(file).is_relative_to(HERE)]
    return [] if Path.cwd() == HERE else sorted(own)


async def make(found: Any, spec: str) -> Runnable[Any, Any]:
    """Return the Runnable: what was found, or what it returns if it is a function.

    The event loop has to run, since some checkpointers cannot be made without it. Raises
    SettingError.
    """
    try:
        if callable(found) and not isinstance(found, Runnable | StateGraph):
            found = found()
        if inspect.isawaitable(found):
            found = await found
    except (Exception, SystemExit) as error:
        raise _failed(spec, error) from error
    if why := await _unfit(found):
        raise SettingError(f"AGENT wants a graph or another Runnable, got {spec!r}: {why}")
    runnable: Runnable[Any, Any] = found
    return runnable


async def _unfit(found: Any) -> str:
    """Return the reason why this cannot be an agent, or an empty text."""
    if isinstance(found, StateGraph):
        return "the graph is not compiled; call its compile() method"
    if not isinstance(found, Runnable):
        return f"it is a {type(found).__name__}"
    if not isinstance(found, CompiledStateGraph):
        return ""
    channel = found.channels.get("messages")
    if channel is None or "messages" not in get_type_hints(found.builder.input_schema):
        return "the graph's input has no 'messages', a list of chat messages"
    if isinstance(channel, LastValue):
        return "the graph's 'messages' need a reducer, such as add_messages"
    if isinstance(found.checkpointer, BaseCheckpointSaver):
        try:
            await found.checkpointer.aget_tuple(
                {"configurable": {"thread_id": "", "checkpoint_ns": ""}}
            )
        except NotImplementedError:
            return "its checkpointer has no async methods; leave it out and set DATABASE_URL"
    return ""


def as_graph(runnable: Runnable[Any, Any]) -> Graph:
    """Return a graph as it is, and of any other Runnable a graph of one node that awaits it.

    The Runnable is given ``{"messages": [...]}`` with the whole conversation, or the list alone if
    it begins with a chat model. An answer that is neither text nor messages is kept as its JSON.
    """
    if isinstance(runnable, CompiledStateGraph):
        return runnable
    takes_list = False
    with suppress(TypeError):  # A Runnable may declare no input type.
        takes_list = runnable.InputType == FakeListChatModel(responses=[]).InputType

    async def run(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        messages = state["messages"]
        given = messages if takes_list else {"messages": messages}
        return {"messages": _answer(await runnable.ainvoke(given, config))}

    graph = StateGraph(MessagesState).add_node("run", run).add_edge(START, "run")
    # An inner graph uses the store of the outer graph, so the outer one gets the inner one's.
    return graph.compile(store=getattr(_graph_in(runnable), "store", None))


def _answer(output: Any) -> Any:
    match output:
        case None:
            return []
        case BaseMessage() | [BaseMessage(), *_]:
            return output
        case {"messages": [*messages]}:
            return messages
    return AIMessage(as_text(output))


def _graph_in(runnable: Any) -> Graph | None:
    """Find the graph that a Runnable wraps, as ``with_retry`` and sequences do."""
    if isinstance(runnable, Pregel):
        return runnable
    inner = [getattr(runnable, "bound", None), *getattr(runnable, "steps", ())]
    return next(filter(None, (_graph_in(each) for each in inner if each is not None)), None)


def read_context(graph: Graph, given: dict[str, Any] | None) -> Any:
    """Return the graph's runtime context, None without a schema. Raises ValueError if it is unfit.

    The schema is a dataclass, a Pydantic model or a TypedDict, as LangGraph takes them.
    """
    schema = graph.context_schema
    if schema is None or given is None:
        return None
    if is_typeddict(schema):  # Before Python 3.12 Pydantic wants that of typing_extensions.
        hints = get_type_hints(schema, include_extras=True)
        schema = cast(Any, TypedDict)("Context", hints, total=cast(Any, schema).__total__)
    return TypeAdapter(schema).validate_python(given)
