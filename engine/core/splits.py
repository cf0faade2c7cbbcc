"""The splits and marks that wait to be read, and when each of them is opened.

Splits share a pool of readers, and only as many have streams as these can read. They wait until every change
stream is being read from a durable position: what is read of the collections is then never older than what the
streams carry. A mark waits until nothing else of its plan is left.

State: the waiting splits; how many splits have failed since something was committed; the progress of each
backfill. Owner: the coordinator.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from engine.core.actions import Log
from engine.core.backfill import Progress
from engine.core.decisions import Decision
from engine.core.lifecycle import Stage
from engine.core.specs import BackfillSpec, MarkSpec, StreamSpec
from engine.core.stream import Stream

# A split whose documents have all been read and are on their way to the lake counts as a quarter, so that writers
# that cannot keep up stop the reading.
ENDING_WEIGHT = 0.25


class Splits:
    """The splits of an engine's backfills.

    Args:
        pool: readers for splits.
        streams: all streams of the engine, the open splits among them.
    """

    def __init__(self, pool: int, streams: Mapping[str, Stream]) -> None:
        self._pool = pool
        self._streams = streams
        self._waiting: deque[BackfillSpec] = deque()
        self._failed_of: dict[str, int] = {}  # by collection, since something of it was committed
        self._collections_failed: set[str] = set()  # since something of any collection was committed
        self.progress: dict[str, Progress] = {}

    def load(self, specs: Iterable[BackfillSpec], progress: Mapping[str, Progress]) -> None:
        """Add splits to read; see ``Coordinator.load``."""
        self._waiting.extend(specs)
        self.progress |= progress

    @property
    def is_left(self) -> bool:
        """Whether any are waiting."""
        return bool(self._waiting)

    def open_due(
        self, open_: Callable[[BackfillSpec], None], is_captured_elsewhere: Callable[[Stream], bool]
    ) -> None:
        """Open as many splits as there are readers, and one more for the first reader that becomes free.

        Args:
            is_captured_elsewhere: whether another engine captures a change stream.
        """
        waiting = (each for each in self._streams.values() if each.is_open and not each.is_captured)
        if not all(each.is_of_backfill or is_captured_elsewhere(each) for each in waiting):
            return
        while self._weight() <= self._pool and (spec := self._next()) is not None:
            open_(spec)

    def _weight(self) -> float:
        """How many readers the open splits of this engine need."""
        mine = (
            each
            for each in self._streams.values()
            if each.is_of_backfill and each.held_by is None and each.stage is not Stage.FAILED
        )
        return sum(ENDING_WEIGHT if each.stage is Stage.ENDING else 1.0 for each in mine)

    def _next(self) -> BackfillSpec | None:
        """Remove and return the first that may be read now."""
        for index, spec in enumerate(self._waiting):
            if isinstance(spec, MarkSpec) and self._has_splits_left(spec):
                continue
            del self._waiting[index]
            return spec
        return None

    def _has_splits_left(self, mark: MarkSpec) -> bool:
        """Whether a split of its plan is waiting, is being read, or has failed."""
        others = itertools.chain(self._waiting, (stream.spec for stream in self._streams.values()))
        splits = (each for each in others if not isinstance(each, StreamSpec | MarkSpec))
        return any(each.namespace == mark.namespace for each in splits)

    def committed(self, stream: Stream, rows: int) -> None:
        """Part of a split has been committed."""
        assert not isinstance(stream.spec, StreamSpec)
        self._failed_of.pop(stream.spec.namespace, None)
        self._collections_failed.clear()
        self._count(stream.spec, rows)

    def closed(self, stream: Stream, rows: int) -> None:
        """A split or mark is entirely in the lake; another engine landed ``rows`` rows of it."""
        assert not isinstance(stream.spec, StreamSpec)
        self._count(stream.spec, rows, splits=1)

    def _count(self, spec: BackfillSpec, rows: int, splits: int = 0) -> None:
        if spec.namespace in self.progress:
            documents = 0 if isinstance(spec, MarkSpec) else rows
            self.progress[spec.namespace] = self.progress[spec.namespace].plus(documents, splits)

    def failed(self, namespace: str) -> list[Decision]:
        """A split has failed. Whatever stops as many splits as there are readers would also stop the next one.

        So the rest of the collection is then left for the next run; and the rest of all collections, if as many of
        them had a split fail with nothing committed in between.
        """
        mark = [each for each in self._waiting if isinstance(each, MarkSpec) and each.namespace == namespace]
        decisions = self.leave(mark)
        self._failed_of[namespace] = self._failed_of.get(namespace, 0) + 1
        self._collections_failed.add(namespace)
        bound = max(2, self._pool)
        if len(self._collections_failed) >= bound:
            return decisions + self.leave(self._waiting)
        if self._failed_of[namespace] >= bound:
            return decisions + self.leave(each for each in self._waiting if each.namespace == namespace)
        return decisions

    def leave_covered(self, spec: StreamSpec) -> list[Decision]:
        """A change stream will not carry what follows a load of its collections: leave that load as well."""
        return self.leave(each for each in self._waiting if spec.covers(each.database, each.collection))

    def leave(self, specs: Iterable[BackfillSpec]) -> list[Decision]:
        """Leave these for the next run."""
        left = {each.stream: each.namespace for each in specs}
        if not left:
            return []
        self._waiting = deque(each for each in self._waiting if each.stream not in left)
        fields = {"collections": sorted(set(left.values())), "splits_left": len(left)}
        return [Log("error", "splits left for the next run", fields)]
