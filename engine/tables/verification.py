"""Tables compared with the lake that they are made of: segment by segment, and mirrors document by document.

A mirror is compared with the fold of what it has had, so that it may be behind. Both are read back to documents by
the same rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack

import pyarrow as pa
from msgspec import Struct

from engine.config.tree import Config
from engine.core.naming import TABLE_DIRECTORIES, collection_directory, mirror_name
from engine.lake.audit.findings import Finding, Findings
from engine.lake.batches import combined
from engine.lake.folding.fold import Current, Fold
from engine.lake.objects import LakeObject, Objects, UnreadableError
from engine.sink.objects import Sink
from engine.state.seam import StateStore
from engine.tables.files import batches_of, waiting_on_disk
from engine.tables.formats import tables_of
from engine.tables.mirror import as_changes
from engine.tables.owned import owned
from engine.tables.table import Table

_OPERATION = "compare a table"


class TableCompared(Struct):
    """What was compared: rows of a changelog table, or documents of a mirror."""

    files: int = 0
    rows: int = 0


def compare_tables(
    config: Config,
    objects: Objects,
    store: StateStore,
    wanted: Collection[tuple[str, str]],
    findings: Findings,
    beat: Callable[[], None],
) -> dict[str, TableCompared]:
    """Compare the tables of these collections, or of all if there are none; returns what was compared, by table.

    Raises:
        HeadraceError: of the catalog, the store, or a table that cannot be read.
    """
    tables, done = tables_of(config), dict[str, TableCompared]()
    chosen = {collection_directory(*each, TABLE_DIRECTORIES) for each in wanted}
    for each in owned(Sink(config.sink), store, tables, ""):
        directory = f"{each.database}/{each.name}/"
        if chosen and directory not in chosen:
            continue
        if each.error is not None:
            raise each.error
        name = f"{each.database}.{each.name}"
        done[name] = _changelog(objects, directory, name, each.table, findings, beat)
        if config.mirror.enabled:
            mirror = tables.open(each.database, mirror_name(each.name), by_day=False)
            name = f"{each.database}.{mirror_name(each.name)}"
            done[name] = _mirror(objects, directory, name, mirror, findings, beat)
    return done


def _changelog(
    objects: Objects, directory: str, name: str, table: Table, findings: Findings, beat: Callable[[], None]
) -> TableCompared:
    """Whether a table has each segment of the lake that it should, once."""
    coverage = table.coverage()
    there: Counter[tuple[str, int]] = Counter()
    files = table.files()
    for file in files:
        beat()
        for batch in batches_of(objects, file, _OPERATION, lambda *_: ["_cdc_stream", "_cdc_seq"]):
            counts = (
                pa.table(batch).group_by(["_cdc_stream", "_cdc_seq"]).aggregate([([], "count_all")]).to_pydict()
            )
            for stream, seq, count in zip(*counts.values(), strict=True):
                there[stream, seq] += count
    landed = _landed(objects, directory, coverage)
    for stream, seq in sorted(there.keys() | landed.keys()):
        found, expected = there[stream, seq], landed.get((stream, seq), 0)
        if found != expected:
            what = f"the table has {found:,} rows of it, and the lake {expected:,}"
            findings.add(Finding("table_rows", name, what, key=f"{stream}-{seq:012d}"))
    return TableCompared(len(files), sum(there.values()))


def _landed(objects: Objects, directory: str, coverage: Mapping[str, int]) -> dict[tuple[str, int], int]:
    """The rows of the lake's objects that a table should have, by segment."""
    mine = (each for each in objects.below(directory) if _is_covered(each, coverage))
    found: Counter[tuple[str, int]] = Counter()
    for each, footer in objects.footers(mine):
        if not isinstance(footer, UnreadableError) and footer.rows:
            found[each.parts.stream, each.parts.seq] += footer.rows
    return found


def _is_covered(object_: LakeObject, coverage: Mapping[str, int]) -> bool:
    return object_.parts.seq <= coverage.get(object_.parts.stream, -1)


def _mirror(
    objects: Objects, directory: str, name: str, table: Table, findings: Findings, beat: Callable[[], None]
) -> TableCompared:
    coverage = table.coverage()
    files = table.files()
    count = 0
    with waiting_on_disk(_OPERATION), ExitStack() as stack:
        expected, found = (stack.enter_context(Fold()) for _ in range(2))
        for each in objects.below(directory):
            if _is_covered(each, coverage):
                _add(expected, batches_of(objects, each, _OPERATION), beat)
        for file in files:
            _add(
                found,
                (rows for batch in batches_of(objects, file, _OPERATION) for rows in as_changes(batch)),
                beat,
            )
        for theirs, ours in zip(expected.partitions(), found.partitions(), strict=True):
            lake = {each.id: each for each in theirs.documents}
            for mine in ours.documents:
                count += 1
                if (other := lake.pop(mine.id, None)) is None:
                    if mine.document is None:
                        continue  # an update after a deletion, which a mirror does not remember
                    findings.add(Finding("mirror_extra", name, "the lake does not have it", key=mine.id))
                elif not _is_same(mine, other):
                    findings.add(Finding("mirror_different", name, "the lake has another one", key=mine.id))
            for id_ in lake:
                findings.add(Finding("mirror_missing", name, "the mirror does not have it", key=id_))
            beat()
    return TableCompared(len(files), count)


def _is_same(one: Current, other: Current) -> bool:
    return (one.time, one.document, one.pending) == (other.time, other.document, other.pending)


def _add(fold: Fold, batches: Iterator[pa.RecordBatch], beat: Callable[[], None]) -> None:
    for batch in combined(batches):
        fold.add(batch)
        beat()
