"""What to do when memory runs short: write out early what is being buffered.

State: when that was last done, and when it was last logged. Owner: the coordinator.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.core.actions import Child, Log, Send
from engine.core.children import Children
from engine.core.messages import CutNow, FlushBuffers
from engine.core.stream import Stream

FLUSH_EVERY_S = 2.0
FLUSH_ABOVE = 0.85
LOG_EVERY_S = 60.0


class Pressure:
    """The memory that an engine's processes use, against its limit in bytes (0 for none)."""

    def __init__(self, limit: int, children: Children) -> None:
        self._limit = limit
        self._children = children
        self._flushed_at = -FLUSH_EVERY_S
        self._logged_at = -LOG_EVERY_S

    def used(self, used: int, reading: Iterable[tuple[Child, Stream]], now: float) -> list[Log | Send]:
        """The process tree uses this many bytes; ``reading`` are the readers with their streams."""
        if not self._limit or used < FLUSH_ABOVE * self._limit or now - self._flushed_at < FLUSH_EVERY_S:
            return []
        self._flushed_at = now
        actions: list[Log | Send] = []
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            fields = {"used_bytes": used, "limit_bytes": self._limit}
            actions.append(Log("warning", "memory is short; flushing early", fields))
        actions += [Send(writer, FlushBuffers()) for writer in self._children.ready("writer")]
        actions += [Send(reader, CutNow(stream.generation)) for reader, stream in reading]
        return actions
