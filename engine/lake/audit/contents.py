"""Whether the rows of an object are those of its segment.

Every page of the object is read, and its checksum compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from engine.core.naming import DIRECTORIES, is_split, is_temporary, partition_of_seconds
from engine.core.position import is_same, token_time
from engine.errors import HeadraceError
from engine.lake.audit.catalogue import Entry
from engine.lake.audit.findings import Finding, Kind
from engine.lake.audit.segments import later, told
from engine.lake.objects import Footer, Objects, UnreadableError

_BATCH_ROWS = 8192
_PAIR = ("_cdc_database", "_cdc_collection")


class Contents(Struct):
    """What an object has been found to contain; ``tokens`` are hashes of its rows' tokens."""

    findings: list[Finding]
    tokens: list[npt.NDArray[np.int64]]
    rows: int


def read_contents(objects: Objects, entry: Entry) -> Contents:
    """Read an object with a footer from its first to its last row.

    Raises:
        ConfigError, TransientError: of the store.
    """
    assert entry.footer is not None
    check = _Check(entry, entry.footer)
    try:
        for batch in objects.batches(entry.object, _BATCH_ROWS, checked=True):
            check.add(batch)
        check.end()
    except UnreadableError as error:
        check.found("unreadable", str(error))
    return Contents(check.findings, check.tokens, check.rows)


def twice(contents: list[Contents]) -> int:
    """How many tokens are in more than one object of a segment."""
    tokens = [each for content in contents for each in content.tokens]
    if sum(bool(content.tokens) for content in contents) < 2:
        return 0
    together = np.concatenate(tokens)
    return len(together) - len(np.unique(together))


class _Check:
    """The checks of one object. State: the last token seen, and the rows so far. Owner: ``read_contents``."""

    def __init__(self, entry: Entry, footer: Footer) -> None:
        self._entry = entry
        self._footer = footer
        self.rows = 0
        self._last = ""
        self._seen: set[Kind] = set()
        self.findings: list[Finding] = []
        self.tokens: list[npt.NDArray[np.int64]] = []

    def found(self, kind: Kind, what: str) -> None:
        """Add a finding, the first of its kind in this object."""
        if kind not in self._seen:
            self._seen.add(kind)
            where = f"segment {self._footer.seq} of {self._footer.stream}"
            self.findings.append(Finding(kind, where, what, self._entry.object.key))

    def add(self, batch: pa.RecordBatch) -> None:
        """Check the next rows."""
        self.rows += batch.num_rows
        if not batch.num_rows:
            return
        self._check_stamp(batch)
        self._check_place(batch)
        if not is_split(self._footer.stream) and "_cdc_token" in batch.schema.names:
            self._check_tokens(batch.column("_cdc_token"))
            self._check_times(batch)

    def end(self) -> None:
        """Check what only the whole object shows."""
        written = self._footer.rows_written
        if written is not None and written != self.rows:
            self.found("rows_lost", f"it has {self.rows} rows, and was written with {written}")

    def _check_stamp(self, batch: pa.RecordBatch) -> None:
        for name, own in (("_cdc_stream", self._footer.stream), ("_cdc_seq", self._footer.seq)):
            if name in batch.schema.names:
                column = batch.column(name)
                if column.null_count or not pc.all(pc.equal(column, pa.scalar(own, column.type))).as_py():
                    self.found("wrong_stamp", f"there is a row whose {name} is not {own}")

    def _check_place(self, batch: pa.RecordBatch) -> None:
        """The key must be the one that the rows' collection and times make."""
        parts = self._entry.object.parts
        if all(name in batch.schema.names for name in _PAIR):
            columns = pa.Table.from_batches([batch.select(list(_PAIR))])
            pairs = columns.group_by(list(_PAIR)).aggregate([]).to_pylist()
            for database, collection in ((each[_PAIR[0]] or "", each[_PAIR[1]] or "") for each in pairs):
                home = "" if is_temporary(collection) else collection
                if parts.key_for(database, home) != self._entry.object.key.removeprefix(parts.shard):
                    self.found("misplaced", f"it has rows of {database}.{collection}")
        if parts.partition in ("none", "collection") or "_cdc_cluster_time" not in batch.schema.names:
            return
        times = pc.min_max(batch.column("_cdc_cluster_time").cast(pa.int64())).as_py()
        by = "hour" if parts.partition.count("/") == parts.directories.day.count("/") + 1 else "day"
        for milliseconds in times.values():
            if milliseconds is not None:
                partition = partition_of_seconds(milliseconds // 1000, by, parts.directories)  # type: ignore[arg-type]
                if partition != parts.partition:
                    day = partition_of_seconds(milliseconds // 1000, "hour", DIRECTORIES)
                    self.found("misplaced", f"it has rows of {day}")

    def _check_tokens(self, column: pa.Array) -> None:
        tokens = column.drop_null()
        if not len(tokens):
            return
        self._check_ascending(tokens)
        first, self._last = tokens[0].as_py(), tokens[-1].as_py()
        for token in (first, self._last):
            begin, stop = self._footer.first_token, self._footer.last_token
            if token_time(token) is None or token_time(stop) is None:
                continue  # tokens of another kind of server
            if later(token, stop) or (begin and later(begin, token)):
                what = f"it has an event at {token}, outside {told(begin)} to {told(stop)}"
                self.found("token_outside", what)
        hashes = np.fromiter(map(hash, tokens.to_pylist()), np.int64, len(tokens))
        self.tokens.append(hashes)

    def _check_times(self, batch: pa.RecordBatch) -> None:
        """The time by which the fold orders an event is that of its token."""
        if "_cdc_timestamp" in batch.schema.names:
            pairs = zip(
                batch.column("_cdc_token").to_pylist(), batch.column("_cdc_timestamp").to_pylist(), strict=True
            )
            for token, time in pairs:
                if token and time is not None and (at := token_time(token)) is not None and at != time:
                    self.found("wrong_stamp", f"the event at {token} has the _cdc_timestamp {time}")
                    return

    def _check_ascending(self, tokens: pa.Array) -> None:
        for before, after in self._steps_back(tokens):
            if later(after, before):
                continue
            if before == after or (token_time(before) == token_time(after) and _same(before, after)):
                self.found("token_twice", f"it has the event at {after} twice")
            else:
                self.found("token_order", f"the event at {after} comes after that at {before}")

    def _steps_back(self, tokens: pa.Array) -> Iterator[tuple[str, str]]:
        """Neighbours that are not in the order of their text, which may be due to another version of tokens."""
        if self._last and not self._last < tokens[0].as_py():
            yield self._last, tokens[0].as_py()
        wrong = pc.invert(pc.less(tokens[:-1], tokens[1:]))
        for at in pc.indices_nonzero(wrong).to_pylist():
            yield tokens[at].as_py(), tokens[at + 1].as_py()


def _same(one: str, other: str) -> bool:
    try:
        return is_same(one, other)
    except HeadraceError:
        return False
