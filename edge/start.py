"""What answers questions: the agent, its threads and its runs.

`app` imports this in a thread and serves the page meanwhile: LangGraph, which comes with it, takes
most of the time that the server needs to start.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from agent import Agent
from edge.settings import Settings
from events import SettingError
from graphs.load import find, make
from runs.registry import MemoryStore, Registry, Store
from threads.memory import Memory

__all__ = ["find", "open_runs"]

README = Path(__file__).resolve().parent.parent / "README.md"


async def open_runs(settings: Settings, agent: Agent | None, engines: AsyncExitStack) -> Registry:
    """Return the runs of this agent, or of the one that the settings name.

    Redis and the database, if they are set, are closed with ``engines``. Raises SettingError.
    """
    agent = agent or await load_agent(settings)
    store: Store = MemoryStore()
    agent.keep_threads_in(Memory(settings.max_threads))
    try:
        name = "DATABASE_URL"
        if settings.database_url:
            from threads.database import open_database

            database = open_database(settings.database_url)
            agent.keep_threads_in(await engines.enter_async_context(database))
        name = "REDIS_URL"
        if settings.redis_url:
            from runs.redis import open_redis

            redis = open_redis(settings.redis_url, settings)
            store = await engines.enter_async_context(redis)
    except ImportError as error:
        install = f"{sys.executable} -m pip install -r deploy/requirements.txt"
        raise SettingError(f"{name} wants the package of {error.name}: {install}") from error
    except Exception as error:
        # Not the exception's text, which may have the password.
        got = type(error).__name__
        raise SettingError(f"{name} wants an engine that answers, got {got}") from error
    return Registry(settings, agent, store)


async def load_agent(settings: Settings) -> Agent:
    """Return what AGENT names, else the built-in agent. Raises SettingError."""
    if settings.agent:
        return Agent(await make(find(settings.agent), settings.agent), settings.agent)
    # In a thread, since a real model's package takes as long to import as LangGraph.
    return await asyncio.to_thread(built_in_agent, settings)


def built_in_agent(settings: Settings) -> Agent:
    from builtin.agent import built_in

    graph, model = built_in(
        docs=Path(settings.docs_dir or README),
        tokens_per_s=settings.demo_tokens_per_s,
        api_key=settings.openai_api_key,
        base_url=settings.openai_base_url,
        model=settings.openai_model,
    )
    return Agent(graph, "built-in", model)
