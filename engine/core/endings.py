"""How a stream ends here: it was read out, the engine drains, or another engine should have it.

What was read is committed first. State: none of its own; the streams know what they are waiting for. Owner: the
coordinator.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.core.actions import Action, Log, Send
from engine.core.backfill import is_end
from engine.core.decisions import Close, Decision, End, Interrupt
from engine.core.landing import Landing
from engine.core.leases import Leases
from engine.core.lifecycle import Stage
from engine.core.messages import Finish
from engine.core.stream import Settings, Stream
from engine.errors import FatalError

_NOT_READ = (Stage.ACQUIRED, Stage.SURVEYING, Stage.READY)


class Endings:
    """The ends of an engine's streams."""

    def __init__(
        self, settings: Settings, streams: Mapping[str, Stream], leases: Leases, landing: Landing
    ) -> None:
        self._settings = settings
        self._streams = streams
        self._leases = leases
        self._landing = landing

    def give_up(self, stream: Stream, now: float) -> list[Action]:
        """Another engine should have the stream: drain it. ``of`` then releases its lease."""
        if stream.give_up_by is not None or not stream.holds_lease:
            return []
        stream.give_up_by = now + self._settings.drain_timeout_s
        is_being_read = stream.stage in (Stage.ASSIGNED, Stage.READING)
        return [Send(stream.reader, Finish())] if is_being_read and stream.reader is not None else []

    def late(self, now: float) -> list[Decision]:
        """Drop what takes too long to drain: the next owner replays it."""
        return [
            Interrupt(stream)
            for stream in self._streams.values()
            if stream.give_up_by is not None and now > stream.give_up_by and stream.is_assigned
        ]

    def of(self, stream: Stream, *, draining: bool) -> list[Decision]:
        """End the stream if everything read of it is committed, or if the engine drains and leaves it as it is."""
        if draining and stream.is_open and not stream.is_assigned:
            stream.life.on("finished")
            return []
        gives_up = stream.give_up_by is not None and not draining
        if gives_up and stream.stage in _NOT_READ:
            return self._leases.give_up(stream)
        if stream.stage is not Stage.ENDING or stream.ledger.segments:
            return []
        if gives_up:
            return [*self._read_out(stream), *self._leases.give_up(stream)]
        if stream.selection_changed and not draining:
            stream.generation += 1
            stream.life.on("reopened")
            return []
        stream.life.on("finished")
        fields = {"stream": stream.name, "events": stream.counters.events_committed}
        decisions = [*self._read_out(stream), Log(stream.log_level, "stream finished", fields)]
        if stream.is_of_backfill and is_end(stream.ledger.committed):
            decisions.append(Close(stream))
        return decisions

    def drain_failed(self) -> End:
        """The engine has drained for too long."""
        left = sum(each.ledger.in_flight for each in self._streams.values())
        if not left and not any(each.is_open for each in self._streams.values()):
            return End(None, 0)  # only the tables are behind, and the next run adds what they lack
        cause = f"{left} segment(s) were not committed within shutdown.timeout"
        remedy = "Nothing is lost: they are replayed at the next start. Raise shutdown.timeout to let them finish."
        return End(FatalError("drain", cause, remedy), 1)

    def _read_out(self, stream: Stream) -> list[Decision]:
        """Commit how far the stream was read."""
        if stream.ended_at is None or stream.selection_changed:
            return []
        return self._landing.apply(stream, stream.ledger.idle(stream.ended_at))
