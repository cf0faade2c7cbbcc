"""Follows the lake: adds what has been committed there to the tables, again and again.

The lake itself is the queue. An object in the layout of tables is never replaced, so whatever is there of a
committed segment is final. A pass looks which streams have got further since the last one, lists where their
objects can be, and adds to each table what lies beyond its coverage. Nothing is remembered that could be lost: the
first pass lists everything, and a table that was dropped is made again from its objects.
"""

from __future__ import annotations

import datetime
import logging
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from engine.config.tree import Config
from engine.core.naming import TABLE_DIRECTORIES, is_split, partition_of, partition_of_seconds
from engine.core.records import StreamRecord, read_record
from engine.core.specs import Spec
from engine.errors import ConfigError, HeadraceError
from engine.lake.objects import LakeObject, Objects
from engine.sink.lake import directories_of
from engine.sink.objects import Sink
from engine.state.seam import StateStore
from engine.tables.table import Added, Bounds, DataFile, Table, add

_DATE = re.compile(r"cdc_date=(\d{4}-\d\d-\d\d)")
# Splits read what is there now, by the server's clock.
_CLOCKS_APART_S = 86_400
log = logging.getLogger("headrace")


class Tables(Protocol):
    """The tables of one format."""

    def check(self) -> None:
        """See whether tables can be committed to.

        Raises:
            HeadraceError: they cannot.
        """

    def renew(self) -> None:
        """After an error: open everything anew, with secrets as they are now in the places that they came from."""

    def open(self, database: str, name: str, *, by_day: bool) -> Table:
        """The table whose objects are in ``<database>/<name>/``, made with the first commit if there is none.

        Args:
            by_day: whether it is partitioned by the day of its events.
        """


class Pass(NamedTuple):
    """What one pass has done.

    Attributes:
        tables: what was added, by table.
        failed: the tables that could not be committed to, each with the error.
    """

    tables: Mapping[str, Added]
    failed: Mapping[str, HeadraceError]


class _Passed(NamedTuple):
    """How far a stream was when its segments were added.

    Attributes:
        time: a cluster time before which later segments have no events; None if not known.
    """

    seq: int
    time: int | None


