"""Checkpoints in memory: one for each thread, for a limited number of threads.

Each checkpoint holds the whole conversation; keeping all of them would cost memory quadratic in its
length. Nothing in here knows events or runs.
"""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
)
from langgraph.checkpoint.memory import InMemorySaver

from graphs.serializer import Serializer

MAY_WRITE = "__may_write"
"""A key of a run's config: its value is a function that says whether the run may still write.
A graph that does not stop is left behind, and then it may not.

LangGraph does not save keys that begin with two underscores.
"""

COUNTERS = "counters_since_delta_snapshot"
"""LangGraph's metadata key of delta channels, whose value is spread over earlier checkpoints: then
those stay, too."""


def _may_write(config: RunnableConfig) -> bool:
    return bool(config["configurable"].get(MAY_WRITE, lambda: True)())


class Memory(InMemorySaver):
    """LangGraph's own memory, which keeps one checkpoint a thread and ``max_threads`` threads.

    ``put`` drops the checkpoint before, and the channel values that it alone used. If there are
    too many threads, the one used longest ago is forgotten first, never one in use.
    """

    def __init__(self, max_threads: int) -> None:
        super().__init__(serde=Serializer())
        self._max_threads = max_threads
        self._in_use = 0
        """The number of threads in use."""
        self._idle: dict[str, bool] = {}
        """Whether each other thread is settled, the one used longest ago first."""

    def knows(self, thread_id: str) -> bool:
        return thread_id in self.storage

    def use(self, thread_id: str) -> bool:
        """Protect a thread from being forgotten; return whether it is settled, or new."""
        self._in_use += 1
        return self._idle.pop(thread_id, not self.knows(thread_id))

    def free(self, thread_id: str, settled: bool) -> None:
        """End the use of a thread, and forget idle threads if there are too many."""
        self._in_use -= 1
        if self.knows(thread_id):
            self._idle[thread_id] = settled
        while self._idle and self._in_use + len(self._idle) > self._max_threads:
            self.delete_thread(next(iter(self._idle)))

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        # The parent's storage is a defaultdict: reading a thread would create it.
        known = self.knows(config["configurable"]["thread_id"])
        return super().get_tuple(config) if known else None

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        if not _may_write(config):
            return config
        thread_id, namespace = (config["configurable"][k] for k in ("thread_id", "checkpoint_ns"))
        saved = super().put(config, checkpoint, metadata, new_versions)
        if COUNTERS not in metadata:
            self._drop(thread_id, namespace, checkpoint["id"], checkpoint["channel_versions"])
        for each in [*self.storage[thread_id]] if not namespace else ():
            # A subgraph that runs for one task has the task's id in its namespace, after a colon.
            # It saves only when it pauses, and then its checkpoint is newer than its thread's.
            if ":" in each and max(self.storage[thread_id][each], default="") < checkpoint["id"]:
                self._drop(thread_id, each)
        return saved

    def put_writes(self, config: RunnableConfig, *written: Any) -> None:
        if _may_write(config):
            super().put_writes(config, *written)

    def delete_thread(self, thread_id: str) -> None:
        self._idle.pop(thread_id, None)
        for namespace in [*self.storage.get(thread_id, ())]:
            self._drop(thread_id, namespace)
        self.storage.pop(thread_id, None)

    def _drop(
        self, thread_id: str, namespace: str, keep: str = "", kept: ChannelVersions | None = None
    ) -> None:
        """Drop a namespace's checkpoints, except ``keep``; its channel versions are ``kept``."""
        checkpoints = self.storage[thread_id][namespace]
        for id_ in [each for each in checkpoints if each != keep]:
            versions = self.serde.loads_typed(checkpoints.pop(id_)[0])["channel_versions"]
            self.writes.pop((thread_id, namespace, id_), None)
            for channel, version in versions.items():
                if version != (kept or {}).get(channel):
                    self.blobs.pop((thread_id, namespace, channel, version), None)
        if not checkpoints:
            del self.storage[thread_id][namespace]
