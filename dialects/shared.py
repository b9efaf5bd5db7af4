"""What the dialects share: other vocabularies over the same runs.

A dialect reads a foreign request into what ``POST /api/chat`` would have asked, and turns our
frames into foreign ones. It knows neither runs nor LangGraph nor HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from events import Refused

Json = dict[str, Any]
Pending = Mapping[str, Any] | None
"""The interrupts that a thread waits for, by id: none at a static breakpoint. None: no wait."""
Action = tuple[Any, Any]
"""The tool and the input of a call."""

DATA = re.compile("^data: (.*)$", re.MULTILINE)
FIELD = re.compile(r"\$(\w+)(-\w+)?")
to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def table(text: str) -> dict[str, str]:
    """Return the frames for each type of event, as the lines of a table have them.

    A line is a type and a frame's data, in which ``$name`` is the event's field of that name, and
    ``$name-suffix`` has that behind it. An indented line continues the one before.
    """
    frames: dict[str, str] = {}
    for line in re.sub(r"\n +", "", text.strip()).split("\n"):
        type_, data = line.split(" ", 1)
        frames[type_] = f"{frames.get(type_, '')}data: {data}\n\n"
    return frames


def objects_in(value: Any, name: str) -> list[Json]:
    """Return the objects of what should be an object's list of objects."""
    found = value.get(name) if isinstance(value, dict) else None
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def text_of(message: Json, name: str) -> str:
    """Return a message's text: a string, or text parts. Raises Refused if it has another part."""
    if isinstance(text := message.get(name), str):
        return text
    parts = objects_in(message, name)
    for part in parts:
        if not isinstance(part.get("text"), str):
            what = f"A message may have text alone; this one has {part.get('type')!r}."
            raise Refused("invalid_request", what)
    return "\n".join(part["text"] for part in parts)


def questions(interrupts: Mapping[str, Any], resume: Any = None) -> Iterator[tuple[Any, ...]]:
    """Yield an id to answer by, what is asked, the call to allow if it is one, and the answer.

    Source: LangChain, "Human-in-the-loop": an interrupt may ask to allow several calls.
    """
    for id_, value in interrupts.items():
        answer = resume.get(id_, resume) if isinstance(resume, dict) else resume
        calls = objects_in(value, "action_requests")
        decisions = dict(enumerate(objects_in(answer, "decisions")))
        for n, call in enumerate(calls):
            yield f"{id_}:{n}", call, (call.get("name"), call.get("args")), decisions.get(n, {})
        if not calls:
            yield id_, value, None, answer


def resume_of(answers: Json, pending: Pending) -> Any:
    """Return the ``resume`` that answers all that a thread waits for. Raises Refused."""
    if pending is None or not (pending or answers):
        raise Refused("nothing_to_resume")
    resume: Json = {}
    for id_, _, action, _ in questions(pending):
        if id_ not in answers:
            raise Refused("invalid_request", f"The interrupt {id_!r} waits for an answer.")
        match answers[id_]:
            case answer if action is None:
                resume[id_] = answer
                continue
            case {"approved": True}:
                decision = {"type": "approve"}
            case {"reason": str(reason)} if reason:
                decision = {"type": "reject", "message": reason}
            case _:
                decision = {"type": "reject"}
        resume.setdefault(id_.partition(":")[0], {"decisions": []})["decisions"].append(decision)
    return resume if pending else [None, *answers.values()][-1]


@dataclass
class Call:
    """A tool call: ``new``; ``allowed`` or ``rejected`` before it begins; ``open``; ``ended``."""

    id: str
    """Its id in the client."""
    state: str = "new"
    action: Action | None = None


class Translator:
    """Turns the frames of a turn's runs, in order from the first one, into a dialect's.

    ``answers`` are what the runs after the first one answer.
    """

    def __init__(self, frames: Mapping[str, str], answers: Sequence[Any]) -> None:
        self.interrupts: Json = {}
        self.calls: dict[str, Call] = {}
        """By our id; those that are allowed or rejected by the client's, as ours is unknown yet."""
        self._frames, self._answers = frames, [*answers]
        self._open_texts: dict[str, str] = {}
        self._texts: dict[str, list[str]] = {}

    def __call__(self, frames: bytes) -> bytes:
        said = [
            FIELD.sub(partial(_field, each), self._frames.get(each["type"], ""))
            for data in DATA.findall(frames.decode())
            for event in self._fold(json.loads(data))
            for each in self.say(event)
        ]
        # Half of a surrogate pair has no UTF-8; its JSON escape joins the other half in the client.
        return "".join(said).encode("utf-8", "backslashreplace")

    def say(self, event: Json) -> Iterator[Json]:
        """Yield an event of `_fold` as the table has it: with more fields, or as several."""
        raise NotImplementedError

    def find(self, action: Action | None, *states: str) -> Call | None:
        """Find the first call for this action in one of the states, tried in their order."""
        calls = [each for each in self.calls.values() if each.action == action]
        return next((each for state in states for each in calls if each.state == state), None)

    def _fold(self, event: Json) -> Iterator[Json]:
        """Yield a turn's events as those of one run, less the calls that the client has.

        ``id`` is the message's, or the call's in the client. ``text_start`` and ``text_end``, or
        ``reasoning_…``, stand around the deltas of a message; ``answered`` stands in place of a
        ``done`` that another run follows.
        """
        type_, ours = event["type"], event.get("tool_call_id", "")
        if type_ not in ("thinking", "tool_progress"):
            yield from self._bounds(event)
        match type_:
            case "start":
                is_later = bool(self.interrupts)
                self.interrupts = {event["run_id"]: None}  # A static breakpoint brings none.
                if is_later:
                    return
            case "text_delta":
                self._texts.setdefault(event["message_id"], []).append(event["content"])
            case "tool_call":
                action = event["tool"], event["input"]
                # LangChain ends the rejected calls before it begins the others.
                waiting = self.find(action, "rejected", "allowed")
                call = self.calls.setdefault(ours, waiting or Call(ours))
                is_known = call.state != "new"
                call.state, call.action = "open", action
                if is_known:  # A run that answers begins the calls of its turn again.
                    return
            case "tool_result" if event["status"] == "interrupted":
                return  # It has no result yet.
            case "tool_result":
                self.calls[ours].state = "ended"
            case "interrupt":
                self.interrupts = {each["id"]: each["value"] for each in event["interrupts"]}
            case "final_answer":
                text = "".join(self._texts.get(event["message_id"], ()))
                # As ASCII, a surrogate pair in two deltas equals a whole one.
                if json.dumps(text) != json.dumps(event["content"]):
                    event["type"] = "changed_answer"
            case "error" if self._answers:
                return
            case "done" if self._answers:
                event |= {"type": "answered", "resume": self._answers.pop(0)}
        event["id"] = self.calls[ours].id if ours else event.get("message_id")
        yield event

    def _bounds(self, event: Json) -> Iterator[Json]:
        """Yield the ends of the texts that an event ends, and the start of one that it begins."""
        kind, is_delta, _ = event["type"].partition("_delta")
        if not {*self._open_texts.values()} <= {kind}:
            for id_, ended in self._open_texts.items():
                yield {"type": f"{ended}_end", "id": id_}
            self._open_texts.clear()
        if is_delta and event["message_id"] not in self._open_texts:
            self._open_texts[event["message_id"]] = kind
            yield {"type": f"{kind}_start", "id": event["message_id"]}


def _field(event: Json, found: re.Match[str]) -> str:
    value, suffix = event[found[1]], found[2]
    return to_json(value + suffix if suffix else value)
