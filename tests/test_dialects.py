"""The dialects: exact bytes of tables, and what holds for any script of a model."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage

from agent import Agent
from dialects import ag_ui, ai_sdk, shared
from edge.settings import Settings
from events import Asked, Refused, StreamEvent, encode_event
from runs.registry import AnyRun, MemoryStore, Registry
from tests import agents
from tests.client import FRAME, Event, whole
from tests.conftest import ROOT, Server, on_both
from tests.scripted import ScriptedModel, call, loop_graph, scripted_agent
from tests.test_agent import add
from tests.test_foreign import FAILURES, PIECES, TOOLS, ended, frames

INPUT = {"threadId": "t", "runId": "client-run", "messages": [], "protocolVersion": "1.0"}
PAYING = {"action_requests": [{"name": "pay", "args": {"to": "Ann"}, "description": "Pay Ann?"}]}


def encoded(*events: StreamEvent) -> bytes:
    return b"".join(encode_event(event, n) for n, event in enumerate(events, 1))


def start(run_id: str = "r1") -> StreamEvent:
    return StreamEvent("start", run_id=run_id, thread_id="t", heartbeat_s=15, timeout_s=120)


def text(content: str, message_id: str = "m1") -> StreamEvent:
    return StreamEvent("text_delta", content=content, message_id=message_id)


def thought(content: str, message_id: str = "m1") -> StreamEvent:
    return StreamEvent("reasoning_delta", content=content, message_id=message_id)


def final(content: str, **fields: Any) -> StreamEvent:
    return StreamEvent("final_answer", content=content, message_id="m1", **fields)


def called(call_id: str = "c1", tool: str = "add", **given: Any) -> StreamEvent:
    return StreamEvent("tool_call", tool=tool, tool_call_id=call_id, input=given)


def result(call_id: str = "c1", **fields: Any) -> StreamEvent:
    return StreamEvent("tool_result", tool="add", tool_call_id=call_id, **fields)


def interrupt(**values: Any) -> StreamEvent:
    return StreamEvent(
        "interrupt", interrupts=[{"id": id_, "value": value} for id_, value in values.items()]
    )


def done(reason: str = "completed", **fields: Any) -> StreamEvent:
    return StreamEvent("done", reason=reason, **fields)


ERROR = StreamEvent("error", code="timeout", message="Too slow.", retryable=True, ref="ab")
USAGE = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}


def said_by(translator: shared.Translator, *events: StreamEvent) -> list[Any]:
    """Return the objects that the client receives, checked to be frames."""
    raw = translator(encoded(*events))
    assert re.fullmatch(rb"(data: .*\n\n)*", raw)
    return read_back(raw)


def ai(*events: StreamEvent, message: Any = None, answers: Sequence[Any] = ()) -> list[Any]:
    return said_by(ai_sdk.Translator("r9", message or {"id": "r1"}, answers), *events)


def ag(*events: StreamEvent, replay: bool = False, answers: Any = (), **fields: Any) -> list[Any]:
    return said_by(ag_ui.Translator("r9", {**INPUT, **fields}, replay, answers), *events)


# ------------------------------------------------------------------------------------ exact bytes


def test_the_exact_bytes_of_an_answer_for_the_ai_sdk() -> None:
    translator = ai_sdk.Translator("r1", {})
    events = encoded(start(), text("Hé\u2028\r\n"), text(""), final("Hé\u2028\r\n"), done())
    assert translator(events).decode() == (
        'data: {"type":"start","messageId":"r1",'
        '"messageMetadata":{"run_id":"r1","thread_id":"t"}}\n\n'
        'data: {"type":"start-step"}\n\n'
        'data: {"type":"text-start","id":"m1"}\n\n'
        'data: {"type":"text-delta","id":"m1","delta":"Hé\u2028\\r\\n"}\n\n'
        'data: {"type":"text-delta","id":"m1","delta":""}\n\n'
        'data: {"type":"text-end","id":"m1"}\n\n'
        'data: {"type":"finish-step"}\n\n'
        'data: {"type":"finish","finishReason":"stop","messageMetadata":{"reason":"completed"}}\n\n'
        "data: [DONE]\n\n"
    )


def test_the_exact_bytes_of_an_answer_for_ag_ui() -> None:
    translator = ag_ui.Translator("r1", INPUT)
    events = encoded(start(), text("Hé\u2028\r\n"), text(""), final("Hé\u2028\r\n"), done())
    assert translator(events).decode() == (
        'data: {"type":"RUN_STARTED","threadId":"t","runId":"client-run",'
        '"protocolVersion":"1.0","metadata":{"run_id":"r1"}}\n\n'
        'data: {"type":"TEXT_MESSAGE_START","messageId":"m1","role":"assistant"}\n\n'
        'data: {"type":"TEXT_MESSAGE_CONTENT","messageId":"m1","delta":"Hé\u2028\\r\\n"}\n\n'
        'data: {"type":"TEXT_MESSAGE_CONTENT","messageId":"m1","delta":""}\n\n'
        'data: {"type":"TEXT_MESSAGE_END","messageId":"m1"}\n\n'
        'data: {"type":"RUN_FINISHED","threadId":"t","runId":"client-run",'
        '"outcome":{"type":"success"}}\n\n'
    )


@pytest.mark.parametrize(
    "make", [lambda: ai_sdk.Translator("r", {}), lambda: ag_ui.Translator("r", INPUT)]
)
def test_halves_of_a_surrogate_pair_join_in_the_client(
    make: Callable[[], shared.Translator],
) -> None:
    translator = make()
    raw = translator(encoded(start(), text("\ud83d"), text("\ude00"), final("😀"), done()))
    assert rb'"delta":"\ud83d"' in raw
    assert rb'"delta":"\ude00"' in raw
    assert b"final_answer" not in raw


# ------------------------------------------------------------------------------------------ tables

START = {"type": "start", "messageId": "r1", "messageMetadata": {"run_id": "r9", "thread_id": "t"}}
STEP = {"type": "start-step"}
STEP_END = {"type": "finish-step"}


def finish(word: str, reason: str, **about: Any) -> list[Any]:
    about = {"reason": reason, **about}
    return [{"type": "finish", "finishReason": word, "messageMetadata": about}, "[DONE]"]


def part(id_: str, tool: str, given: Any, **more: Any) -> Any:
    about = {"toolCallId": id_, "toolName": tool, "input": given}
    return {"type": "tool-input-available", **about, "providerExecuted": True, **more}


def question(id_: str, value: Any) -> Any:
    """A question that the page answers."""
    about = {"toolCallId": id_, "toolName": "interrupt", "input": value}
    return {"type": "tool-input-available", **about}


def output(id_: str, given: Any, **more: Any) -> Any:
    return {"type": "tool-output-available", "toolCallId": id_, "output": given, **more}


def piece(kind: str, *deltas: str, id_: str = "m1") -> list[Any]:
    return [
        {"type": f"{kind}-start", "id": id_},
        *({"type": f"{kind}-delta", "id": id_, "delta": delta} for delta in deltas),
        {"type": f"{kind}-end", "id": id_},
    ]


AI = {
    "a note is transient": (
        [StreamEvent("thinking", content="…")],
        [{"type": "data-thinking", "data": {"content": "…"}, "transient": True}],
    ),
    "reasoning is a part of its own": (
        [thought("h"), thought("m"), text("a"), text("b"), final("ab"), done(usage=USAGE)],
        [STEP, *piece("reasoning", "h", "m"), *piece("text", "a", "b"), STEP_END]
        + finish("stop", "completed", usage=USAGE),
    ),
    "texts that come at once stay apart": (
        [text("a", "m1"), text("b", "m2"), text("c", "m1"), done()],
        [
            STEP,
            {"type": "text-start", "id": "m1"},
            {"type": "text-delta", "id": "m1", "delta": "a"},
            {"type": "text-start", "id": "m2"},
            {"type": "text-delta", "id": "m2", "delta": "b"},
            {"type": "text-delta", "id": "m1", "delta": "c"},
            {"type": "text-end", "id": "m1"},
            {"type": "text-end", "id": "m2"},
            STEP_END,
            *finish("stop", "completed"),
        ],
    ),
    "two tools, and what follows their results": (
        [
            *(text("a"), called("c1", n=1), called("c2", n=2)),
            StreamEvent("tool_progress", tool="add", tool_call_id="c1", content="half"),
            result("c2", status="ok", result={"sum": 2}),
            *(result("c1", status="error", message="No."), text("b", "m2"), done()),
        ],
        [
            *(STEP, *piece("text", "a"), part("c1", "add", {"n": 1}), part("c2", "add", {"n": 2})),
            output("c1", {"content": "half"}, preliminary=True),
            output("c2", {"sum": 2}),
            {"type": "tool-output-error", "toolCallId": "c1", "errorText": "No."},
            *(STEP, *piece("text", "b", id_="m2"), STEP_END, *finish("stop", "completed")),
        ],
    ),
    "a result at the end, which is not the last step": (
        [called("c1", n=1), result("c1", status="ok", result={"sum": 1}), done()],
        [
            *(STEP, part("c1", "add", {"n": 1}), output("c1", {"sum": 1})),
            *(STEP, STEP_END, *finish("stop", "completed")),
        ],
    ),
    "an answer that the graph changed": (
        [text("secret"), final("***"), done()],
        [
            *(STEP, *piece("text", "secret")),
            {"type": "message-metadata", "messageMetadata": {"final_answer": "***"}},
            *(STEP_END, *finish("stop", "completed")),
        ],
    ),
    "an error": (
        [text("a"), ERROR, done("timeout")],
        [
            *(STEP, *piece("text", "a")),
            {
                "type": "message-metadata",
                "messageMetadata": {"error": {"code": "timeout", "retryable": True, "ref": "ab"}},
            },
            *({"type": "error", "errorText": "Too slow."}, STEP_END, *finish("error", "timeout")),
        ],
    ),
    "a stop before anything came": (
        [done("cancelled")],
        [STEP, STEP_END, {"type": "abort"}, *finish("other", "cancelled")],
    ),
    "interrupts, in a step of their own": (
        [
            *(called(), interrupt(i1="May I?", i2=None)),
            *(result(status="interrupted", message="It waits."), done("interrupted")),
        ],
        [
            *(STEP, part("c1", "add", {}), STEP, question("i1", "May I?"), question("i2", None)),
            *(STEP_END, *finish("tool-calls", "interrupted")),
        ],
    ),
    "a static breakpoint, which has no interrupt": (
        [text("a"), done("interrupted")],
        [
            *(STEP, *piece("text", "a"), STEP, question("r1", None), STEP_END),
            *finish("tool-calls", "interrupted"),
        ],
    ),
    "a call to allow that has not begun": (
        [interrupt(i1=PAYING), done("interrupted")],
        [
            *(STEP, part("i1:0", "pay", {"to": "Ann"})),
            {"type": "tool-approval-request", "approvalId": "i1:0", "toolCallId": "i1:0"},
            *(STEP_END, *finish("tool-calls", "interrupted")),
        ],
    ),
    "a call to allow that has begun": (
        [called("c1", "pay", to="Ann"), interrupt(i1=PAYING), done("interrupted")],
        [
            *(STEP, part("c1", "pay", {"to": "Ann"})),
            {"type": "tool-approval-request", "approvalId": "i1:0", "toolCallId": "c1"},
            *(STEP_END, *finish("tool-calls", "interrupted")),
        ],
    ),
}


@pytest.mark.parametrize("name", AI)
def test_chunks_of_the_ai_sdk(name: str) -> None:
    events, chunks = AI[name]
    assert ai(start(), *events) == [START, *chunks][: len(chunks) + 1]


@pytest.mark.parametrize(
    ("reason", "word"),
    [(None, "stop"), ("length", "length"), ("content_filter", "content-filter"), ("odd", "other")],
)
def test_the_models_reason_to_stop_is_the_finish_reason(reason: str | None, word: str) -> None:
    *_, last, _ = ai(start(), text("a"), final("a", finish_reason=reason), done())
    assert last["finishReason"] == word


# A turn of three runs: a tool asks, then asks again; a person is asked to allow a call; the end.
FIRST = [start("r1"), called("c1", "ask"), interrupt(i1="One?"), done("interrupted")]
SECOND = [start("r2"), called("c1", "ask"), interrupt(i2=PAYING), done("interrupted")]
THIRD = [
    *(start("r3"), called("c1", "ask"), result("c1", status="ok", result={"n": 1})),
    *(called("c2", "pay", to="Ann"), result("c2", status="ok", result={"paid": True})),
    done(),
]
PAID = {"decisions": [{"type": "approve"}]}


def test_the_runs_of_a_turn_are_replayed_as_one_message() -> None:
    assert ai(*FIRST, *SECOND, *THIRD, message={"id": "r1"}, answers=[{"i1": [0]}, PAID]) == [
        *(START, STEP, part("c1", "ask", {})),
        *(STEP, question("i1", "One?"), output("i1", [0])),
        *(STEP, part("i2:0", "pay", {"to": "Ann"})),
        *(output("c1", {"n": 1}), output("i2:0", {"paid": True}), STEP, STEP_END),
        *finish("stop", "completed"),
    ]


def test_an_answer_that_is_not_by_its_id_is_the_output_too() -> None:
    chunks = ai(*FIRST, start("r2"), done(), answers=["yes"])
    assert output("i1", "yes") in chunks


def test_a_run_goes_on_with_the_message_that_was_answered() -> None:
    message = {
        "id": "mine",
        "parts": [
            {"type": "text", "text": "x"},
            {"type": "tool-ask", "toolCallId": "c1", "input": {}, "state": "input-available"},
            {
                **{"type": "tool-pay", "toolCallId": "i2:0", "input": {"to": "Ann"}},
                **{"state": "approval-responded", "approval": {"id": "i2:0", "approved": True}},
            },
        ],
    }
    assert ai(*THIRD, message=message) == [
        {**START, "messageId": "mine"},
        *(output("c1", {"n": 1}), output("i2:0", {"paid": True}), STEP, STEP_END),
        *finish("stop", "completed"),
    ]


def test_of_two_equal_calls_the_rejected_one_gets_the_rejection() -> None:
    """LangChain ends a rejected call before it begins the allowed ones."""
    events = [
        *(start(), called("c2", "pay", to="Ann")),
        *(result("c2", status="error", message="Rejected."), called("c1", "pay", to="Ann")),
        *(result("c1", status="ok", result={"paid": True}), done()),
    ]
    parts = [
        {
            **{"type": "tool-pay", "toolCallId": f"i1:{n}", "input": {"to": "Ann"}},
            **{"state": "approval-responded", "approval": {"id": f"i1:{n}", "approved": n == 0}},
        }
        for n in range(2)
    ]
    assert ai(*events, message={"id": "mine", "parts": parts})[1:3] == [
        {"type": "tool-output-error", "toolCallId": "i1:1", "errorText": "Rejected."},
        output("i1:0", {"paid": True}),
    ]


def test_a_call_that_was_allowed_and_begins_twice_is_one() -> None:
    first = [start("r1"), interrupt(i1=PAYING), done("interrupted")]
    pays = called("c1", "pay", to="Ann")
    second = [start("r2"), pays, interrupt(i2="Sure?"), done("interrupted")]
    third = [start("r3"), pays, result("c1", status="ok", result={"paid": True}), done()]
    chunks = ai(*first, *second, *third, answers=[{"i1": PAID}, {"i2": "yes"}])
    assert [each["toolCallId"] for each in chunks if "toolCallId" in each] == [
        *("i1:0", "i2", "i2", "i1:0")
    ]
    approval = {"id": "i1:0", "approved": True}
    part = {"type": "tool-pay", "toolCallId": "i1:0", "input": {"to": "Ann"}, "approval": approval}
    message = {"id": "mine", "parts": [{**part, "state": "approval-responded"}]}
    assert ai(*third, message=message)[1:2] == [output("i1:0", {"paid": True})]


def test_an_approval_that_has_ended_is_not_that_of_a_later_call() -> None:
    def part(id_: str, state: str) -> Any:
        about = {"type": "tool-pay", "toolCallId": id_, "input": {"to": "Ann"}, "state": state}
        return {**about, "approval": {"id": id_, "approved": True}}

    parts = [part("i1:0", "output-available"), part("i2:0", "approval-responded")]
    pays = [called("c2", "pay", to="Ann"), result("c2", status="ok", result={"paid": True})]
    chunks = ai(start(), *pays, done(), message={"id": "mine", "parts": parts})
    assert chunks[1] == output("i2:0", {"paid": True})


def test_a_call_that_has_ended_is_not_the_one_that_is_to_be_allowed() -> None:
    pays = called("c1", "pay", to="Ann")
    first = [start("r1"), pays, interrupt(i1="Sure?"), done("interrupted")]
    second = [start("r2"), pays, result("c1", status="ok", result={"paid": True})]
    again = [interrupt(i2=PAYING), done("interrupted")]
    chunks = ai(*first, *second, *again, answers=["yes"])
    asked = [each for each in chunks[:-1] if each["type"] == "tool-approval-request"]
    assert [each["toolCallId"] for each in asked] == ["i2:0"]


RUN_STARTED = {
    **{"type": "RUN_STARTED", "threadId": "t", "runId": "client-run"},
    **{"protocolVersion": "1.0", "metadata": {"run_id": "r9"}},
}


def finished(outcome: Any, **more: Any) -> Any:
    about = {"threadId": "t", "runId": "client-run"}
    return {"type": "RUN_FINISHED", **about, "outcome": outcome, **more}


SUCCESS = {"type": "success"}


def said(*deltas: str, id_: str = "m1") -> list[Any]:
    return [
        {"type": "TEXT_MESSAGE_START", "messageId": id_, "role": "assistant"},
        *({"type": "TEXT_MESSAGE_CONTENT", "messageId": id_, "delta": each} for each in deltas),
        {"type": "TEXT_MESSAGE_END", "messageId": id_},
    ]


def tool_call(id_: str, tool: str, arguments: str) -> list[Any]:
    return [
        {"type": "TOOL_CALL_START", "toolCallName": tool, "toolCallId": id_},
        {"type": "TOOL_CALL_ARGS", "delta": arguments, "toolCallId": id_},
        {"type": "TOOL_CALL_END", "toolCallId": id_},
    ]


def tool_result(id_: str, content: str, status: str = "ok") -> Any:
    return {
        **{"type": "TOOL_CALL_RESULT", "messageId": f"{id_}-result", "toolCallId": id_},
        **{"role": "tool", "content": content, "metadata": {"status": status}},
    }


AG = {
    "notes": (
        [StreamEvent("thinking", content="…")],
        [{"type": "CUSTOM", "name": "thinking", "value": "…"}],
    ),
    "reasoning is a message of its own": (
        [thought("h"), thought("m"), text("a"), final("a"), done(usage=USAGE)],
        [
            {"type": "REASONING_START", "messageId": "m1-reasoning"},
            {
                **{"type": "REASONING_MESSAGE_START", "messageId": "m1-reasoning"},
                "role": "reasoning",
            },
            *(
                {"type": "REASONING_MESSAGE_CONTENT", "messageId": "m1-reasoning", "delta": delta}
                for delta in "hm"
            ),
            {"type": "REASONING_MESSAGE_END", "messageId": "m1-reasoning"},
            {"type": "REASONING_END", "messageId": "m1-reasoning"},
            *said("a"),
            finished(SUCCESS, usage=[{"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}]),
        ],
    ),
    "tools": (
        [
            *(called("c1", n=1), called("c2")),
            StreamEvent("tool_progress", tool="add", tool_call_id="c1", content="half"),
            result("c2", status="ok", result={"sum": "é"}),
            *(result("c1", status="cancelled", message="No."), done()),
        ],
        [
            *(*tool_call("c1", "add", '{"n":1}'), *tool_call("c2", "add", "{}")),
            {
                **{"type": "CUSTOM", "name": "tool_progress"},
                "value": {"toolCallId": "c1", "content": "half"},
            },
            *(tool_result("c2", '{"sum":"é"}'), tool_result("c1", "No.", "cancelled")),
            finished(SUCCESS),
        ],
    ),
    "an answer that the graph changed": (
        [text("secret"), final("***"), done()],
        [
            *said("secret"),
            {
                **{"type": "CUSTOM", "name": "final_answer"},
                "value": {"messageId": "m1", "content": "***"},
            },
            finished(SUCCESS),
        ],
    ),
    "an error, and nothing after it": (
        [text("a"), ERROR, done("timeout")],
        [*said("a"), {"type": "RUN_ERROR", "message": "Too slow.", "code": "timeout"}],
    ),
    "a stop": ([done("cancelled")], [finished({"type": "cancelled"})]),
    "interrupts": (
        [
            *(called(), called("c2", "pay", to="Ann")),
            *(interrupt(i1="May I?", i2={"a": 1}, i3=PAYING), done("interrupted")),
        ],
        [
            *(*tool_call("c1", "add", "{}"), *tool_call("c2", "pay", '{"to":"Ann"}')),
            finished(
                {
                    "type": "interrupt",
                    "interrupts": [
                        {
                            **{"id": "i1", "reason": "langgraph:interrupt"},
                            **{"message": "May I?", "metadata": {"value": "May I?"}},
                        },
                        {
                            **{"id": "i2", "reason": "langgraph:interrupt"},
                            **{"message": '{"a":1}', "metadata": {"value": {"a": 1}}},
                        },
                        {
                            **{"id": "i3:0", "reason": "tool_call", "toolCallId": "c2"},
                            "message": "Pay Ann?",
                            "metadata": {"value": PAYING["action_requests"][0]},
                        },
                    ],
                }
            ),
        ],
    ),
    "a static breakpoint, which has no interrupt": (
        [done("interrupted")],
        [
            finished(
                {
                    "type": "interrupt",
                    "interrupts": [
                        {
                            **{"id": "r1", "reason": "langgraph:interrupt"},
                            **{"message": "null", "metadata": {"value": None}},
                        }
                    ],
                }
            )
        ],
    ),
}


@pytest.mark.parametrize("name", AG)
def test_events_of_ag_ui(name: str) -> None:
    events, expected = AG[name]
    assert ag(start(), *events) == [RUN_STARTED, *expected]


def test_a_client_that_declares_no_version_knows_no_cancelled_run() -> None:
    translator = ag_ui.Translator("r9", {"threadId": "t", "runId": "client-run"})
    assert said_by(translator, start(), done("cancelled"))[-1] == finished(SUCCESS)


def has(call_id: str, tool: str, arguments: str = "{}") -> Any:
    function = {"name": tool, "arguments": arguments}
    return {
        "role": "assistant",
        "id": call_id,
        "toolCalls": [{"id": call_id, "function": function}],
    }


def test_the_run_of_an_answer_repeats_no_call_and_no_result_that_the_client_has() -> None:
    messages = [
        *({"role": "user", "id": "u", "content": "x"}, has("c1", "ask"), has("c2", "add")),
        {"role": "tool", "id": "c2-result", "toolCallId": "c2", "content": "{}"},
    ]
    events = [
        *(start(), called("c1", "ask"), called("c2", "add")),
        *(result("c2", status="ok", result={}), result("c1", status="ok", result={"n": 1}), done()),
    ]
    found = ag(*events, messages=messages, resume=[{"interruptId": "i1", "status": "resolved"}])
    assert found == [RUN_STARTED, tool_result("c1", '{"n":1}'), finished(SUCCESS)]
    # In a new turn the same ids are those of other calls.
    new = ag(*events, messages=[*messages, {"role": "user", "id": "v", "content": "y"}])
    assert [each["toolCallId"] for each in new if each["type"] == "TOOL_CALL_START"] == [
        *("c1*", "c2*")
    ]
    again = {"role": "user", "id": "v", "content": "y"}
    answer = ag(*events, messages=[*messages, again, has("c1*", "ask"), has("c2*", "add")])
    assert [each["toolCallId"] for each in answer[1:-1]] == ["c2*", "c1*"]
    assert [each["type"] for each in answer[1:-1]] == ["TOOL_CALL_RESULT"] * 2


def test_a_replay_begins_with_what_the_client_had_before_the_turn() -> None:
    messages = [
        *({"role": "user", "id": "u1", "content": "x"}, has("c0", "add")),
        {"role": "user", "id": "u2", "content": "y"},
        {"role": "reasoning", "id": "m1-reasoning", "content": "half of it"},
        *(has("c1", "ask"), {"role": "assistant", "id": "m1", "content": "cut"}),
    ]
    events = [*FIRST, *SECOND, *THIRD]
    found = ag(*events, replay=True, messages=messages, answers=[{"i1": 1}, PAID])
    emptied = {**messages[3], "content": ""}
    assert found == [
        RUN_STARTED,
        {"type": "MESSAGES_SNAPSHOT", "messages": [*messages[:3], emptied]},
        *(*tool_call("c1", "ask", "{}"), tool_result("c1", '{"n":1}')),
        *(*tool_call("c2", "pay", '{"to":"Ann"}'), tool_result("c2", '{"paid":true}')),
        finished(SUCCESS),
    ]


# ---------------------------------------------------------------------------------------- requests


def user(*texts: str) -> Any:
    return {"role": "user", "id": "u", "parts": [{"type": "text", "text": each} for each in texts]}


def answering(*parts: Any) -> Any:
    return {"id": "t", "messages": [user("x"), {"role": "assistant", "id": "a", "parts": [*parts]}]}


def responded(id_: str, **approval: Any) -> Any:
    return {"type": "tool-x", "state": "approval-responded", "approval": {"id": id_, **approval}}


def answered(id_: str, **more: Any) -> Any:
    return {"type": "tool-interrupt", "state": "output-available", "toolCallId": id_, **more}


ASSISTANT = {"role": "assistant", "id": "a", "parts": []}
TWO = {"action_requests": [{"name": "x", "args": {}}, {"name": "y", "args": {}}]}

READS_AI: list[tuple[Any, list[str], Any, Any]] = [
    # body, ids of the thread's questions, pending interrupts, what is asked
    ({"id": "t", "messages": [user("a", "b")]}, [], None, Asked("t", "a\nb")),
    ({"id": "t", "message": user("a")}, ["q1"], None, Asked("t", "a")),
    (
        {"id": "t", "messages": [user("a"), ASSISTANT, user("b")], "context": {"k": 1}},
        *(["q1"], None, Asked("t", "b", context={"k": 1})),
    ),
    (
        {"id": "t", "messages": [user("a"), ASSISTANT, user("b")]},
        *(["q1", "q2", "q3"], None, Asked("t", "b", replaces="q2")),
    ),
    (answering(answered("i1", output=[1])), [], {"i1": "?"}, Asked("t", resume={"i1": [1]})),
    (answering(answered("i1")), [], {"i1": "?"}, Asked("t", resume={"i1": None})),
    (
        answering(answered("old", output=0), answered("i1", output=1), answered("i2", output=2)),
        *([], {"i2": "?", "i1": "?"}, Asked("t", resume={"i2": 2, "i1": 1})),
    ),
    (answering(answered("r1", output=5)), [], {}, Asked("t", resume=5)),
    (
        answering(responded("i1:1", approved=False, reason="no"), responded("i1:0", approved=True)),
        [],
        {"i1": TWO},
        Asked(
            "t",
            resume={
                "i1": {"decisions": [{"type": "approve"}, {"type": "reject", "message": "no"}]}
            },
        ),
    ),
]


@pytest.mark.parametrize(("body", "questions", "pending", "asked"), READS_AI)
def test_what_a_request_of_the_ai_sdk_asks(
    body: Any, questions: list[str], pending: Any, asked: Asked
) -> None:
    assert ai_sdk.is_request(body)
    assert ai_sdk.read(body, questions, pending) == asked


READS_AG: list[tuple[Any, Any, Any]] = [
    # fields of the input, pending interrupts, what is asked
    ({"messages": [{"role": "user", "content": "a"}]}, None, Asked("t", "a")),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
        *(None, Asked("t", "a")),
    ),
    ({"messages": [{"role": "user", "content": "a"}, ASSISTANT]}, None, None),
    ({"messages": []}, None, None),
    (
        {"resume": [{"interruptId": "i1", "status": "resolved", "payload": {"a": 1}}]},
        *({"i1": "?"}, Asked("t", resume={"i1": {"a": 1}})),
    ),
    (
        {"resume": [{"interruptId": "i1", "status": "cancelled", "payload": 1}]},
        *({"i1": "?"}, Asked("t", resume={"i1": None})),
    ),
    (
        {
            "resume": [
                {"interruptId": "i1:0", "status": "cancelled"},
                {"interruptId": "i1:1", "status": "resolved", "payload": {"approved": True}},
            ]
        },
        {"i1": TWO},
        Asked("t", resume={"i1": {"decisions": [{"type": "reject"}, {"type": "approve"}]}}),
    ),
]


@pytest.mark.parametrize(("fields", "pending", "asked"), READS_AG)
def test_what_a_request_of_ag_ui_asks(fields: Any, pending: Any, asked: Asked | None) -> None:
    found = ag_ui.read({**INPUT, **fields}, pending)
    if asked is None:
        assert found is None
        return
    assert found
    assert (found.thread_id, found.message, found.resume) == ("t", asked.message, asked.resume)


def test_the_same_request_of_ag_ui_has_the_same_key_and_another_one_another() -> None:
    def key(run_id: str = "r", **fields: Any) -> str | None:
        found = ag_ui.read({**INPUT, "runId": run_id, **fields}, {"i1": "?"})
        return found.key if found else None

    asked = {"messages": [{"role": "user", "content": "a"}]}
    resume = {"resume": [{"interruptId": "i1", "status": "resolved", "payload": 1}]}
    assert key(**asked) == key(**asked, tools=[1])
    assert len({key(**asked), key("s", **asked), key(**asked, **resume)}) == 3


@pytest.mark.parametrize(
    ("body", "pending", "sentence"),
    [
        *(({"messages": messages}, None, "nothing_to_resume") for messages in ([], 5)),
        ({"messages": [user("x"), ASSISTANT]}, {}, "nothing_to_resume"),
        (
            {"messages": [{"role": "user", "parts": [{"type": "file", "url": "x"}]}]},
            *(None, "A message may have text alone; this one has 'file'."),
        ),
        (answering(answered("i1", output=1)), None, "nothing_to_resume"),
        (answering(answered("i1", output=1)), {"i2": 1}, "The interrupt 'i2' waits for an answer."),
        (
            answering(responded("i1:0", approved=True)),
            *({"i1": TWO}, "The interrupt 'i1:1' waits for an answer."),
        ),
    ],
)
def test_what_the_ai_sdk_may_not_ask(body: Any, pending: Any, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        ai_sdk.read({"id": "t", **body}, [], pending)


def test_a_run_of_ag_ui_needs_an_id() -> None:
    with pytest.raises(Refused, match="runId has to be text."):
        ag_ui.read({"threadId": "t"}, None)


@pytest.mark.parametrize("body", [{"message": "x"}, {"resume": 1}, {}])
def test_our_own_requests_are_not_the_ai_sdks(body: Any) -> None:
    assert not ai_sdk.is_request(body)


# ---------------------------------------------------------------------------------------- any run


def shown_by(events: Sequence[Event], first: bool = False) -> tuple[str, list[Any]]:
    """Return what a reader of a turn's runs sees: the text, and each call with its result.

    A call that is started again may have another result then; ``first`` keeps the first one. It has
    the same id, and no other call of the turn has it.
    """
    said = "".join(event["content"] for event in events if event["type"] == "text_delta")
    calls: dict[str, Any] = {}
    begun: set[str] = set()
    for event in events:
        match event:
            case {"type": "start"}:
                begun.clear()
            case {"type": "tool_call", "tool_call_id": id_, "tool": tool, "input": given}:
                assert id_ not in begun
                begun.add(id_)
                row = calls.setdefault(id_, [tool, given, None])
                assert row[:2] == [tool, given]
            case {"type": "tool_result", "tool_call_id": id_, "status": status}:
                row = calls[id_]
                if status != "interrupted" and (row[2] is None or not first):
                    row[2] = event["result"] if status == "ok" else event["message"]
    return whole(said), sorted(calls.values(), key=str)


def folded_ai(chunks: Sequence[Any]) -> tuple[str, list[Any]]:
    """Fold chunks as the client does; whatever it would refuse fails."""
    parts: list[Any] = []
    open_: dict[tuple[str, str], Any] = {}
    calls: dict[str, Any] = {}
    for chunk in chunks:
        match chunk:
            case {"type": ("text-start" | "reasoning-start") as type_, "id": id_}:
                kind = type_.removesuffix("-start")
                assert (kind, id_) not in open_
                open_[kind, id_] = [kind, ""]
                parts.append(open_[kind, id_])
            case {"type": ("text-delta" | "reasoning-delta") as type_, "id": id_, "delta": delta}:
                open_[type_.removesuffix("-delta"), id_][1] += delta
            case {"type": ("text-end" | "reasoning-end") as type_, "id": id_}:
                del open_[type_.removesuffix("-end"), id_]
            case {"type": "tool-input-available", "toolCallId": id_, "toolName": tool}:
                assert id_ not in calls
                calls[id_] = [tool, chunk["input"], None]
            case {"type": "tool-output-available", "toolCallId": id_, "output": output}:
                if not chunk.get("preliminary"):
                    calls[id_][2] = output
            case {"type": "tool-output-error", "toolCallId": id_, "errorText": text}:
                calls[id_][2] = text
    assert not open_
    asked = sorted((each for each in calls.values() if each[0] != "interrupt"), key=str)
    return whole("".join(said for kind, said in parts if kind == "text")), asked


def folded_ag(events: Sequence[Any]) -> tuple[str, list[Any]]:
    """Fold events as the client does; whatever it would refuse fails."""
    texts: list[str] = []
    open_: set[tuple[str, str]] = set()
    calls: dict[str, Any] = {}
    for event in events:
        kind = event["type"].rpartition("_")[0]
        id_ = event.get("toolCallId", event.get("messageId"))
        match event["type"].rpartition("_")[2]:
            case "START" if kind in ("TEXT_MESSAGE", "REASONING_MESSAGE", "REASONING"):
                assert (kind, id_) not in open_
                open_.add((kind, id_))
            case "CONTENT":
                assert (kind, id_) in open_
                texts += [event["delta"]] if kind == "TEXT_MESSAGE" else []
            case "START":
                assert id_ not in calls
                calls[id_] = [event["toolCallName"], "", None]
            case "ARGS":
                calls[id_][1] += event["delta"]
            case "END" if kind != "TOOL_CALL":
                open_.remove((kind, id_))
            case "RESULT":
                assert calls[id_][2] is None
                ok = event["metadata"]["status"] == "ok"
                calls[id_][2] = json.loads(event["content"]) if ok else event["content"]
    assert not open_
    found = [[tool, json.loads(given), output] for tool, given, output in calls.values()]
    return whole("".join(texts)), sorted(found, key=str)


CALLS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *(("add", '{"a": 1, "b": 2}'), ("shout", '{"text": "x"}'), ("shout", "{}")),
                *(("broken", "{}"), ("report", "{}"), ("nope", "{}"), ("add", "nope")),
                *(("approve", '{"what": "x"}'), ("approve", '{"what": "y"}')),
            ]
        ),
        st.sampled_from(["c1", "c2", "c3"]),
    ),
    max_size=3,
    unique_by=lambda row: row[1],
)
TURNS = st.lists(st.tuples(st.lists(PIECES, max_size=4), CALLS, FAILURES), min_size=1, max_size=4)


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(turns=TURNS, reason=st.sampled_from(["cancelled", "shutdown", "timeout"]))
def test_any_script_gives_the_same_in_each_dialect(turns: Any, reason: str) -> None:
    for runs in asyncio.run(play(turns, reason)):
        events = [event for run in runs for event in frames(run)]
        ai_frames, ag_frames = (read_back(raw) for raw in translated(runs))
        *chunks, end = ai_frames
        assert end == "[DONE]"
        assert chunks[-1]["type"] == "finish"
        assert folded_ai(chunks) == shown_by(events)
        failed = events[-1]["reason"] in ("error", "shutdown", "timeout")
        assert ag_frames[-1]["type"] == ("RUN_ERROR" if failed else "RUN_FINISHED")
        assert folded_ag(ag_frames) == shown_by(events, first=True)


async def play(turns: Any, reason: str) -> list[list[AnyRun]]:
    """Run a script of a model, answer its questions, and return the runs up to each of these."""
    run: AnyRun | None = None
    script: list[list[Any]] = []
    for pieces, calls, failure in turns:
        steps = [*pieces]
        for index, ((name, arguments), call_id) in enumerate(calls):
            steps += call(name, arguments, call_id, index)
        if isinstance(failure, ValueError):
            steps.append(failure)
        elif failure:
            steps += [lambda: run and run.stop(reason), asyncio.Event()]
        script.append(steps)
    model = ScriptedModel(script=[*script, ["over"], ["over"]])
    agent = Agent(loop_graph(model, TOOLS, handle_tool_errors=True), "x")
    registry = Registry(Settings(), agent, MemoryStore())
    run = await registry.start(Asked("t", "go"))
    await ended(run)
    runs = [run]
    while (saved := await agent.saved("t")) and saved.pending:
        run = await registry.start(Asked("t", resume=dict.fromkeys(saved.pending, "yes")))
        await ended(run)
        runs.append(run)
    assert [run.id for run in await registry.newest_turn("t")] == [run.id for run in runs]
    return [runs[: n + 1] for n in range(len(runs))]


def translated(runs: Sequence[AnyRun]) -> tuple[bytes, bytes]:
    """Return what each dialect makes of the runs of a turn."""
    raw = b"".join(run.log.read(0, 2**30)[0] for run in runs)
    answers = [run.asked.resume for run in runs[1:]]
    ours = ai_sdk.Translator(runs[-1].id, {}, answers)
    old_client = {"threadId": "t", "runId": "client-run"}
    return ours(raw), ag_ui.Translator(runs[-1].id, old_client, answers=answers)(raw)


def read_back(raw: bytes) -> list[Any]:
    found = [block.removeprefix("data: ") for block in raw.decode().split("\n\n")[:-1]]
    return [each if each == "[DONE]" else json.loads(each) for each in found]


def test_frames_one_by_one_give_the_same_bytes_as_all_at_once() -> None:
    events = [*FIRST, *SECOND, *THIRD]
    for make in (
        lambda: ai_sdk.Translator("r3", {}, [1, PAID]),
        lambda: ag_ui.Translator("r3", INPUT, True, [1, PAID]),
    ):
        single = make()
        apart = b"".join(single(encode_event(event, n)) for n, event in enumerate(events, 1))
        assert apart == make()(encoded(*events))


# ------------------------------------------------------------------------------------- over HTTP

Start = Callable[..., Awaitable[Server]]


async def responded_by(server: Server, method: str, path: str, **options: Any) -> tuple[int, bytes]:
    async with server.session.request(method, path, **options) as response:
        return response.status, await response.read()


def asks(*texts: str, id_: str = "t") -> Any:
    messages = [message for each in texts for message in (user(each), ASSISTANT)]
    return {"id": id_, "messages": messages[:-1], "trigger": "submit-message"}


@on_both
async def test_readers_of_all_vocabularies_follow_one_run_at_once(start: Start) -> None:
    gate = asyncio.Event()
    agent = scripted_agent([[*call("add", '{"a": 1, "b": 2}', "c1")], ["Three", gate, "."]], [add])
    server = await start(agent)
    ours = await server.ask("1 + 2?", thread_id="t")
    await ours.until("text_delta")
    ai_reader = asyncio.create_task(responded_by(server, "GET", "/api/chat/t/stream"))
    asked = {**INPUT, "protocolVersion": "1.0"}
    ag_reader = asyncio.create_task(responded_by(server, "POST", "/api/ag-ui", json=asked))
    late = await server.follow(json.loads(FRAME.findall(ours.raw)[0][1])["run_id"])
    await late.until("text_delta")
    gate.set()
    await ours.events()
    await late.events()
    events = [json.loads(data) for _, data, _ in FRAME.findall(ours.raw)]
    assert late.raw == ours.raw
    (ai_status, ai_raw), (ag_status, ag_raw) = await ai_reader, await ag_reader
    assert (ai_status, ag_status) == (200, 200)
    retry = b"retry: 2000\n\n"
    ai_chunks, ag_events = (read_back(raw.removeprefix(retry)) for raw in (ai_raw, ag_raw))
    assert folded_ai(ai_chunks[:-1]) == shown_by(events)
    assert folded_ag(ag_events) == shown_by(events)


async def test_the_headers_of_a_stream_for_the_ai_sdk(start: Start) -> None:
    server = await start(scripted_agent([["Hi"]]))
    async with server.session.post("/api/chat", json=asks("hello")) as response:
        body = await response.read()
    headers = response.headers
    assert headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    run_id = headers["Content-Location"].rpartition("/")[2]
    assert headers["Location"] == f"/api/runs/{run_id}/events"
    assert body.startswith(
        b'retry: 2000\n\ndata: {"type":"start","messageId":"%b"' % run_id.encode()
    )
    assert body.endswith(b"data: [DONE]\n\n")


async def test_heartbeats_come_in_each_dialect(start: Start) -> None:
    gate = asyncio.Event()
    server = await start(scripted_agent([[gate, "Hi"]]), heartbeat_s=0.05)
    async with server.session.post("/api/chat", json=asks("hello")) as response:
        await response.content.readuntil(b": heartbeat\n\n")
        async with server.session.post("/api/ag-ui", json=INPUT) as other:
            await other.content.readuntil(b": heartbeat\n\n")
            gate.set()
            assert b"RUN_FINISHED" in await other.read()


@on_both
async def test_nothing_that_is_kept_is_no_content_or_an_unknown_run(start: Start) -> None:
    server = await start(scripted_agent([["Hi"]]))
    assert await responded_by(server, "GET", "/api/chat/nobody/stream") == (204, b"")
    assert await responded_by(server, "POST", "/api/chat/nobody/stop") == (204, b"")
    status, refusal = await server.call("POST", "/api/ag-ui", json=INPUT)
    assert (status, refusal["error"]["code"]) == (404, "unknown_run")
    await responded_by(server, "POST", "/api/chat", json=asks("hello"))
    assert (await responded_by(server, "GET", "/api/chat/t/stream"))[0] == 200
    assert (await server.call("DELETE", "/api/threads/t"))[0] == 204
    assert await responded_by(server, "GET", "/api/chat/t/stream") == (204, b"")


async def test_a_message_is_replayed_as_long_as_all_of_its_runs_are_kept(start: Start) -> None:
    server = await start(Agent(agents.asking, "x"), run_ttl_s=0.1)
    await responded_by(server, "POST", "/api/chat", json=asks("hello"))
    while (await responded_by(server, "GET", "/api/chat/t/stream"))[0] == 200:
        await asyncio.sleep(0.01)
    await server.run(resume=True, thread_id="t")
    # The question is gone, so the answer alone is no message.
    assert (await responded_by(server, "GET", "/api/chat/t/stream"))[0] == 204


async def test_stop_stops_at_once(start: Start) -> None:
    server = await start(scripted_agent([["Half", asyncio.Event()], ["Hi"]]))
    async with server.session.post("/api/chat", json=asks("hello")) as response:
        await response.content.readuntil(b"Half")
        assert await responded_by(server, "POST", "/api/chat/t/stop") == (204, b"")
        body = await response.read()
    assert read_back(body[body.index(b"data: ") :])[-3:-1] == [
        {"type": "abort"},
        {
            **{"type": "finish", "finishReason": "other"},
            "messageMetadata": {"reason": "cancelled", "timings": ANY},
        },
    ]
    status, body = await responded_by(server, "POST", "/api/chat", json=asks("hello", "and?"))
    assert (status, b'"delta":"Hi"' in body) == (200, True)


async def test_a_users_chats_are_unknown_to_others(start: Start) -> None:
    server = await start(scripted_agent([["Hi"]]), user_header="X-User")
    ann, bob = ({"headers": {"X-User": name}} for name in ("ann", "bob"))
    await responded_by(server, "POST", "/api/chat", json=asks("hello"), **ann)
    assert (await responded_by(server, "GET", "/api/chat/t/stream", **ann))[0] == 200
    assert (await responded_by(server, "GET", "/api/chat/t/stream", **bob))[0] == 204
    assert (await responded_by(server, "POST", "/api/ag-ui", json=INPUT, **bob))[0] == 404
    assert (await responded_by(server, "GET", "/api/chat/t/stream"))[0] == 401


async def test_a_message_that_a_graph_adds_is_not_counted_as_the_users(start: Start) -> None:
    def critic(state: Any) -> Any:
        return {"messages": [AIMessage("Draft"), HumanMessage("Better!"), AIMessage("Good")]}

    server = await start(Agent(agents.only(critic).compile(), "x"))
    await responded_by(server, "POST", "/api/chat", json=asks("one"))
    await responded_by(server, "POST", "/api/chat", json=asks("one", "two"))
    _, thread = await server.call("GET", "/api/threads/t")
    said = [each["content"] for each in thread["messages"] if each["role"] == "user"]
    assert said == ["one", "Better!", "two", "Better!"]


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("/api/chat", {"messages": [user("x")]}, "id has 1 to 64 characters"),
        ("/api/chat", {"id": "no id", "messages": []}, "id has 1 to 64 characters"),
        ("/api/chat", {"id": "t", "messages": [user(" ")]}, "message has to be text"),
        ("/api/chat", {**asks("x"), "context": 5}, "context has to be an object"),
        ("/api/chat", answering(answered("i", output=1)), "This thread is not waiting"),
        ("/api/ag-ui", {"runId": "r"}, "threadId has 1 to 64 characters"),
        ("/api/ag-ui", {"threadId": "t"}, "runId has to be text"),
    ],
)
async def test_a_bad_request_is_refused_with_a_sentence(
    start: Start, path: str, body: Any, sentence: str
) -> None:
    server = await start(scripted_agent([["Hi"]]))
    status, refusal = await server.call("POST", path, json=body)
    assert status == 400
    assert sentence in refusal["error"]["message"]


async def test_half_of_a_surrogate_pair_in_a_history_does_no_harm(start: Start) -> None:
    # A Stop may end an answer between the halves, and a client keeps what was refused.
    server = await start(scripted_agent([["Half \ud83d", asyncio.Event()], ["Hi"], ["Hi"]]))
    async with server.session.post("/api/chat", json=asks("one")) as response:
        await response.content.readuntil(b"Half \\ud83d")
    body = asks("one", "two", "three")
    body["messages"][1] = {**ASSISTANT, "parts": [{"type": "text", "text": "Half \ud83d"}]}
    body["messages"][2]["parts"][0]["text"] = "\ud83d"
    status, raw = await responded_by(server, "POST", "/api/chat", json=body)
    assert (status, b'"delta":"Hi"' in raw) == (200, True)
    messages = [
        {"role": "user", "id": "1", "content": "\ud83d"},
        {"role": "user", "id": "2", "content": "four"},
    ]
    body = {**INPUT, "messages": messages}
    status, raw = await responded_by(server, "POST", "/api/ag-ui", json=body)
    assert (status, b'"delta":"Hi"' in raw) == (200, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"id": "t", "messages": [user("\ud83d")]}),
        ("/api/chat", {"id": "t", "message": user("\ud83d")}),
        ("/api/chat", {**asks("x"), "context": {"a": ["\ud83d"]}}),
        ("/api/ag-ui", {**INPUT, "messages": [{"role": "user", "content": "\ud83d"}]}),
    ],
)
async def test_half_of_a_surrogate_pair_cannot_be_asked(start: Start, path: str, body: Any) -> None:
    server = await start(scripted_agent([["Hi"]]))
    status, refusal = await server.call("POST", path, json=body)
    assert (status, refusal["error"]["code"]) == (400, "invalid_json")


async def test_a_page_of_a_listed_origin_may_send_what_these_clients_send(start: Start) -> None:
    server = await start(scripted_agent([["Hi"]]))
    origin = {"Origin": "http://localhost:3000"}
    asked = {"Access-Control-Request-Method": "POST"}
    async with server.session.options("/api/ag-ui", headers={**origin, **asked}) as response:
        allowed = response.headers["Access-Control-Allow-Headers"].lower().split(", ")
    assert response.status == 204
    assert {"content-type", "authorization", "user-agent"} <= {*allowed}
    async with server.session.post("/api/chat", json=asks("x"), headers=origin) as response:
        exposed = response.headers["Access-Control-Expose-Headers"].lower()
    assert "x-vercel-ai-ui-message-stream" in exposed


def test_the_programs_of_the_readme_are_those_of_the_document() -> None:
    """The document's programs are run, with the real packages."""
    document = (ROOT / "docs/frontends.md").read_text().splitlines()
    blocks = re.findall(r"```jsx?\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for block in blocks:
        if "@ai-sdk/react" in block or "@ag-ui/client" in block:
            assert [line for line in block.splitlines() if line not in document] == []
