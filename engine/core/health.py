"""The current problem of each stream, and the stream's state in one word.

State: the state store's problem, and when the streams were last checked. Owner: the coordinator.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.core.actions import Child, Log
from engine.core.children import Children
from engine.core.lifecycle import Stage
from engine.core.problems import BRIEF_S, UNANSWERED_S, Problem, Problems
from engine.core.servers import Servers, ServerStatus
from engine.core.store import StoreSeen
from engine.core.stream import Stream, StreamState

LOOK_EVERY_S = 0.5


class Health:
    """The health of an engine's streams."""

    def __init__(self, streams: Mapping[str, Stream], children: Children) -> None:
        self._streams = streams
        self._children = children
        self._problems = Problems()
        self._of_store: Problem | None = None
        self.servers = Servers()
        self._looked_at = -LOOK_EVERY_S

    def store_seen(self, seen: StoreSeen, now: float) -> None:
        """How the state store is doing."""
        if seen.error is not None:
            self._of_store = Problem.after(self._of_store, seen.error, now)
        elif seen.unanswered_s >= UNANSWERED_S:
            self._of_store = Problem("the state store has not answered", now - seen.unanswered_s, lasts=True)
        else:
            self._of_store = None

    def server_states(self, now: float) -> tuple[ServerStatus, ...]:
        """Which servers are away."""
        return self.servers.all(self._children, self._of_store, now)

    def look(self, now: float) -> list[Log]:
        """Note each stream's problem, and log those that are new or over."""
        if now - self._looked_at < LOOK_EVERY_S:
            return []
        self._looked_at = now
        for stream in self._streams.values():
            stream.problem = self._problem_of(stream, now) if stream.is_open else None
        return self._problems.report({name: each.problem for name, each in self._streams.items()}, now)

    def _problem_of(self, stream: Stream, now: float) -> Problem | None:
        """The stream's earliest problem: it may well have caused the others."""
        at_work = {Child("writer", each.writer) for each in stream.ledger.segments.values()}
        at_work |= {each for each in (stream.reader, stream.surveyor) if each is not None}
        if not self._children.ready("writer"):
            at_work.add(Child("writer", 0))
        found = [self._of_store, stream.trouble, *(self._children.problem(each, now) for each in at_work)]
        lasting = (each for each in found if each is not None and now - each.since >= BRIEF_S)
        return min(lasting, key=lambda each: each.since, default=None)

    def state_of(self, stream: Stream) -> StreamState:
        """The stream's state in one word."""
        if stream.stage is Stage.FAILED:
            return "failed"
        if stream.stage is Stage.FINISHED:
            return "finished"
        if stream.problem is not None:
            return "stalled"
        if stream.held_by is not None and not stream.holds_lease:
            return "standby" if self._can_take_over(stream) else "starting"
        return "reading" if stream.is_captured else "starting"

    def _can_take_over(self, stream: Stream) -> bool:
        """Whether a stream has everything it needs except its lease."""
        reader = None if stream.reader is None else self._children[stream.reader]
        has_reader = reader is None or reader.ready or not reader.wanted
        return has_reader and bool(self._children.ready("writer"))
