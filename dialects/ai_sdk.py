"""Vercel's AI SDK, versions 6 and 7: ``useChat``, and with it assistant-ui.

A turn is one message. An interrupt is a call of a tool named ``interrupt``, which the page answers
with ``addToolOutput``; LangChain's human-in-the-loop middleware asks for approvals.

Source: AI SDK UI, "Stream Protocols", and ``uiMessageChunkSchema`` of the package ``ai``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dialects import shared
from dialects.shared import Call, Json, Pending, objects_in, questions, resume_of, text_of
from events import Asked

HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}

# The page would have to execute a call without `providerExecuted`, as it answers a question.
ROWS = """\
start {"type":"start","messageId":$id,"messageMetadata":{"run_id":$newest,"thread_id":$thread_id}}
step_start {"type":"start-step"}
thinking {"type":"data-thinking","data":{"content":$content},"transient":true}
text_start {"type":"text-start","id":$id}
text_delta {"type":"text-delta","id":$id,"delta":$content}
text_end {"type":"text-end","id":$id}
reasoning_start {"type":"reasoning-start","id":$id}
reasoning_delta {"type":"reasoning-delta","id":$id,"delta":$content}
reasoning_end {"type":"reasoning-end","id":$id}
tool_call {"type":"tool-input-available","toolCallId":$id,"toolName":$tool,"input":$input,
    "providerExecuted":true}
tool_progress {"type":"tool-output-available","toolCallId":$id,"output":{"content":$content},
    "preliminary":true}
tool_result {"type":"tool-output-available","toolCallId":$id,"output":$result}
tool_error {"type":"tool-output-error","errorText":$message,"toolCallId":$id}
question {"type":"tool-input-available","toolCallId":$id,"toolName":$tool,"input":$input}
approval {"type":"tool-approval-request","approvalId":$question,"toolCallId":$id}
changed_answer {"type":"message-metadata","messageMetadata":{"final_answer":$content}}
error {"type":"message-metadata","messageMetadata":{
    "error":{"code":$code,"retryable":$retryable,"ref":$ref}}}
error {"type":"error","errorText":$message}
step_end {"type":"finish-step"}
abort {"type":"abort"}
done {"type":"finish","finishReason":$finish,"messageMetadata":$about}
done [DONE]"""
FRAMES = shared.table(ROWS)

FINISH = {
    **{"completed": "stop", "length": "length", "content_filter": "content-filter"},
    **{"interrupted": "tool-calls", "error": "error", "timeout": "error", "shutdown": "error"},
}
"""The client's word for the reason of our ``done``, and for a model's reason to stop."""


def is_request(body: Json) -> bool:
    """Whether a body is this client's, and not ours."""
    return "messages" in body or isinstance(body.get("message"), dict)


def last_message(body: Json) -> Json:
    return [{}, *objects_in({"messages": [body.get("message")], **body}, "messages")][-1]


def read(body: Json, asked: Sequence[str], pending: Pending) -> Asked:
    """Return what the last message asks. Raises Refused.

    ``asked`` are the ids of the thread's user messages. The client's list is the conversation: if
    its last message is the user's n-th, it takes the place of the thread's n-th.
    """
    last, thread_id, context = last_message(body), body["id"], body.get("context")
    if last.get("role") == "user":
        n = sum(each.get("role") == "user" for each in objects_in(body, "messages"))
        replaces = asked[n - 1] if 0 < n <= len(asked) else None
        text = text_of(last, "parts")
        return Asked(thread_id, message=text, replaces=replaces, context=context)
    answers: Json = {}
    for part in objects_in(last, "parts"):
        match part:
            case {"type": "tool-interrupt", "state": "output-available", "toolCallId": str(id_)}:
                answers[id_] = part.get("output")
            case {"state": "approval-responded", "approval": {"id": str(id_)} as approval}:
                answers[id_] = approval
    return Asked(thread_id, resume=resume_of(answers, pending), context=context)


class Translator(shared.Translator):
    """Our frames as chunks of one message.

    ``run_id`` is the newest run's. ``message`` is the client's own, if the runs continue it.
    """

    def __init__(self, run_id: str, message: Json, answers: Sequence[Any] = ()) -> None:
        super().__init__(FRAMES, answers)
        self._newest, self._message_id = run_id, message.get("id", run_id)
        self._finish = "completed"
        self._in_step = False
        """Whether the next part belongs to the current step."""
        for part in objects_in(message, "parts"):
            id_, tool = str(part.get("toolCallId")), str(part.get("type")).removeprefix("tool-")
            self.calls[id_] = Call(id_, "ended", (tool, part.get("input")))
            match part:
                case {"state": "approval-responded", "approval": {"approved": allowed}}:
                    self.calls[id_].state = "allowed" if allowed else "rejected"

    def say(self, event: Json) -> Iterator[Json]:
        match event:
            case {"type": "start"}:
                event |= {"id": self._message_id, "newest": self._newest}
            case {"type": "text_start" | "reasoning_start" | "tool_call"}:
                yield from self._begin_step()
            case {"type": "tool_result", "status": status}:
                self._in_step = False
                event["type"] = "tool_result" if status == "ok" else "tool_error"
            case {"type": "final_answer" | "changed_answer"}:
                self._finish = event.get("finish_reason", "completed")
            case {"type": "answered", "resume": resume}:
                yield from self._ask(resume)
                self._in_step = False
            case {"type": "done", "reason": reason}:
                # The page sends its answers again if the last step has them and nothing else.
                yield from self._ask() if reason == "interrupted" else self._begin_step()
                yield {"type": "step_end"}
                if reason == "cancelled":
                    yield {"type": "abort"}
                word = FINISH.get(self._finish if reason == "completed" else reason, "other")
                about = {name: event[name] for name in event if name not in ("type", "id")}
                event |= {"finish": word, "about": about}
        yield event

    def _begin_step(self) -> Iterator[Json]:
        if not self._in_step:
            self._in_step = True
            yield {"type": "step_start"}

    def _ask(self, *resume: Any) -> Iterator[Json]:
        """Yield what the run waits for, or waited for if ``resume`` is given, which answers it."""
        self._in_step = False  # The page answers once all of the last step has an answer.
        for id_, value, action, answer in questions(self.interrupts, *resume):
            call = self.find(action, "open") or Call(id_, action=action)
            if call.state == "new":
                yield from self._begin_step()
                tool, given = action or ("interrupt", value)
                asked = {"id": id_, "tool": tool, "input": given}
                yield {"type": "tool_call" if action else "question", **asked}
            if action and not resume:
                yield {"type": "approval", "id": call.id, "question": id_}
            elif action:
                call.state = "rejected" if answer.get("type") == "reject" else "allowed"
                self.calls[id_] = call
            elif resume:
                yield {"type": "tool_result", "id": id_, "result": answer}
