"""Keeps tables small: compacts their files, lets old versions expire, and removes what no table names.

Only what the engine has written itself is removed: what is below ``data/`` and ``metadata/`` of a table's root.
The objects of the lake (below ``cdc_date=``) stay when a table has their rows in larger files: by them the lake is
verified, restored from and rebuilt.

All of it is commits like others, so it may run beside the engine and beside other engines. Readers are safe for
``maintenance.keep_snapshots``: nothing that a version since then names is removed.
"""

from __future__ import annotations

import datetime
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import pyarrow as pa

from engine.config.tree import Config
from engine.core.naming import mirror_name
from engine.errors import HeadraceError
from engine.footprint import held_bytes, joined
from engine.lake.batches import combined
from engine.lake.objects import Objects
from engine.sink.objects import Sink
from engine.state.seam import StateStore
from engine.tables.files import DIRECTORY, NewFile, batches_of, columns_of
from engine.tables.follower import Tables
from engine.tables.owned import owned
from engine.tables.table import DataFile, Table, TableFile

# So many small files of a day become larger ones.
FEW = 32
_ROW_GROUP_BYTES = 32 * 2**20
_COMPACT = "compact a table"


class Maintained(NamedTuple):
    """What was done: files compacted, into how many, and objects removed."""

    compacted: int = 0
    into: int = 0
    removed: int = 0


class MaintenancePass(NamedTuple):
    """What one pass has done, by table, and the tables that it could not be done for, each with the error."""

    tables: Mapping[str, Maintained]
    failed: Mapping[str, HeadraceError]


class Maintenance:
    """Maintains the tables of a lake.

    Args:
        store: only read.
        owner: leave the tables that other engines look after to them; "" for none.
        beat: called now and then while it works.
    """

    def __init__(
        self,
        config: Config,
        store: StateStore,
        tables: Tables,
        owner: str = "",
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._beat = beat
        self._sink = Sink(config.sink, beat)
        self._store, self._tables, self._owner = store, tables, owner
        self._objects = Objects(config.sink, config.retry)

    def run_once(self) -> MaintenancePass:
        """Maintain all tables.

        Raises:
            HeadraceError: of the state store or the sink; of a table, see ``MaintenancePass.failed``.
        """
        done: dict[str, Maintained] = {}
        failed: dict[str, HeadraceError] = {}
        for each in owned(self._sink, self._store, self._tables, self._owner):
            for name, is_mirror in ((each.name, False), (mirror_name(each.name), True)):
                self._beat()
                try:
                    if each.error is not None:
                        raise each.error
                    table = self._tables.open(each.database, name, by_day=not is_mirror)
                    done[f"{each.database}.{name}"] = self._maintained(
                        table, f"{each.database}/{name}/", is_mirror
                    )
                except HeadraceError as error:
                    failed[f"{each.database}.{name}"] = error
        return MaintenancePass(done, failed)

    def _maintained(self, table: Table, directory: str, is_mirror: bool) -> Maintained:
        table.coverage()
        if not table.identity:
            return Maintained()
        done = Maintained()
        if not is_mirror:
            for day, small in _small(table.files(), self._config.maintenance.file_size).items():
                new = [*self._compacted(directory, day, small)]
                table.commit(new, {}, small, same_rows=True)
                done = done._replace(compacted=done.compacted + len(small), into=done.into + len(new))
                table.coverage()
        before = time.time() - self._config.maintenance.keep_snapshots
        table.expire(before)
        written = _own(self._sink, (f"{directory}{DIRECTORY}", table.metadata_directory), before)
        for key in table.unused(written, before, self._beat):
            self._sink.remove(key)
            self._beat()
            done = done._replace(removed=done.removed + 1)
        return done

    def _compacted(
        self,
        directory: str,
        day: datetime.date,
        files: Sequence[TableFile],
    ) -> Iterator[DataFile]:
        """The rows of these files in as few as ``maintenance.file_size`` allows."""
        schemas = []
        for each in files:
            self._beat()
            schemas.append(columns_of(self._objects, each, _COMPACT))
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        read = (combined(batches_of(self._objects, each, _COMPACT)) for each in files)
        groups = _groups(chain.from_iterable(read), schema)
        group = next(groups, None)
        while group is not None:
            with NewFile(self._sink, self._config.sink, directory, schema, day) as file:
                while group is not None and file.size < self._config.maintenance.file_size:
                    file.write(group)
                    self._beat()
                    group = next(groups, None)
                yield file.publish()


def _groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[list[pa.RecordBatch]]:
    """The rows with all columns, in batches for one row group each."""
    held: list[pa.RecordBatch] = []
    size = 0
    for each in batches:
        held.append(each)
        size += held_bytes(each)
        if size >= _ROW_GROUP_BYTES:
            yield joined([pa.RecordBatch.from_pylist([], schema), *held], "permissive")
            held, size = [], 0
    if held:
        yield joined([pa.RecordBatch.from_pylist([], schema), *held], "permissive")


def _small(files: Iterable[TableFile], size: int) -> Mapping[datetime.date, Sequence[TableFile]]:
    """The files of each day that are to be compacted, in the order of their times."""
    found: defaultdict[datetime.date, list[TableFile]] = defaultdict(list)
    for each in files:
        if each.size < size // 2 and each.day is not None:
            found[each.day].append(each)
    return {
        day: sorted(own, key=lambda each: each.bounds.oldest if each.bounds else 0)
        for day, own in sorted(found.items())
        if len(own) >= FEW
    }


def _own(sink: Sink, directories: Iterable[str], before: float) -> list[str]:
    """The objects that the engine or its libraries have written for a table before a time."""
    return [each.key for below in directories if below for each in sink.stored(below) if each.modified < before]