class Follower:
    """State: how far the tables have each stream's segments, as far as this process has seen to it.

    Args:
        store: only read.
        owner: leave the streams that others than this one hold to them; "" for none.
    """

    def __init__(self, config: Config, store: StateStore, tables: Tables, owner: str = "") -> None:
        self._sink = Sink(config.sink)
        self._objects = Objects(config.sink, config.retry)
        self._store = store
        self._tables = tables
        self._owner = owner
        self._passed: dict[str, _Passed] = {}
        self._committed: dict[str, int] = {}
        self._looked_at: float | None = None
        self._unknown: set[str] = set()
        self._known: dict[str, str] = {}

    def run_once(self, beat: Callable[[], None] = lambda: None) -> Pass:
        """Add what has been committed by now.

        Args:
            beat: called now and then.

        Raises:
            HeadraceError: of the state store or the sink; of a table, see ``Pass.failed``.
        """
        began = time.time()
        held = self._store.read_all()
        records = {name: read_record(fields) for name, (fields, _) in held.items()}
        self._committed = {name: each.seq for name, each in records.items()}
        others = {name for name, (_, holder) in held.items() if self._owner and holder not in ("", self._owner)}
        now = {
            name: _Passed(record.seq, record.position.time if record.position and not is_split(name) else None)
            for name, record in records.items()
            if record.seq and name not in others
        }
        beat()
        changed = {name for name, each in now.items() if each.seq > self._seq(name)}
        changed |= {
            name for name in self._passed if is_split(name) and name not in records
        }  # its backfill is done
        done: dict[str, Added] = {}
        failed: dict[str, HeadraceError] = {}
        behind: set[str] = set()
        for directory, found in self._news(changed, records).items():
            beat()
            database, name, _ = directory.split("/")
            try:
                done[f"{database}.{name}"] = self._added(directory, found, records)
            except HeadraceError as error:
                failed[f"{database}.{name}"] = error
                behind |= {each.parts.stream for each in found}
        for name in changed - behind:
            if name in now:
                self._passed[name] = now[name]
            else:
                del self._passed[name]
        if not failed:
            self._looked_at = began
        return Pass(done, failed)

    def short_of(self, committed: Mapping[str, int]) -> set[str]:
        """The streams whose records were, at the last pass, not yet at these segments."""
        return {name for name, seq in committed.items() if self._committed.get(name, 0) < seq}

    def _seq(self, stream: str) -> int:
        return self._passed[stream].seq if stream in self._passed else -1

    def _is_committed(self, object_: LakeObject, records: Mapping[str, StreamRecord]) -> bool:
        """Whether no object of the segment is still to come."""
        stream = object_.parts.stream
        if stream in records:
            return object_.parts.seq <= records[stream].seq
        if is_split(stream):
            return True  # its backfill has ended, or was begun anew
        if stream not in self._unknown:
            self._unknown.add(stream)
            log.warning(
                "the lake has objects of a stream that the state store does not know; no table gets them",
                extra={"fields": {"stream": stream, "object": object_.key, "remedy": "headrace state rebuild"}},
            )
        return False

    # --- what is new -------------------------------------------------------------------------------------

    def _news(self, changed: Iterable[str], records: Mapping[str, StreamRecord]) -> dict[str, list[LakeObject]]:
        """The objects of the changed streams that may be new, by their tables' directories."""
        found: defaultdict[str, list[LakeObject]] = defaultdict(list)
        wanted, places = set(changed), dict[str, str]()
        if self._looked_at is None:
            places = dict.fromkeys(self._everywhere(), "")
        else:
            for stream in changed:
                record = records.get(stream)
                spec = record.spec if record else None
                after = self._day_after_which(stream)
                for directory in self._everywhere() if spec is None else self._directories(spec):
                    places[directory] = min(after, places.get(directory, after))
        for directory, after in places.items():
            for each in self._objects.below(directory, f"{directory}{after}/" if after else ""):
                stream = each.parts.stream
                if (stream in wanted or stream not in records) and each.parts.seq > self._seq(stream):
                    found[directory].append(each)
        return dict(sorted(found.items()))

    def _everywhere(self) -> Iterator[str]:
        """The directories of all tables."""
        return directories_of(self._sink, None, TABLE_DIRECTORIES)

    def _directories(self, spec: Spec) -> Iterator[str]:
        return directories_of(self._sink, spec, TABLE_DIRECTORIES)

    def _day_after_which(self, stream: str) -> str:
        """The directory of the day on which a stream's next objects can be at the earliest; "" for any."""
        known = self._passed.get(stream)
        if known is not None and known.time:
            return partition_of(known.time, "table", TABLE_DIRECTORIES)
        if is_split(stream) and self._looked_at is not None:
            return partition_of_seconds(int(self._looked_at) - _CLOCKS_APART_S, "table", TABLE_DIRECTORIES)
        return ""

    # --- adding ------------------------------------------------------------------------------------------

    def _added(self, directory: str, found: Iterable[LakeObject], records: Mapping[str, StreamRecord]) -> Added:
        database, name, _ = directory.split("/")
        table = self._tables.open(database, name, by_day=True)
        coverage = table.coverage()
        if self._known.get(directory, table.identity) != table.identity:
            log.warning(
                "a table is another one than before: adding all that it lacks", extra={"fields": {"table": name}}
            )
            found = self._objects.below(directory)
        committed = (each for each in found if self._is_committed(each, records))
        left = [each for each in committed if each.parts.seq > coverage.get(each.parts.stream, -1)]
        done = add(table, [file for each in left if (file := data_file(self._objects, each)) is not None])
        self._known[directory] = table.identity
        return done


def data_file(objects: Objects, object_: LakeObject) -> DataFile | None:
    """What a table needs to know of an object of the lake; None for one without rows.

    Raises:
        HeadraceError: of the store, or the object is damaged.
    """
    try:
        metadata = pq.read_metadata(objects.open(object_))
        day = _DATE.search(object_.key)
        assert day is not None
        version = int((metadata.metadata or {})[b"headrace.schema_version"])
    except HeadraceError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        cause = f"{object_.key} is damaged: {type(error).__name__}: {error}"
        remedy = "Run headrace verify, and bring the object back, or remove it."
        raise ConfigError("read an object of the lake", cause, remedy) from error
    if not metadata.num_rows:
        return None
    return DataFile(
        stream=object_.parts.stream,
        seq=object_.parts.seq,
        key=object_.key,
        size=object_.size,
        rows=metadata.num_rows,
        day=datetime.date.fromisoformat(day[1]),
        schema=metadata.schema.to_arrow_schema().remove_metadata(),
        version=version,
        bounds=_bounds(metadata),
    )


def _bounds(metadata: pq.FileMetaData) -> Bounds:
    """Between which times the rows of a file are, by its footer.

    Raises:
        KeyError: it does not say.
    """
    number = metadata.schema.names.index("_cdc_timestamp")
    told = [metadata.row_group(each).column(number).statistics for each in range(metadata.num_row_groups)]
    return Bounds(min(each.min for each in told), max(each.max for each in told))
