"""A simulated world whose state is lost, and rebuilt from the footers in its lake."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable

from msgspec.structs import replace

from engine.core import rebuild, records
from engine.core.position import position_at
from engine.core.records import read_record
from tests.sim.world import STREAM, StoredStream, World


class RebuiltWorld(World):
    """All processes end and the state is lost, often just after an object of several was published.

    It is rebuilt from the footers of what is in the lake, which sometimes are those of an earlier version.
    Sometimes the stream is rewound.

    State: the last event before the place to which it was last rewound; whether a rebuild has skipped segments.
    """

    def __init__(self, seed: int) -> None:
        self._is_older = random.Random(seed).random() < 0.2
        self._rewound_to = -1
        self._line = self._objects = 0
        self._losses_left = 3
        self.rebuilds = self.skips = 0
        super().__init__(seed, faults=8)

    def after_step(self) -> None:
        """Lose the state at times, once something new is in the lake."""
        is_new = len(self.lake.objects) != self._objects
        self._objects = len(self.lake.objects)
        if is_new and self._losses_left and self.rng.random() < 0.15:
            self._losses_left -= 1
            self._restart(self._lose)

    def _fault(self) -> None:
        if self.rng.random() < 0.2:
            self._restart(self._rewind)
        else:
            super()._fault()

    def _restart(self, meanwhile: Callable[[], None]) -> None:
        self.engines.clear()
        self.orphans.clear()
        self.orphan_stores.clear()
        meanwhile()
        for stored in self.records.values():
            stored.owner = ""
        self._start_engine()

    def _lose(self) -> None:
        self.records = defaultdict(StoredStream)
        found = [self._seen(each) for each in self.lake.footers.values()]
        wanted = rebuild.decisive(each.seq for each in found) if found else []
        if not found:
            self._rewound_to, self._line = -1, 0
            return
        stands = rebuild.rebuilt(each for each in found if each.seq in wanted)
        assert stands.line == self._line or (stands.line < self._line and not self.lake.events(self._line))
        if stands.line < self._line:  # nothing was read since the rewind
            self._line, self._rewound_to = stands.line, len(self.mongo.events)
        (spec,) = self.streams()
        self.records[STREAM].fields = stands.fields(spec, "lake", {}, "rs0")
        read_record(self.records[STREAM].fields)
        self.rebuilds += 1
        if stands.skipped:
            self.skips += 1
            self._rewound_to = len(self.mongo.events)

    def _seen(self, landed: rebuild.Landed) -> rebuild.Landed:
        assert landed.footer is not None
        older = replace(landed.footer, after=None, objects=None)
        return replace(landed, footer=older) if self._is_older else landed

    def _rewind(self) -> None:
        record = read_record(self.records[STREAM].fields)
        if record.position is None or record.intents or self._is_older:
            return
        reached = self.reached(STREAM, record.position)
        earlier = [token for token, number in self.mongo.given.items() if -1 < number < reached]
        if earlier:
            token = self.rng.choice(earlier)
            self._rewound_to, self._line = self.mongo.given[token], record.line + 1
            self.records[STREAM].fields |= records.rewound(record, position_at(token)).put

    def _is_done(self) -> bool:
        if not super()._is_done():
            return False
        late = {(STREAM, each.number) for each in self.mongo.events if each.number > self._rewound_to}
        missing = late - self.lake.events(self._line)
        assert not {each for each in missing if not self.mongo.events[each[1]].fickle}, missing
        return True
