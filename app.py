"""HTTP: routes, start and stop.

With `edge`, which checks requests and writes streams, the only code that knows aiohttp. What a run
is, and how it ends, is the business of `runs`; what a message means that of `agent`; the bytes of a
frame that of `events`.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":
    # During the start no run has begun, so SIGTERM and Ctrl-C end the process at once. Not by
    # SIG_DFL: with it the first process of a container ignores SIGTERM.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
if sys.version_info < (3, 11):
    sys.exit("This server needs Python 3.11 or newer; this is " + sys.version.split()[0] + ".")

import asyncio
import gc
import importlib
import logging
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http import HttpProcessingError

from dialects import ai_sdk
from edge import foreign, requests
from edge.requests import OPENING, RUNS, SETTINGS, USER, send_json
from edge.settings import VERSION, Settings, misspelt, read_settings
from edge.streams import follow, run_headers
from events import Refused, SettingError, Unavailable

if TYPE_CHECKING:
    # To import these at once would bring LangGraph in before the page is served.
    from agent import Agent
    from runs.registry import Registry
    from runs.run import AnyRun

STATIC = Path(__file__).resolve().parent / "static"

routes = web.RouteTableDef()

logger = logging.getLogger("chat")


# ------------------------------------------------------------------------------------- handlers


@routes.post("/api/chat")
async def chat(request: web.Request) -> web.StreamResponse:
    """Start a run, or join the one that the same key started, and stream it."""
    body, digest = await requests.read_body(request)
    if ai_sdk.is_request(body):
        return await foreign.ai_sdk_chat(request, body)
    asked = requests.read_chat(request, body, digest)
    run = await request[RUNS].start(asked)
    if "respond-async" in ",".join(request.headers.getall("Prefer", [])).lower():
        about = {"run_id": run.id, "thread_id": run.asked.thread_id}
        response = send_json({**about, "events": run_headers(run)["Location"]}, 202)
        response.headers.update(run_headers(run))
        return response
    joined = run.asked is not asked
    return await follow(request, [run], requests.read_cursor(request, run.log) if joined else 0)


@routes.get("/api/runs/{run_id}/events", allow_head=False)
async def run_events(request: web.Request) -> web.StreamResponse:
    """Stream a run from a cursor: replay, then live."""
    run = await find_run(request)
    return await follow(request, [run], requests.read_cursor(request, run.log))


@routes.get("/api/runs/{run_id}", allow_head=False)
async def run_state(request: web.Request) -> web.StreamResponse:
    return send_json((await find_run(request)).document())


@routes.post("/api/runs/{run_id}/cancel")
async def cancel(request: web.Request) -> web.StreamResponse:
    """Stop a run and respond when it has ended."""
    run = await find_run(request)
    if run.log.closed:
        return send_json(run.document())
    await run.cancel()
    return send_json(run.document(), 202)


async def find_run(request: web.Request) -> AnyRun:
    return await request[RUNS].get(request.match_info["run_id"], request[USER])


@routes.get("/api/threads/{thread_id}", allow_head=False)
async def thread_state(request: web.Request) -> web.StreamResponse:
    """Return the conversation so far, and what the thread waits for."""
    runs, asked = request[RUNS], requests.read_thread(request)
    run = await runs.running_of(asked.thread)
    saved = await runs.agent.saved(asked.thread)
    if not run and not saved:
        raise Refused("unknown_thread")
    messages = saved.document() if saved else []
    if run and run.question_id not in (None, *(each.get("id") for each in messages)):
        # The graph may not have saved the question yet.
        messages.append({"role": "user", "id": run.question_id, "content": run.asked.message})
    about: dict[str, Any] = {
        "thread_id": asked.thread_id,
        "run_id": run.id if run else None,
        "messages": messages,
    }
    if not run and saved and saved.pending:
        about["interrupts"] = [{"id": id_, "value": v} for id_, v in saved.pending.items()]
    return send_json(about)


@routes.delete("/api/threads/{thread_id}")
async def delete_thread(request: web.Request) -> web.StreamResponse:
    await request[RUNS].forget(requests.read_thread(request))
    return web.Response(status=204)


@routes.get("/api/info", allow_head=False)
async def info(request: web.Request) -> web.StreamResponse:
    """Return what the page shows before the first message."""
    settings, agent = request.app[SETTINGS], request[RUNS].agent
    names = ("heartbeat_s", "run_timeout_s", "max_runs", "max_run_bytes", "max_body_bytes")
    limits = {name: getattr(settings, name) for name in names}
    limits["message_chars"] = requests.MESSAGE_CHARS
    about = {"agent": agent.name, "model": agent.model, "version": VERSION, "limits": limits}
    return send_json(about)


@routes.get("/healthz")
async def healthz(request: web.Request) -> web.StreamResponse:
    runs = request[RUNS]
    if runs.draining:
        return send_json({"status": "draining"}, 503)
    try:
        await runs.check()
    except Unavailable:
        return send_json({"status": "degraded", "running": runs.running})
    return send_json({"status": "ok", "running": runs.running})


@routes.get("/")
async def page(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(STATIC / "index.html")


# ------------------------------------------------------------------------------- start and stop


def create_app(settings: Settings, agent: Agent | None = None) -> web.Application:
    """Return the application that serves this agent, or the one that the settings name."""
    app = web.Application(middlewares=[requests.guard], client_max_size=settings.max_body_bytes)
    app[SETTINGS] = settings
    app.cleanup_ctx.append(lambda app: keep_runs(app, agent))
    app.on_response_prepare.append(requests.add_headers)
    app.add_routes([*routes, *foreign.routes, web.static("/static", STATIC)])
    return app


async def keep_runs(app: web.Application, agent: Agent | None) -> AsyncIterator[None]:
    """Begin to open the runs; at the end close what was opened, after the last run."""
    async with AsyncExitStack() as engines:
        opening = app[OPENING] = asyncio.create_task(open_runs(app[SETTINGS], agent, engines))
        yield
        if opening.cancel():  # The address cannot be used, so nobody waits for them.
            await asyncio.wait({opening})
        else:
            await (await opening).drain(0)


async def open_runs(settings: Settings, agent: Agent | None, engines: AsyncExitStack) -> Registry:
    """Import LangGraph in a thread, so that the page is served meanwhile, then open the runs."""
    start = await asyncio.to_thread(importlib.import_module, "edge.start")
    runs: Registry = await start.open_runs(settings, agent, engines)
    return runs


async def listen(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, str]:
    """Serve the application until the runner is cleaned up; return the runner and the URL.

    Raises SettingError if the address cannot be used.
    """
    runner = web.AppRunner(
        app,
        access_log=None,
        # Else the next write would notice a disconnect, and the grace would begin late.
        handler_cancellation=True,
        shutdown_timeout=0.2,
        # A compressed body is refused, so aiohttp need not unpack it.
        auto_decompress=False,
        # 32 KiB and the field's name: on localhost a browser sends the cookies of all ports.
        max_field_size=33_000,
    )
    await runner.setup()
    try:
        # So many connections may wait to be accepted; Linux caps it at its own 4096.
        await web.TCPSite(runner, host, port, backlog=1024).start()
    except (OSError, UnicodeError) as error:
        await runner.cleanup()
        got = f"{host}:{port}: {getattr(error, 'strerror', None) or 'no such name'}"
        raise SettingError(f"HOST and PORT want an address that is free here, got {got}") from None
    address, port = runner.addresses[0][:2]
    return runner, f"http://{f'[{address}]' if ':' in address else address}:{port}"


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C, then shut down in order; a second signal ends it at once."""
    loop = asyncio.get_running_loop()
    # A stopped synchronous tool keeps its thread until it returns: have more threads than runs.
    loop.set_default_executor(ThreadPoolExecutor(settings.max_runs + 32))
    app = create_app(settings)
    runner, url = await listen(app, settings.host, settings.port)
    try:
        runs = await app[OPENING]
    except SettingError:
        await runner.cleanup()
        raise
    stop = asyncio.Event()

    def on_signal(*_: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        loop.call_soon_threadsafe(stop.set)

    # Not loop.add_signal_handler, which Windows does not have.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    # What is loaded by now stays, so the garbage collector need not look at it again, nor after
    # each few chunks, as by default: 3 % of the time to the first token.
    gc.freeze()
    gc.set_threshold(10_000)
    if "*" in settings.hosts and not (settings.api_token or settings.user_header):
        logger.warning("HOST is not loopback: without API_TOKEN or USER_HEADER anybody may use it")
    print(f"Serving {runs.agent.title} on {url}; Ctrl-C stops", flush=True)
    await stop.wait()
    grace_s = settings.shutdown_grace_s
    if runs.running:
        waiting = f"Waiting up to {grace_s:g} s for running runs ({runs.running})"
        print(f"{waiting}; Ctrl-C again stops at once", flush=True)
    # The server still listens: reads and health checks are answered.
    await runs.drain(grace_s)
    await runner.cleanup()


def is_failure(record: logging.LogRecord) -> bool:
    """Let what clients cause be one line at DEBUG, instead of a traceback.

    aiohttp logs each request that is not HTTP; asyncio, on Windows, each closed tab.
    """
    error = record.exc_info and record.exc_info[1]
    if not isinstance(error, HttpProcessingError | ConnectionError):
        return True
    logger.debug("a client's connection failed: %r", error)
    return False


def main() -> None:
    """Read the settings, find the agent and serve it."""
    try:
        settings = read_settings(sys.argv[1:], os.environ)
        # Only this server's own level: libraries log addresses and texts below WARNING.
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
        for name in ("aiohttp.server", "asyncio"):
            logging.getLogger(name).addFilter(is_failure)
        logger.setLevel(settings.log_level.upper())
        for name, meant in misspelt(os.environ):
            logger.warning("the variable %s is no setting; is %s meant?", name, meant)
        if settings.agent:
            # Before the event loop runs, since what AGENT names may run one of its own; and after
            # the server's modules, since it may have the name of one of them.
            from edge.start import find

            find(settings.agent)
        run_to_the_end(serve(settings))
    except SettingError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    logging.shutdown()
    sys.stdout.flush()
    # A tool that blocks a worker thread would hold the process until it returns.
    os._exit(0)


def run_to_the_end(serving: Coroutine[Any, Any, None]) -> None:
    """Run the event loop until the server has shut down: uvloop's, if it is installed."""
    try:
        from uvloop import new_event_loop  # uvloop is faster.
    except ImportError:
        from asyncio import new_event_loop
    loop = new_event_loop()
    task = loop.create_task(serving)
    while not task.done():
        try:
            loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt) as error:
            # It comes from a tool or a node. asyncio stops the loop then, but other runs still need
            # it.
            if task.done():
                raise
            logger.warning("a tool or a node raised %s", type(error).__name__)


if __name__ == "__main__":
    main()
