"""Failures of LangChain's integrations, each against a server on a socket that fails as asked."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from langchain_core.language_models import BaseChatModel
from pydantic import SecretStr

from agent import Agent
from tests.client import check
from tests.conftest import Server, listen
from tests.scripted import loop_graph

# google-genai makes a class of aiohttp's session.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession")

Start = Callable[..., Awaitable[Server]]

KEY = SecretStr("none")


def openai(url: str) -> BaseChatModel:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="m", api_key=KEY, base_url=f"{url}/v1", max_retries=0)


def anthropic(url: str) -> BaseChatModel:
    from langchain_anthropic import ChatAnthropic

    return ChatAnthropic(model_name="m", api_key=KEY, base_url=url, max_retries=0)  # type: ignore[call-arg]


def mistral(url: str) -> BaseChatModel:
    from langchain_mistralai import ChatMistralAI

    return ChatMistralAI(model_name="m", api_key=KEY, endpoint=f"{url}/v1", max_retries=1)  # type: ignore[call-arg]


def ollama(url: str) -> BaseChatModel:
    from langchain_ollama import ChatOllama

    return ChatOllama(model="m", base_url=url)


def google(url: str) -> BaseChatModel:
    from langchain_google_genai import ChatGoogleGenerativeAI

    return ChatGoogleGenerativeAI(model="m", api_key=KEY, base_url=url, max_retries=1)


INTEGRATIONS = [openai, anthropic, mistral, ollama, google]


@pytest.fixture
async def failing() -> AsyncIterator[dict[str, Any]]:
    """A server that answers every request with ``status`` and the JSON ``body``."""
    reply: dict[str, Any] = {"status": 500, "body": {}}

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response(reply["body"], status=reply["status"])

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner, reply["url"] = await listen(app)
    yield reply
    await runner.cleanup()


STATUSES = [
    (401, {"error": {"message": "secret"}}, "model_auth", False),
    (403, {"error": {"message": "secret"}}, "model_auth", False),
    (404, {"error": {"message": "model 'm' not found"}}, "model_not_found", False),
    (429, {"error": {"message": "secret"}}, "model_rate_limit", True),
    (
        *(429, {"error": {"message": "x", "code": "insufficient_quota"}}),
        *("model_rate_limit", False),
    ),
    (400, {"error": {"message": "prompt is too long: 9 tokens"}}, "model_context", False),
    (400, {"error": {"message": "secret"}}, "model_error", False),
    (500, {"error": {"message": "secret"}}, "model_error", True),
    (503, {"error": {"message": "secret"}}, "model_error", True),
]


@pytest.mark.parametrize("make", INTEGRATIONS, ids=lambda make: make.__name__)
@pytest.mark.parametrize(("status", "body", "code", "retryable"), STATUSES)
async def test_a_status_has_its_code_in_every_integration(
    start: Start,
    failing: dict[str, Any],
    make: Callable[[str], BaseChatModel],
    status: int,
    body: Any,
    code: str,
    retryable: bool,
) -> None:
    failing.update(status=status, body=body)
    server = await start(Agent(loop_graph(make(failing["url"]), []), "x"))
    stream = await server.ask("hi")
    events = await stream.events()
    check(events)
    assert (events[-2]["code"], events[-2]["retryable"]) == (code, retryable)
    assert b"secret" not in stream.raw


@pytest.mark.parametrize("make", INTEGRATIONS, ids=lambda make: make.__name__)
async def test_a_server_that_is_not_there_is_unreachable_in_every_integration(
    start: Start, make: Callable[[str], BaseChatModel]
) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        server = await start(Agent(loop_graph(make(url), []), "x"))
        events = await server.run("hi")
    assert (events[-2]["code"], events[-2]["retryable"]) == ("model_unreachable", True)
