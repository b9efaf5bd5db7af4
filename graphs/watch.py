"""A callback handler for what a graph's stream lacks: calls inside tools, who raised what.

Nothing in here knows threads or events.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar, Token
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler

from graphs.failures import EmptyAnswer, lacks_key, model_failure
from graphs.messages import Usage, counts_of, whole

HIDDEN = "hidden"
"""The metadata key of a model or a node whose text is not answer text."""

MODEL_CALL = "model_call"
"""The metadata key that names the model call which a message or chunk belongs to."""

SILENT = {"nostream", "langsmith:nostream"}
"""The tags of models that are not to be streamed. LangGraph streams those with the second."""

# The id of the parent run would not do: a ToolNode gives its tools the node's own config.
_inside_tool: ContextVar[bool] = ContextVar("inside_tool", default=False)


class Watch(BaseCallbackHandler):
    """Records what runs inside a tool, what is not to be streamed, and who raised what.

    LangChain passes one metadata dict to all handlers of a model call or a node, and LangGraph
    sends that dict with each chunk. So a key that is set here arrives in the translator.
    """

    run_inline = True

    def __init__(self) -> None:
        self.silent: set[str | None] = set()
        """The ids of the messages that are not to be streamed."""
        self.silent_usage: dict[str, Usage] = {}
        """The token counts of their model calls."""
        self._silent_calls: set[UUID] = set()
        self._tokens: dict[UUID, Token[bool]] = {}
        self._of_models: list[tuple[BaseException, str]] = []
        """What model calls raised, with the model call."""
        self._of_tools: list[BaseException] = []

    def on_tool_start(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        self._tokens[run_id] = _inside_tool.set(True)

    def on_tool_end(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        # `reset` fails in another context than the tool started in; nothing is changed there.
        with suppress(KeyError, ValueError):
            _inside_tool.reset(self._tokens.pop(run_id))

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._of_tools.append(error)
        self.on_tool_end(run_id=run_id)

    def on_chain_start(self, *args: Any, metadata: Any = None, **kwargs: Any) -> None:
        if metadata and _inside_tool.get():
            metadata[HIDDEN] = True

    def on_chat_model_start(
        self, *args: Any, run_id: UUID, tags: Any = None, metadata: Any = None, **kwargs: Any
    ) -> None:
        silent = not SILENT.isdisjoint(tags or ())
        if silent:
            self._silent_calls.add(run_id)
        if metadata:
            metadata[MODEL_CALL] = str(run_id)
            metadata[HIDDEN] = silent or _inside_tool.get()

    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        generations = response.generations[0]
        message = generations[0].message if hasattr(generations[0], "message") else None
        if message and isinstance(message.content, str):
            # Two chunks may have brought the halves of a surrogate pair, which no checkpoint can
            # save. The graph gets this message object.
            message.content = whole(message.content)
            kept = message.additional_kwargs
            if isinstance(reasoning := kept.get("reasoning_content"), str):
                kept["reasoning_content"] = whole(reasoning)
        if message and run_id in self._silent_calls:
            self.silent.add(message.id)
            if message.usage_metadata:
                self.silent_usage[str(run_id)] = counts_of(message.usage_metadata)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._of_models.append((error, str(run_id)))

    def kind_of(self, error: BaseException | None, began: Callable[[str], bool]) -> str:
        """Return the key of `FAILURES` for what the graph raised.

        The origin decides: an error of a tool or a node is an ``agent_error``, whatever its class.
        ``began`` says whether a model call had sent a chunk.
        """
        if isinstance(error, EmptyAnswer):
            return "empty"
        chain = []
        while error is not None and error not in chain:
            chain.append(error)
            error = error.__cause__
        if any(raised is each for raised in self._of_tools for each in chain):
            return "agent_error"
        for raised, call in self._of_models:
            if any(raised is each for each in chain):
                return model_failure(chain, began(call))
        return "no_key" if any(map(lacks_key, chain)) else "agent_error"
