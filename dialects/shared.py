"""What the dialects share: other vocabularies over the same runs.

A dialect reads a foreign request into what ``POST /api/chat`` would have asked, and turns our
frames into foreign ones. It knows neither runs nor LangGraph nor HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from events import Refused

Json = dict[str, Any]
Call = tuple[str, Any]
"""A tool's name and its input."""

Pending = Mapping[str, Any] | None
"""The interrupts that a thread waits for, by id; None if it waits for nobody.

It is empty at a static breakpoint, which waits without an interrupt.
"""

DATA = re.compile("^data: (.*)$", re.MULTILINE)
to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def invalid(message: str) -> Refused:
    return Refused("invalid_request", message)


def objects_in(value: Any) -> list[Json]:
    """Return the objects of what should be a list of objects."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def text_of(parts: Any) -> str:
    """Return a message's text: a string or text parts. Raises Refused if it has another part."""
    parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else objects_in(parts)
    for part in parts:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise invalid(f"A message may have text alone; this one has {part.get('type')!r}.")
    return "\n".join(part["text"] for part in parts)


def requests_in(value: Any) -> list[Json]:
    """Return the tool calls that an interrupt asks a person to allow; none if it asks otherwise.

    Source: LangChain, "Human-in-the-loop".
    """
    return objects_in(value.get("action_requests")) if isinstance(value, dict) else []


def ids_of(id: str, value: Any) -> list[str]:
    """Return the ids to answer an interrupt by: its own, or ``<id>:<n>`` for each call to allow."""
    return [f"{id}:{n}" for n, _ in enumerate(requests_in(value))] or [id]


def resume_of(answers: Mapping[str, Any], pending: Pending) -> Any:
    """Return the ``resume`` that answers all that a thread waits for.

    ``answers`` are by what `ids_of` gives. Raises Refused if one is missing.
    """
    if pending is None:
        raise Refused("nothing_to_resume")
    resume = {}
    for interrupt, value in pending.items():
        ids = ids_of(interrupt, value)
        for each in ids:
            if each not in answers:
                raise invalid(f"The interrupt {each!r} waits for an answer.")
        decisions = [_decision(answers[each]) for each in ids]
        resume[interrupt] = {"decisions": decisions} if requests_in(value) else answers[interrupt]
    return resume if pending else [None, *answers.values()][-1]


def _decision(answer: Any) -> Json:
    match answer:
        case {"approved": True}:
            return {"type": "approve"}
        case {"reason": str(reason)} if reason:
            return {"type": "reject", "message": reason}
    return {"type": "reject"}


class Translator:
    """Turns a run's frames, in order from the first one, into a dialect's.

    The runs of one turn, one after the other, give one message. ``answers`` are what the runs
    after the first one answer.
    """

    def __init__(self, answers: Sequence[Any] = ()) -> None:
        self.answers = [*answers]
        self.run_id = ""
        self.sent: dict[str, Call] = {}
        """The tool calls that the client has, by their id there."""
        self.allowed: list[str] = []
        """Those of them that a person was asked to allow before they had an id of their own."""
        self.changed = False
        """Whether the graph changed its answer after the deltas were sent."""
        self.interrupts: list[Json] = []
        self._earlier: dict[str, str] = {}
        """The id in the client of earlier runs' calls that this run has not started again."""
        self._unanswered: dict[str, Call] = {}
        self._ids: dict[str, str] = {}
        """The id that a tool call has in the client, if that is another one."""
        self._kind = ""
        self._texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        """The messages whose text or reasoning, as `_kind` says, is open."""

    def __call__(self, frames: bytes) -> bytes:
        return b"".join(self.translate(json.loads(data)) for data in DATA.findall(frames.decode()))

    def translate(self, event: Json) -> bytes:
        """Return the dialect's frames for one of our events."""
        frames = "".join(f"data: {to_json(each)}\n\n" for each in self._read(event))
        # Half of a surrogate pair has no UTF-8; its JSON escape joins the other half in the client.
        return frames.encode("utf-8", "backslashreplace")

    def objects(self, event: Json) -> Iterable[Json]:
        """Return what the dialect says for an event that is no delta."""
        raise NotImplementedError

    def say(self, phase: str, kind: str, message_id: str, **delta: str) -> Iterable[Json]:
        """Return what it says for the ``start``, a ``delta`` or the ``end`` of a text."""
        raise NotImplementedError

    def _read(self, event: Json) -> Iterator[Json]:
        type_, call_id = event["type"], event.get("tool_call_id", "")
        if type_ in ("text_delta", "reasoning_delta"):
            yield from self._delta(type_.removesuffix("_delta"), event["message_id"], event)
            return
        if type_ not in ("thinking", "tool_progress"):
            yield from self._close()
        match type_:
            case "start":
                first, self.run_id = not self.run_id, event["run_id"]
                self._earlier = {id_.rstrip("+"): id_ for id_ in self.sent}
                self.interrupts = []
                if not first:
                    return
            case "interrupt":
                self.interrupts = event["interrupts"]
            case "tool_call" if self._is_known(call_id, (event["tool"], event["input"])):
                return
            case "tool_result" if event["status"] == "interrupted":
                return  # It has no result yet.
            case "final_answer":
                text = "".join(self._texts.get(event["message_id"], ()))
                # Two deltas may have the halves of a surrogate pair.
                text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
                self.changed = text != event["content"]
        if call_id:
            event = {**event, "tool_call_id": self._ids.get(call_id, call_id)}
        if type_ == "tool_result":
            self._unanswered.pop(event["tool_call_id"], None)
        yield from self.objects(event)

    def _is_known(self, call_id: str, call: Call) -> bool:
        """Give a tool call its id in the client; return whether the client has the call already.

        A run that answers an interrupt starts the calls of its turn again.
        """
        known = self._earlier.pop(call_id, None)
        if known is None or self.sent[known] != call:
            known = next((id_ for id_ in self.allowed if self.sent[id_] == call), None)
        if known in self.allowed:
            self.allowed.remove(known)
        id_ = known or call_id
        while known is None and id_ in self.sent:
            id_ += "+"  # A model may give a later call the same id.
        self._ids[call_id] = id_
        self.sent[id_] = self._unanswered[id_] = call
        return known is not None

    def _delta(self, kind: str, message_id: str, event: Json) -> Iterator[Json]:
        if kind != self._kind:
            yield from self._close()
            self._kind = kind
        if message_id not in self._open:
            self._open.append(message_id)
            yield from self.say("start", kind, message_id)
        if kind == "text":
            self._texts.setdefault(message_id, []).append(event["content"])
        yield from self.say("delta", kind, message_id, delta=event["content"])

    def _close(self) -> Iterator[Json]:
        for message_id in self._open:
            yield from self.say("end", self._kind, message_id)
        self._open.clear()

    def asked(self) -> Iterator[tuple[str, Any, bool]]:
        """Yield what an interrupted run asks: an id, a value, whether that is a call to allow."""
        # A static breakpoint has no interrupt.
        for each in self.interrupts or [{"id": self.run_id, "value": None}]:
            requests = requests_in(each["value"])
            for id_, value in zip(ids_of(**each), requests or [each["value"]], strict=True):
                yield id_, value, bool(requests)

    def call_of(self, request: Json) -> str | None:
        """Return the id of the open call that a person is asked to allow, if there is one."""
        wanted = request.get("name"), request.get("args")
        return next((id_ for id_, call in self._unanswered.items() if call == wanted), None)
