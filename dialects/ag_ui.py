"""AG-UI: ``HttpAgent`` of ``@ag-ui/client``, versions 0.0.59 and 1.0, and with it CopilotKit.

Source: AG-UI, "Events" and "Interrupts", and the package ``@ag-ui/client``, ``verifyEvents``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from dialects import shared
from dialects.shared import Call, Json, Pending, objects_in, questions, resume_of, text_of, to_json
from events import Asked, Refused

ROWS = """\
start {"type":"RUN_STARTED","threadId":$threadId,"runId":$runId,"protocolVersion":"1.0",
    "metadata":{"run_id":$newest}}
snapshot {"type":"MESSAGES_SNAPSHOT","messages":$messages}
thinking {"type":"CUSTOM","name":"thinking","value":$content}
text_start {"type":"TEXT_MESSAGE_START","messageId":$id,"role":"assistant"}
text_delta {"type":"TEXT_MESSAGE_CONTENT","messageId":$id,"delta":$content}
text_end {"type":"TEXT_MESSAGE_END","messageId":$id}
reasoning_start {"type":"REASONING_START","messageId":$id-reasoning}
reasoning_start {"type":"REASONING_MESSAGE_START","messageId":$id-reasoning,"role":"reasoning"}
reasoning_delta {"type":"REASONING_MESSAGE_CONTENT","messageId":$id-reasoning,"delta":$content}
reasoning_end {"type":"REASONING_MESSAGE_END","messageId":$id-reasoning}
reasoning_end {"type":"REASONING_END","messageId":$id-reasoning}
tool_call {"type":"TOOL_CALL_START","toolCallName":$tool,"toolCallId":$id}
tool_call {"type":"TOOL_CALL_ARGS","delta":$arguments,"toolCallId":$id}
tool_call {"type":"TOOL_CALL_END","toolCallId":$id}
tool_progress {"type":"CUSTOM","name":"tool_progress","value":{"toolCallId":$id,"content":$content}}
tool_result {"type":"TOOL_CALL_RESULT","messageId":$id-result,"toolCallId":$id,"role":"tool",
    "content":$content,"metadata":{"status":$status}}
changed_answer {"type":"CUSTOM","name":"final_answer","value":{"messageId":$id,"content":$content}}
error {"type":"RUN_ERROR","message":$message,"code":$code}
done {"type":"RUN_FINISHED","threadId":$threadId,"runId":$runId,"outcome":$outcome}
done_usage {"type":"RUN_FINISHED","threadId":$threadId,"runId":$runId,"outcome":$outcome,
    "usage":[{"inputTokens":$input_tokens,"outputTokens":$output_tokens,
    "totalTokens":$total_tokens}]}"""
FRAMES = shared.table(ROWS)


def read(body: Json, pending: Pending) -> Asked | None:
    """Return what a ``RunAgentInput`` asks; None if it asks for the newest turn again.

    Raises Refused. A request that comes again joins its run, by the key. CopilotKit answers an
    interrupt under the ``runId`` of the run that asked, so that alone is no key.
    """
    if not isinstance(body.get("runId"), str):
        raise Refused("invalid_request", "runId has to be text.")
    asked: Json = {"thread_id": body["threadId"]}
    last = [{}, *objects_in(body, "messages")][-1]
    answers: Json = {}
    for each in objects_in(body, "resume"):
        is_resolved = each.get("status") == "resolved"
        answers[str(each.get("interruptId"))] = each.get("payload") if is_resolved else None
    if answers:
        waits_for = {id_ for id_, *_ in questions(pending or {})}
        if pending is None or (waits_for and not waits_for & answers.keys()):
            return None  # They have been given, but the client does not have what followed.
        asked["resume"] = resume_of(answers, pending)
    elif last.get("role") == "user":
        asked["message"] = text_of(last, "content")
    else:
        return None
    key = hashlib.sha256(json.dumps([body["runId"], asked]).encode()).hexdigest()
    return Asked(**asked, key=f"ag-ui:{key}")


def call_ids(messages: list[Json]) -> list[str]:
    return [str(call.get("id")) for each in messages for call in objects_in(each, "toolCalls")]


class Translator(shared.Translator):
    """Our frames as events of one run.

    ``run_id`` is our newest run's. ``replay``: the client may have a part of the turn already.
    """

    def __init__(
        self, run_id: str, body: Json, replay: bool = False, answers: Sequence[Any] = ()
    ) -> None:
        super().__init__(FRAMES, answers)
        self._replay, self._knows_cancelled = replay, "protocolVersion" in body
        messages = objects_in(body, "messages")
        asked = max((n for n, m in enumerate(messages, 1) if m.get("role") == "user"), default=0)
        earlier, turn = messages[:asked], messages[asked:]
        if replay:
            # The client keeps reasoning that is in no snapshot, and appends to it.
            turn = [{**m, "content": ""} for m in turn if m.get("role") == "reasoning"]
        self._about = {"threadId": body["threadId"], "runId": body["runId"], "newest": run_id}
        self._snapshot = [*earlier, *turn]
        # The client looks for a call in all turns, and a model may give an id again.
        self.calls = {id_.rstrip("*"): Call(f"{id_}*") for id_ in call_ids(earlier)}
        self.calls |= {id_.rstrip("*"): Call(id_, "ended") for id_ in call_ids(turn)}
        self._results = {each.get("toolCallId") for each in turn}

    def say(self, event: Json) -> Iterator[Json]:
        match event:
            case {"type": "start"}:
                event |= self._about
                if self._replay:
                    yield event
                    event = {"type": "snapshot", "messages": self._snapshot}
            case {"type": "tool_call", "input": given}:
                event["arguments"] = to_json(given)
            case {"type": "tool_result", "id": id_}:
                if id_ in self._results:
                    return
                self._results.add(id_)
                is_ok = event["status"] == "ok"
                event["content"] = to_json(event["result"]) if is_ok else event["message"]
            case {"type": "done", "reason": "error" | "timeout" | "shutdown"}:
                return  # Nothing may follow the error.
            case {"type": "done", "reason": reason}:
                outcome: Json = {"type": "success"}
                if reason == "interrupted":
                    outcome = {"type": "interrupt", "interrupts": [*self._interrupts()]}
                elif reason == "cancelled" and self._knows_cancelled:
                    outcome = {"type": "cancelled"}
                event |= {**self._about, "outcome": outcome}
                if "usage" in event:
                    event |= {"type": "done_usage", **event["usage"]}
        yield event

    def _interrupts(self) -> Iterator[Json]:
        for id_, value, action, _ in questions(self.interrupts):
            reason = "tool_call" if action else "langgraph:interrupt"
            message = value.get("description", action[0]) if action else value
            text = message if isinstance(message, str) else to_json(message)
            about = {"id": id_, "reason": reason, "message": text, "metadata": {"value": value}}
            call = self.find(action, "open")
            yield {**about, "toolCallId": call.id} if call else about
