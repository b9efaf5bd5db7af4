"""AG-UI's own integration, ag-ui-langgraph, on FastAPI under uvicorn.

``app`` is as its page shows it: each of LangGraph's own events is repeated beside AG-UI's, for
debugging. ``lean`` has that switched off.
"""

from __future__ import annotations

from ag_ui_langgraph import LangGraphAgent, add_langgraph_fastapi_endpoint
from fastapi import FastAPI
from langgraph.checkpoint.memory import InMemorySaver

from tests.bench.graph import graph

graph.checkpointer = InMemorySaver()  # It reads the thread before and after each run.


def make_app(emit_raw_events: bool) -> FastAPI:
    app = FastAPI()
    agent = LangGraphAgent(name="bench", graph=graph, emit_raw_events=emit_raw_events)
    add_langgraph_fastapi_endpoint(app, agent, "/api/ag-ui")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    return app


app = make_app(emit_raw_events=True)
lean = make_app(emit_raw_events=False)
