"""Several engines that share several streams, simulated; with the state in a store, and in the lake."""

from __future__ import annotations

import random
from collections.abc import Sequence

from engine.core.decisions import Decision
from engine.core.generations import Generation
from engine.core.lifecycle import Stage
from engine.core.position import Position
from engine.core.records import read_record
from engine.core.specs import Spec, StreamSpec
from engine.core.stream import Stream
from tests.sim.world import STREAM, Event, LakeWorld, Mongo, World


class FleetWorld(World):
    """Engines come, end, die and pause, and give streams up to each other.

    State: each stream's own events; how often a stream was given up.
    """

    fleet = Generation(1, "selection", ())
    faults = (*World.faults, "drain", "pause")

    def __init__(self, seed: int) -> None:
        rng = random.Random(-seed - 1)
        names = [STREAM, *(f"shop.c{number}" for number in range(rng.randrange(1, 5)))]
        self._logs = {name: Mongo(random.Random(rng.random()), rng.randrange(5, 25)) for name in names}
        self.given_up = 0
        super().__init__(seed, events=0, faults=10)

    def streams(self) -> list[StreamSpec]:
        """All of them, for every engine."""
        return [StreamSpec(name, "collection", pipeline=self.pipeline) for name in self._logs]

    def read(self, spec: Spec, after: Position, most: int) -> tuple[list[tuple[Event, str]], str]:
        """From the stream's own events, which grow as they are read."""
        log = self._logs[spec.stream]
        if log.to_come and self.rng.random() < 0.7:
            log.append()
        return log.read(after, most)

    def reached(self, stream: str, position: Position | None) -> int:
        """The number of the last event of a stream up to a position."""
        return self._logs[stream].given[position.token] if position is not None else -1

    def events_of(self, stream: str) -> Sequence[Event]:
        """The events of one stream."""
        return self._logs[stream].events

    def known_streams(self) -> Sequence[str]:
        """All of them."""
        return list(self._logs)

    def _start_engine(self) -> None:
        super()._start_engine()
        coordinator = self.engines[-1].coordinator
        give_up = coordinator._leases.give_up

        def counted(stream: Stream) -> list[Decision]:
            self.given_up += 1
            return give_up(stream)

        coordinator._leases.give_up = counted  # type: ignore[method-assign]

    def _fault(self) -> None:
        if self.rng.random() < 0.2:
            for engine in self.engines:  # a stream takes too long to drain
                for stream in engine.coordinator.streams.values():
                    if stream.give_up_by is not None:
                        stream.give_up_by = self.now
        if self.rng.random() < 0.4 and len(self.engines) < 4:
            self._start_engine()
        else:
            super()._fault()

    def after_step(self) -> None:
        """An operator starts an engine again after it has given up on a stream."""
        for engine in self.engines:
            if any(each.error for each in engine.coordinator.streams.values()) and self.rng.random() < 0.02:
                self._kill_engine(engine)
                return

    def _is_done(self) -> bool:
        if any(engine.paused_until > self.now for engine in self.engines):
            return False
        return all(map(self._is_committed, self._logs)) and self._is_shared()

    def _is_committed(self, stream: str) -> bool:
        record, log = read_record(self.records[stream].fields), self._logs[stream]
        reached = self.reached(stream, record.position) == len(log.events) - 1
        return reached and not log.to_come and not record.intents

    def _is_shared(self) -> bool:
        """Whether every stream is being read, by engines with even shares."""
        counts = [sum(map(_is_read, engine.coordinator.streams.values())) for engine in self.engines]
        return sum(counts) == len(self._logs) and max(counts) - min(counts) <= 1


def _is_read(stream: Stream) -> bool:
    return stream.holds_lease and stream.stage is Stage.READING and stream.give_up_by is None


class FleetInLakeWorld(FleetWorld, LakeWorld):
    """The same, with the state in the lake, whose conditional writes lose their answers and arrive late."""
