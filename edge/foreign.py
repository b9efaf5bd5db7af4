"""Other vocabularies over the same runs: Vercel's AI SDK and AG-UI.

`dialects` reads and writes them; here are their routes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aiohttp import web

from dialects import ag_ui, ai_sdk
from edge import requests
from edge.requests import RUNS, USER
from edge.streams import follow
from events import Refused

routes = web.RouteTableDef()


async def ai_sdk_chat(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Start a run that Vercel's AI SDK asks for, and stream it as the SDK wants it."""
    runs, thread = request[RUNS], requests.thread_in(request, body, "id")
    questions, saved = await runs.questions(thread), await runs.agent.saved(thread)
    asked = ai_sdk.read(body, questions, saved.pending if saved else None)
    run = await runs.start(replace(requests.checked(asked), user=request[USER]))
    message = ai_sdk.last_message(body) if asked.message is None else {}
    return await follow(request, [run], 0, ai_sdk.Translator(run.id, message), ai_sdk.HEADERS)


@routes.get("/api/chat/{thread_id}/stream", allow_head=False)
async def ai_sdk_resume(request: web.Request) -> web.StreamResponse:
    """Stream a chat's newest message from its first frame; 204 if its runs are not kept."""
    turn = await request[RUNS].newest_turn(requests.read_thread(request).thread)
    if not turn:
        return web.Response(status=204)
    answers = [each.asked.resume for each in turn[1:]]
    translator = ai_sdk.Translator(turn[-1].id, {"id": turn[0].id}, answers)
    return await follow(request, turn, 0, translator, ai_sdk.HEADERS)


@routes.post("/api/chat/{thread_id}/stop")
async def ai_sdk_stop(request: web.Request) -> web.StreamResponse:
    """Stop what runs in a chat; 204 also if nothing does."""
    if run := await request[RUNS].running_of(requests.read_thread(request).thread):
        await run.cancel()
    return web.Response(status=204)


@routes.post("/api/ag-ui")
async def ag_ui_run(request: web.Request) -> web.StreamResponse:
    """Start a run that an AG-UI client asks for, or stream its newest turn again."""
    runs, (body, _) = request[RUNS], await requests.read_body(request)
    thread = requests.thread_in(request, body, "threadId")
    saved = await runs.agent.saved(thread)
    asked = ag_ui.read(body, saved.pending if saved else None)
    if asked is None:
        replay, turn = True, await runs.newest_turn(thread)
    else:
        asked = replace(requests.checked(asked), user=request[USER])
        run = await runs.start(asked)
        replay = run.asked is not asked
        turn = (await runs.turn_of(run) if replay else []) or [run]
    if not turn:
        raise Refused("unknown_run")
    answers = [each.asked.resume for each in turn[1:]]
    return await follow(request, turn, 0, ag_ui.Translator(turn[-1].id, body, replay, answers))
