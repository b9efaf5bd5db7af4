"""AG-UI: ``HttpAgent`` of ``@ag-ui/client``, versions 0.0.59 and 1.0, and with it CopilotKit.

Source: AG-UI, "Events" and "Interrupts", and the package ``@ag-ui/client``, ``verifyEvents``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from dialects import shared
from dialects.shared import Json, Pending, ids_of, invalid, objects_in, resume_of, text_of, to_json
from events import Asked

NAMES = {
    ("start", "text"): ["TEXT_MESSAGE_START"],
    ("delta", "text"): ["TEXT_MESSAGE_CONTENT"],
    ("end", "text"): ["TEXT_MESSAGE_END"],
    ("start", "reasoning"): ["REASONING_START", "REASONING_MESSAGE_START"],
    ("delta", "reasoning"): ["REASONING_MESSAGE_CONTENT"],
    ("end", "reasoning"): ["REASONING_MESSAGE_END", "REASONING_END"],
}
ROLES = {"TEXT_MESSAGE_START": "assistant", "REASONING_MESSAGE_START": "reasoning"}


def read(body: Json, pending: Pending) -> Asked | None:
    """Return what a ``RunAgentInput`` asks; None if it asks for the newest turn again.

    Raises Refused. A request that comes again joins its run, by the key. CopilotKit answers an
    interrupt under the ``runId`` of the run that asked, so that alone is no key.
    """
    messages, entries = objects_in(body.get("messages")), objects_in(body.get("resume"))
    if not isinstance(body.get("runId"), str):
        raise invalid("runId has to be text.")
    asked: Json = {"thread_id": body["threadId"]}
    if entries:
        answers = {
            str(each.get("interruptId")): each.get("payload")
            if each.get("status") == "resolved"
            else None
            for each in entries
        }
        waited = {id_ for each in (pending or {}).items() for id_ in ids_of(*each)}
        if pending is None or (waited and not waited & answers.keys()):
            return None  # They have been given, but the client does not have what followed.
        asked["resume"] = resume_of(answers, pending)
    elif messages and messages[-1].get("role") == "user":
        asked["message"] = text_of(messages[-1].get("content"))
    else:
        return None
    key = hashlib.sha256(json.dumps([body["runId"], asked]).encode()).hexdigest()
    return Asked(**asked, key=f"ag-ui:{key}")


class Translator(shared.Translator):
    """Our frames as events of one run.

    ``run_id`` is our newest run's. ``replay``: the client may have a part of the turn already.
    """

    def __init__(
        self, run_id: str, body: Json, replay: bool = False, answers: Sequence[Any] = ()
    ) -> None:
        super().__init__(answers)
        self._newest = run_id
        self._about = {"threadId": body["threadId"], "runId": body["runId"]}
        self._is_new_client = "protocolVersion" in body
        messages = objects_in(body.get("messages"))
        asked = max((n for n, m in enumerate(messages, 1) if m.get("role") == "user"), default=0)
        # The client keeps reasoning that is in no snapshot, and appends to it.
        thoughts = [{**m, "content": ""} for m in messages[asked:] if m.get("role") == "reasoning"]
        self._snapshot = messages[:asked] + thoughts if replay else None
        has = messages if self._snapshot is None else self._snapshot
        self._results = {each.get("toolCallId") for each in has}
        for n, message in enumerate(has):
            for call in objects_in(message.get("toolCalls")):
                match call:
                    case {"id": str(id_), "function": {"name": tool, "arguments": str(given)}}:
                        # The calls of earlier turns are none of those that this run starts again.
                        self.sent[id_] = (tool, from_json(given)) if n >= asked else ("", None)

    def say(self, phase: str, kind: str, message_id: str, **delta: str) -> Iterator[Json]:
        id_ = message_id if kind == "text" else f"{message_id}-reasoning"
        for name in NAMES[phase, kind]:
            role = {"role": ROLES[name]} if name in ROLES else {}
            yield {"type": name, "messageId": id_, **role, **delta}

    def objects(self, event: Json) -> Iterator[Json]:
        id_ = event.get("tool_call_id", "")
        match event["type"]:
            case "start":
                about = {"protocolVersion": "1.0", "metadata": {"run_id": self._newest}}
                yield {"type": "RUN_STARTED", **self._about, **about}
                if self._snapshot is not None:
                    yield {"type": "MESSAGES_SNAPSHOT", "messages": self._snapshot}
            case "thinking":
                yield custom("thinking", event["content"])
            case "tool_call":
                self._results.discard(id_)
                start = {"type": "TOOL_CALL_START", "toolCallName": event["tool"]}
                arguments = {"type": "TOOL_CALL_ARGS", "delta": to_json(event["input"])}
                for each in (start, arguments, {"type": "TOOL_CALL_END"}):
                    yield {**each, "toolCallId": id_}
            case "tool_progress":
                yield custom("tool_progress", {"toolCallId": id_, "content": event["content"]})
            case "tool_result" if id_ not in self._results:
                self._results.add(id_)
                about = {"messageId": f"{id_}-result", "toolCallId": id_, "role": "tool"}
                ok, status = event["status"] == "ok", {"status": event["status"]}
                content = to_json(event["result"]) if ok else event["message"]
                yield {"type": "TOOL_CALL_RESULT", **about, "content": content, "metadata": status}
            case "final_answer" if self.changed:
                about = {"messageId": event["message_id"], "content": event["content"]}
                yield custom("final_answer", about)
            case "error" if not self.answers:
                yield {"type": "RUN_ERROR", "message": event["message"], "code": event["code"]}
            case "done" if self.answers:
                self.answers.pop(0)
            case "done" if event["reason"] in ("completed", "cancelled", "interrupted"):
                yield self._finished(event)

    def _finished(self, event: Json) -> Json:
        outcome: Json = {"type": "success"}
        if event["reason"] == "interrupted":
            outcome = {"type": "interrupt", "interrupts": [*map(self._interrupt, self.asked())]}
        elif event["reason"] == "cancelled" and self._is_new_client:
            outcome = {"type": "cancelled"}
        usage = {}
        for name, count in event.get("usage", {}).items():  # input_tokens is inputTokens here.
            first, _, second = name.partition("_")
            usage[first + second.capitalize()] = count
        about = {"usage": [usage]} if usage else {}
        return {"type": "RUN_FINISHED", **self._about, "outcome": outcome, **about}

    def _interrupt(self, asked: tuple[str, Any, bool]) -> Json:
        id_, value, is_call = asked
        about: Json = {"id": id_, "reason": "langgraph:interrupt", "metadata": {"value": value}}
        if not is_call:
            return {**about, "message": value if isinstance(value, str) else to_json(value)}
        if call_id := self.call_of(value):
            about["toolCallId"] = call_id
        message = str(value.get("description", value.get("name")))
        return {**about, "reason": "tool_call", "message": message}


def custom(name: str, value: Any) -> Json:
    return {"type": "CUSTOM", "name": name, "value": value}


def from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
