"""Which moments of a collection the lake has in full, by what the state store knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from engine.core.backfill import Plan, is_end
from engine.core.position import make_time
from engine.core.records import StreamRecord
from engine.core.restoring import EVERYTHING, told
from engine.core.schema import IDENTIFIER
from engine.core.specs import StreamSpec
from engine.errors import ConfigError, NoStateError

# The clocks of the engine, which notes when a backfill was finished, and of MongoDB may differ by so much.
_CLOCKS_S = 60


class Moments:
    """What can be restored of one collection.

    Args:
        records: of all streams.
        plan: the newest backfill of the collection; None if there is none.
    """

    def __init__(
        self, records: Mapping[str, StreamRecord], plan: Plan | None, database: str, collection: str
    ) -> None:
        self._namespace = f"{database}.{collection}"
        self._plan = plan
        self._read_by = None if plan is None else read_by(plan, records)
        self._streams = {
            name: record
            for name, record in records.items()
            if isinstance(record.spec, StreamSpec) and record.spec.covers(database, collection)
        }

    def choose(self, at: int | None) -> int:
        """The cluster time to restore: the one that is asked for, or else the newest that is complete.

        A stream that stands at an event may have cut a transaction, so only what is before that time is complete.

        Raises:
            NoStateError: nothing is known of the collection.
            ConfigError: the lake does not have that moment yet.
        """
        if self._plan is not None and self._plan.order != IDENTIFIER:
            raise self._error(
                "the documents of a time-series collection have no unique _id", "Read its rows instead."
            )
        newest = self._newest()
        chosen = newest if at is None else at
        if chosen > newest:
            behind = ", ".join(
                f"{name} has committed up to {told(record.position.time)}"
                for name, record in self._living()
                if record.position is not None and record.position.time <= chosen
            )
            cause = behind or "the collection has no change stream that is kept up"
            raise self._error(
                f"{cause}, and {told(chosen)} is not before that", "Wait, or restore an earlier time."
            )
        self._refuse_unloaded(chosen)
        return chosen

    def _living(self) -> Iterator[tuple[str, StreamRecord]]:
        """The streams that others have not taken over; all of them if there is no such stream any more."""
        open_ = {name: record for name, record in self._streams.items() if not record.closed}
        return iter((open_ or self._streams).items())

    def _newest(self) -> int:
        living = list(self._living())
        if not living:
            if self._plan is None:
                cause = f"the state store knows no stream and no backfill of {self._namespace}"
                raise NoStateError(f"restore {self._namespace}", cause, "Check --collection and state.url.")
            return EVERYTHING
        for name, record in living:
            spec = record.spec
            assert isinstance(spec, StreamSpec)
            there = {
                each.spec.part
                for _, each in living
                if isinstance(each.spec, StreamSpec) and each.spec.parts == spec.parts
            }
            if record.position is None or len(there) < spec.parts:
                raise self._error(f"{name}, or another part of it, has not committed anything yet", "Wait for it.")
        return min(record.position.time for _, record in living if record.position is not None) - 1

    def _refuse_unloaded(self, at: int) -> None:
        plan, is_read = self._plan, self._read_by is not None
        replaced = {record.replaced.get(self._namespace) or EVERYTHING for _, record in self._living()}
        if any(time <= at and not (plan and is_read and plan.has_all_since(time)) for time in replaced):
            remedy = "Run the engine or its command backfill until it is loaded, or restore an earlier time."
            raise self._error("a rename replaced its documents, and the new ones are not loaded yet", remedy)
        if plan is not None and not is_read and max(plan.begun or 0, plan.since or 0) <= at:
            remedy = (
                "Let it finish (the command status shows how far it is), or restore a time before it was begun."
            )
            raise self._error("its backfill is not finished", remedy)

    def _error(self, cause: str, remedy: str) -> ConfigError:
        return ConfigError(f"restore {self._namespace}", cause, remedy)

    def is_loaded(self) -> bool:
        """Whether a backfill has loaded the whole collection."""
        return self._plan is not None and self._plan.has_all_since(0)

    def has_read_before(self, time: int) -> bool:
        """Whether documents that a backfill read were certainly read before this cluster time."""
        return self._read_by is not None and make_time(int(self._read_by) + _CLOCKS_S, 0) < time


def read_by(plan: Plan, records: Mapping[str, StreamRecord]) -> float | None:
    """When a backfill was entirely in the lake, in seconds since 1970, or some time later; None for not yet."""
    if plan.finished:
        return plan.finished
    splits = [records.get(spec.stream, StreamRecord()) for spec in plan.specs()]
    if not all(is_end(record.position) for record in splits):
        return None
    return max(record.updated or EVERYTHING for record in splits)
