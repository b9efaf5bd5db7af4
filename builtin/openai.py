"""A chat model for OpenAI and for the many servers that speak its chat-completions API.

These servers differ in what they stream. Here each stream becomes what OpenAI itself would send,
so LangChain and the graph see one form. This module knows no tools, threads or events.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from uuid import uuid4

import openai
from langchain_core.exceptions import ModelAPIError, ModelConnectionError
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

MAX_RETRY_AFTER_S = 5
ERROR_KEYS = {"code", "detail", "errors", "message"}


def openai_model(api_key: str, base_url: str, model: str) -> BaseChatModel:
    """Return a chat model that streams from OpenAI, or from the server at ``base_url``.

    OPENAI_PROXY, HTTPS_PROXY and NO_PROXY work as usual. The openai client tries a failing request
    three times.
    """
    proxy = os.environ.get("OPENAI_PROXY") or None
    if proxy and "://" not in proxy:  # It may lack the scheme, as HTTPS_PROXY may.
        proxy = f"http://{proxy}"
    try:
        # With it, a token takes 80 µs in place of 130.
        http = openai.DefaultAioHttpClient(proxy=proxy)
    except RuntimeError:  # An older openai needs the package httpx-aiohttp for it.
        http = openai.DefaultAsyncHttpxClient(proxy=proxy)
    client = AsyncOpenAI(
        # A local server needs no key, but the client does.
        api_key=api_key or "none",
        base_url=base_url or None,
        http_client=http,
        # The run's own time-out ends a model that stalls.
        timeout=None,
    )
    return ChatModel(
        model=model,
        # ChatOpenAI would make these itself, and fail without a key or on a SOCKS proxy.
        client=client,
        async_client=client,
        root_async_client=client,
        api_key=SecretStr("none"),
        # Without this, ChatOpenAI logs a wrong warning: that it ignores the proxy.
        http_socket_options=(),
        # Only streams are repaired, so a graph that runs without streaming needs one, too.
        streaming=True,
        stream_usage=True,
        stream_chunk_timeout=None,
    )


class AsyncOpenAI(openai.AsyncOpenAI):  # Its name is in the header User-Agent.
    """The openai client, with the method ``create`` that LangChain calls.

    It streams dicts, which LangChain accepts as well as openai's objects. Building those objects
    and taking them apart again costs half of a token's time.
    """

    _connections: AsyncGenerator[None, None] | None = None

    async def create(self, **body: Any) -> Answer:
        if self._connections is None:
            self._connections = self._close_at_the_end()
            await anext(self._connections)
        path = "/chat/completions"
        return await self.post(path, body=body, cast_to=object, stream=True, stream_cls=Answer)

    async def _close_at_the_end(self) -> AsyncGenerator[None, None]:
        """Close the connections when the event loop ends.

        asyncio finishes every open generator then. Without this one, aiohttp logs an error about
        open connections when the server stops.
        """
        try:
            yield
        finally:
            await self.close()

    def _should_retry(self, response: Any) -> bool:
        # The client would wait for up to two minutes. Nobody waits that long without a word.
        wait_s = self._parse_retry_after_header(response.headers) or 0
        return wait_s <= MAX_RETRY_AFTER_S and super()._should_retry(response)


class ChatModel(ChatOpenAI):
    """ChatOpenAI that keeps reasoning, and sends back what came with tool calls."""

    def _convert_chunk_to_generation_chunk(
        self, chunk: dict[str, Any], *args: Any, **kwargs: Any
    ) -> ChatGenerationChunk | None:
        if "message" in chunk:  # LangChain's own conversion takes longer.
            return ChatGenerationChunk(message=chunk["message"])
        converted = super()._convert_chunk_to_generation_chunk(chunk, *args, **kwargs)
        if converted:
            converted.message.additional_kwargs.update(chunk["kept"])
        return converted

    def _get_request_payload(self, input_: Any, **kwargs: Any) -> dict[str, Any]:
        payload: dict[str, Any] = super()._get_request_payload(input_, **kwargs)
        messages = self._convert_input(input_).to_messages()
        for message, sent in zip(messages, payload.get("messages", ()), strict=False):
            calls, kept = sent.get("tool_calls", ()), message.additional_kwargs
            # DeepSeek and Kimi refuse a call without its reasoning. Groq accepts reasoning only
            # under the name that it uses itself, so it goes back under the name that it came with.
            if calls and kept.get("reasoning_content"):
                field = kept.get("reasoning_field", "reasoning_content")
                sent[field] = kept["reasoning_content"]
            for call in calls:
                # Gemini refuses a call without its signature.
                if extra := kept.get("extra_content", {}).get(call["id"]):
                    call["extra_content"] = extra
                # Some servers parse old arguments and fail if they are not an object.
                arguments = call["function"]["arguments"]
                if not _json_object(arguments):
                    call["function"]["arguments"] = json.dumps({"arguments": arguments})
        return payload


class Answer(openai.AsyncStream[object]):  # For `object`, openai passes dicts on unchanged.
    """The chunks of one answer, with all that servers do differently made equal.

    Text and reasoning pass at once, as ``{"message": AIMessageChunk}``. Tool calls, usage and
    finish_reason are collected for one last chunk, in OpenAI's form. Raises APIError for a chunk
    that is no part of an answer, ModelAPIError if the stream ended before an answer began, and
    ModelConnectionError if it broke off later.
    """

    done = False

    async def _iter_events(self) -> AsyncIterator[Any]:
        async for event in super()._iter_events():
            self.done = event.data.startswith("[DONE]")
            yield event

    async def __stream__(self) -> AsyncIterator[Any]:
        calls: list[dict[str, Any]] = []
        kept: dict[str, Any] = {}
        chunk: Any = {}
        usage = finish_reason = None
        begun = False
        try:
            async for chunk in super().__stream__():
                # Some servers send the usage so far in each chunk. LangChain would add it all up.
                usage = chunk.get("usage") or usage
                if not chunk.get("choices") and chunk.keys() & ERROR_KEYS:
                    raise ValueError("an error in place of an answer")
                choice = (chunk.get("choices") or [{}])[0]
                finish_reason = choice.get("finish_reason") or finish_reason
                delta = choice.get("delta") or {}
                for fragment in delta.get("tool_calls") or ():
                    _collect(calls, fragment)
                message = AIMessageChunk(content=delta.get("content") or delta.get("refusal") or "")
                field = "reasoning_content" if delta.get("reasoning_content") else "reasoning"
                if isinstance(reasoning := delta.get(field), str) and reasoning:
                    kept = {} if field == "reasoning_content" else {"reasoning_field": field}
                    message.additional_kwargs["reasoning_content"] = reasoning
                if message.content or message.additional_kwargs:
                    begun = True
                    yield {"message": message}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            text = f"This chunk is no part of an answer: {chunk!r:.1000}"
            raise openai.APIError(text, self.response.request, body=chunk) from error
        if not finish_reason and not begun and not calls:
            raise ModelAPIError("The stream ended before an answer began.")
        if not finish_reason and not self.done:
            raise ModelConnectionError("The stream ended without its end mark.")
        _repair(calls, cut=finish_reason == "length")
        if extra := {call["id"]: call["extra"] for call in calls if call["extra"]}:
            kept["extra_content"] = extra
        choice = {"delta": {"tool_calls": calls}, "finish_reason": finish_reason}
        yield {**chunk, "choices": [choice], "usage": usage, "kept": kept}


def _collect(calls: list[dict[str, Any]], fragment: dict[str, Any]) -> None:
    """Add a fragment to the tool call that it continues, or begin a call with it.

    It continues the last call, or the last one of its index. But a fragment with a name begins a
    call if that call has another name or id, or whole arguments: some servers send each call whole
    and without an index, and others repeat name and id in each fragment.
    """
    function = fragment.get("function") or {}
    index, id_, name = fragment.get("index"), fragment.get("id") or "", function.get("name") or ""
    text = function.get("arguments") or ""
    text = text if isinstance(text, str) else json.dumps(text)
    call = next((c for c in reversed(calls) if index in (None, c["index"])), None)
    if not call or (
        name
        and (
            call["function"]["name"] not in ("", name)
            or (id_ and call["id"] not in ("", id_))
            or (text and _json_object(call["function"]["arguments"]))
        )
    ):
        call = {"index": index, "id": "", "function": {"name": "", "arguments": ""}, "extra": None}
        calls.append(call)
    call["id"] = call["id"] or id_
    call["function"]["name"] = call["function"]["name"] or name
    call["function"]["arguments"] += text
    call["extra"] = fragment.get("extra_content") or call["extra"]


def _repair(calls: list[dict[str, Any]], cut: bool) -> None:
    """Give each call its own id, a name, and arguments that are a JSON object or invalid.

    ``cut`` is whether the answer reached the token limit, perhaps within the last call.
    """
    for position, call in enumerate(calls):
        call["index"] = position
        if not call["id"] or call["id"] in [other["id"] for other in calls[:position]]:
            call["id"] = f"call_{uuid4().hex}"
        function = call["function"]
        # Providers refuse an empty name. No tool is called "unknown", so the call fails.
        function["name"] = function["name"] or "unknown"
        text = function["arguments"]
        if text.strip() in ("", "null") and not cut:
            text = "{}"
        # LangChain completes a cut object and would start the tool, but not after this space.
        function["arguments"] = _whole(_json_object(text) or "\u00a0" + text)


def _json_object(text: str) -> str | None:
    """Return the JSON object of a call's arguments, None if they hold no object."""

    def number(digits: str) -> int | float:
        # Checkpointers refuse integers of more than 64 bits.
        return int(digits) if len(digits) < 20 else float(digits)

    try:
        found = json.loads(text, strict=False, parse_int=number)
        sound = json.dumps(found, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return sound if isinstance(found, dict) else None


def _whole(text: str) -> str:
    """Join the halves of surrogate pairs; a single half has no UTF-8 and becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
