"""What a checkpoint saves of messages: all that LangGraph's serializer can."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer


class Serializer(JsonPlusSerializer):
    """LangGraph's serializer; what it cannot save is left out, and not the whole turn with it.

    That is a tool's artifact of any class. An integer of more than 64 bits becomes a float.
    """

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        try:
            return super().dumps_typed(obj)
        except TypeError:
            return super().dumps_typed(self._savable(obj))

    def _savable(self, value: Any) -> Any:
        match value:
            case BaseMessage():
                return value.model_copy(update=self._savable(vars(value)))
            case list():
                return [self._savable(each) for each in value]
            case dict():
                return {key: self._savable(each) for key, each in value.items()}
            case int() if not -(2**63) <= value < 2**63:
                return float(value)
        try:
            super().dumps_typed(value)
        except TypeError:
            return None
        return value
