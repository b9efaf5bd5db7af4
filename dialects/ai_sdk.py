"""Vercel's AI SDK, versions 6 and 7: ``useChat``, and with it assistant-ui.

A turn is one message of the assistant, under the id of the turn's first run. An interrupt is a call
of a tool named ``interrupt``, which the page answers with ``addToolOutput``; LangChain's
human-in-the-loop middleware asks for approvals.

Source: AI SDK UI, "Stream Protocols", and ``uiMessageChunkSchema`` of the package ``ai``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dialects import shared
from dialects.shared import Json, Pending, invalid, objects_in, resume_of, text_of
from events import Asked

HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}
DONE = b"data: [DONE]\n\n"

FINISH = {
    **{"completed": "stop", "interrupted": "tool-calls", "cancelled": "other"},
    **{"length": "length", "content_filter": "content-filter"},
}
"""The client's word for the reason of our ``done``, and for a model's reason to stop."""


def is_request(body: Json) -> bool:
    """Whether a body is this client's, and not ours."""
    return "messages" in body or isinstance(body.get("message"), dict)


def last_message(body: Json) -> Json:
    return [{}, *objects_in(body.get("messages", [body.get("message")]))][-1]


def read(body: Json, questions: Sequence[str], pending: Pending) -> Asked:
    """Return what the last message asks. Raises Refused.

    ``questions`` are the ids of the thread's user messages. The client's list is the conversation:
    if its last message is the user's n-th, it takes the place of the thread's n-th.
    """
    last, thread_id, context = last_message(body), body["id"], body.get("context")
    if last.get("role") == "user":
        n = sum(each.get("role") == "user" for each in objects_in(body.get("messages")))
        replaces = questions[n - 1] if 0 < n <= len(questions) else None
        text = text_of(last.get("parts"))
        return Asked(thread_id, message=text, replaces=replaces, context=context)
    answers: Json = {}
    for part in objects_in(last.get("parts")):
        match part:
            case {"type": "tool-interrupt", "state": "output-available", "toolCallId": str(id_)}:
                answers[id_] = part.get("output")
            case {"state": "approval-responded", "approval": {"id": str(id_)} as approval}:
                answers[id_] = approval
    if not answers:
        raise invalid("The last of messages has neither text of the user nor answers.")
    return Asked(thread_id, resume=resume_of(answers, pending), context=context)


class Translator(shared.Translator):
    """Our frames as chunks of one message.

    ``run_id`` is the newest run's. ``message`` is the client's own, if the runs continue it.
    """

    def __init__(self, run_id: str, message: Json, answers: Sequence[Any] = ()) -> None:
        super().__init__(answers)
        self._newest = run_id
        self._message_id = message.get("id")
        self._finish: str | None = None
        self._in_step = self._stepped = False
        """Whether the next part belongs to the current step; whether this run began a step."""
        for part in objects_in(message.get("parts")):
            match part:
                case {"type": str(type_), "toolCallId": str(id_), "input": given}:
                    self.sent[id_] = type_.removeprefix("tool-"), given
                    match part.get("approval"):
                        case {"id": approval_id} if approval_id == id_:
                            self.allowed.append(id_)

    def translate(self, event: Json) -> bytes:
        is_end = event["type"] == "done" and not self.answers
        return super().translate(event) + (DONE if is_end else b"")

    def say(self, phase: str, kind: str, message_id: str, **delta: str) -> Iterator[Json]:
        if phase == "start":
            yield from self._begin_step()
        yield {"type": f"{kind}-{phase}", "id": message_id, **delta}

    def objects(self, event: Json) -> Iterator[Json]:
        id_ = event.get("tool_call_id", "")
        match event["type"]:
            case "start":
                about = {"run_id": self._newest, "thread_id": event["thread_id"]}
                message_id = self._message_id or self.run_id
                yield {"type": "start", "messageId": message_id, "messageMetadata": about}
            case "thinking":
                note = {"content": event["content"]}
                yield {"type": "data-thinking", "data": note, "transient": True}
            case "tool_call":
                yield from self._input(id_, event["tool"], event["input"])
            case "tool_progress":
                note = {"content": event["content"]}
                yield {**output(id_, note), "preliminary": True}
            case "tool_result":
                self._in_step = False
                if event["status"] == "ok":
                    yield output(id_, event["result"])
                else:
                    error = {"type": "tool-output-error", "errorText": event["message"]}
                    yield {**error, "toolCallId": id_}
            case "final_answer":
                self._finish = event.get("finish_reason")
                if self.changed:
                    yield metadata(final_answer=event["content"])
            case "error" if not self.answers:
                about = {name: event[name] for name in ("code", "retryable", "ref")}
                yield metadata(error=about)
                yield {"type": "error", "errorText": event["message"]}
            case "done" if self.answers:
                yield from self._ask(self.answers.pop(0))
            case "done":
                yield from self._done(event)

    def _begin_step(self) -> Iterator[Json]:
        if not self._in_step:
            self._in_step = self._stepped = True
            yield {"type": "start-step"}

    def _input(self, id_: str, tool: str, given: Any, for_page: bool = False) -> Iterator[Json]:
        yield from self._begin_step()
        part = {"type": "tool-input-available", "toolCallId": id_, "toolName": tool, "input": given}
        # The page would have to execute a call without this mark.
        yield part if for_page else {**part, "providerExecuted": True}

    def _done(self, event: Json) -> Iterator[Json]:
        reason = event["reason"]
        if reason == "interrupted":
            yield from self._ask()
        elif not self._stepped:
            # The page sends its answers again if the last step has them and nothing else.
            yield from self._begin_step()
        yield {"type": "finish-step"}
        if reason == "cancelled":
            yield {"type": "abort"}
        about = {name: event[name] for name in ("reason", "timings", "usage") if name in event}
        word = self._finish if reason == "completed" and self._finish else reason
        finish = FINISH.get(word, "other" if reason == "completed" else "error")
        yield {"type": "finish", "finishReason": finish, "messageMetadata": about}

    def _ask(self, *answered: Any) -> Iterator[Json]:
        """Yield what the run waits for, or waited for if the answer to it is given."""
        ids = {each["id"] for each in self.interrupts}
        self._in_step = False  # The page answers once all of the last step has an answer.
        for id_, value, is_call in self.asked():
            if not is_call:
                yield from self._input(id_, "interrupt", value, for_page=not answered)
                for answer in answered:
                    keyed = isinstance(answer, dict) and answer.keys() == ids
                    yield output(id_, answer[id_] if keyed else answer)
                continue
            call_id = self.call_of(value)
            if call_id is None:
                self.allowed.append(id_)
                self.sent[id_] = call = value.get("name", ""), value.get("args")
                yield from self._input(id_, *call)
            if not answered:
                approval = {"approvalId": id_, "toolCallId": call_id or id_}
                yield {"type": "tool-approval-request", **approval}
        self._in_step = self._stepped = False


def output(call_id: str, given: Any) -> Json:
    return {"type": "tool-output-available", "toolCallId": call_id, "output": given}


def metadata(**about: Any) -> Json:
    return {"type": "message-metadata", "messageMetadata": about}
