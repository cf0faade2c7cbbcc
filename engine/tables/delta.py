"""Delta tables, by delta-rs. The coverage is in the log's ``txn`` actions, one for each stream.

A table is widened in a commit of its own before files are added: columns that no file has yet harm nobody.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable as RustTable
from deltalake import Schema
from deltalake.exceptions import CommitFailedError, DeltaError, SchemaMismatchError, TableNotFoundError
from deltalake.transaction import AddAction, CommitProperties, RemoveAction, Transaction

from engine.config.renewal import renewed_s3
from engine.config.tree import Config, S3Config
from engine.errors import ConfigError, HeadraceError, TransientError
from engine.tables.table import Bounds, ConflictError, DataFile, TableFile, first_line, unexpected, unknown_outcome

_DAY = "cdc_date"
_APP = "headrace/"
# Without a checkpoint now and then, a reader would need all of the log.
_CONFIGURATION = {"delta.checkpointInterval": "50"}
# How long the log is kept at least, by which earlier versions are read.
_KEPT = "delta.logRetentionDuration"
# The columns with bounds. Without this the library takes all others for bounded by null, and filters find nothing.
_BOUNDED = "delta.dataSkippingStatsColumns"


class DeltaTables:
    """The tables of a lake. State: those that have been opened."""

    def __init__(self, config: Config) -> None:
        self._s3 = config.sink.s3
        self._root = config.sink.url.rstrip("/").replace("s3a://", "s3://", 1)
        self._tables: dict[tuple[str, str], DeltaTable] = {}

    def check(self) -> None:
        """There is no catalog."""

    def renew(self) -> None:
        """Open the tables anew, with secrets as they are now."""
        self._s3 = renewed_s3(self._s3)
        self._tables.clear()

    def open(self, database: str, name: str, *, by_day: bool) -> DeltaTable:
        """The table in this directory, which is created with the first commit if there is none.

        Args:
            database, name: as in the directory of its objects.
            by_day: whether it is partitioned by the day of its events.

        Raises:
            HeadraceError: of the store.
        """
        if (known := self._tables.get((database, name))) is None:
            options = _options(self._s3) if self._root.startswith("s3:") else {}
            known = DeltaTable(self._root, (database, name), options, by_day=by_day)
            self._tables[database, name] = known
        return known


class DeltaTable:
    """One table; see ``table.Table``. State: the table as it was last read; None if there was none.

    Args:
        root: ``sink.url``.
        by_day: whether it is partitioned by the day of its events.
    """

    def __init__(self, root: str, names: tuple[str, str], options: dict[str, str], *, by_day: bool) -> None:
        self._below = "/".join(names)
        self._uri, self._name = f"{root}/{self._below}", ".".join(names)
        self._options = options
        self._by_day = by_day
        self._table: RustTable | None = None

    @property
    def identity(self) -> str:
        """Which table it is: a new one in the same place is another; "" if there is none."""
        return "" if self._table is None else str(self._table.metadata().id)

    @property
    def metadata_directory(self) -> str:
        """None: the library itself removes what is left there."""
        return ""

    def coverage(self) -> Mapping[str, int]:
        """The last segment of each stream whose files it has, as it stands now."""
        with _translated(f"read the table {self._name}"):
            try:
                self._table = RustTable(self._uri, storage_options=self._options)
            except TableNotFoundError:
                self._table = None
        return _Coverage(self._table)

    def files(self) -> Sequence[TableFile]:
        """The files that it had when its coverage was last read."""
        if self._table is None:
            return []
        with _translated(f"read the table {self._name}"):
            entries = pa.table(self._table.get_add_actions(flatten=True)).to_pylist()
        return [
            TableFile(
                f"{self._below}/{unquote(each['path'])}",
                each["size_bytes"],
                each["num_records"],
                each.get(f"partition.{_DAY}"),
                _bounds(each),
                each,
            )
            for each in entries
        ]

    def expire(self, before: float) -> None:
        """Write a checkpoint, so that a reader needs few files; the library removes what is older than its log."""
        if self._table is not None:
            with _translated(f"write a checkpoint of the table {self._name}", is_commit=True):
                kept = f"interval {round((time.time() - before) / 60)} minutes"
                if self._table.metadata().configuration.get(_KEPT) != kept:
                    self._table.alter.set_table_properties({_KEPT: kept})
                self._table.create_checkpoint()
                self._table.cleanup_metadata()

    def unused(self, keys: Collection[str], before: float, beat: Callable[[], None]) -> Collection[str]:
        """Those of these objects that no version since then names."""
        self.coverage()
        if self._table is None:
            return []
        hours = math.ceil((time.time() - before) / 3600)
        with _translated(f"read the table {self._name}"):
            found = self._table.vacuum(hours, dry_run=True, enforce_retention_duration=False, full=True)
        return {f"{self._below}/{unquote(each)}" for each in found} & set(keys)

    def commit(
        self,
        files: Sequence[DataFile],
        coverage: Mapping[str, int],
        removed: Sequence[TableFile] = (),
        *,
        same_rows: bool = False,
    ) -> None:
        """Widen the table, then add and remove files and record the coverage in one commit."""
        operation = f"commit to the table {self._name}"
        with _translated(operation, is_commit=True):
            table = self._widened(files)
            done = [Transaction(f"{_APP}{stream}", seq) for stream, seq in coverage.items()]
            table.create_write_transaction(
                [
                    *(self._removed(each, not same_rows) for each in removed),
                    *(self._added(each, not same_rows) for each in files),
                ],
                mode="append",
                schema=table.schema(),
                partition_by=[_DAY] if self._by_day else None,
                commit_properties=CommitProperties(app_transactions=done, max_commit_retries=0),
            )
            table.update_incremental()

    def _added(self, file: DataFile, is_change: bool) -> AddAction:
        low: dict[str, object] = {"_cdc_timestamp": file.bounds.oldest}
        high: dict[str, object] = {"_cdc_timestamp": file.bounds.newest}
        if file.bounds.first is not None:
            low["_cdc_id"], high["_cdc_id"] = file.bounds.first, file.bounds.last
        # As they are: the library reads pairs of escaped surrogates as other characters.
        told = {"numRecords": file.rows, "minValues": low, "maxValues": high, "nullCount": {}}
        return AddAction(
            path=file.key.removeprefix(f"{self._below}/"),  # which the library encodes
            size=file.size,
            partition_values={_DAY: file.day.isoformat()} if file.day is not None else {},
            modification_time=int(time.time() * 1000),
            data_change=is_change,
            stats=json.dumps(told, ensure_ascii=False),
        )

    def _removed(self, file: TableFile, is_change: bool) -> RemoveAction:
        return RemoveAction(
            path=file.key.removeprefix(f"{self._below}/"),
            data_change=is_change,
            deletion_timestamp=int(time.time() * 1000),
            size=file.size,
        )

    def _widened(self, files: Sequence[DataFile]) -> RustTable:
        schemas = {each.version: each.schema for each in files}
        for version in sorted(schemas):
            wanted = Schema.from_arrow(_as_delta(schemas[version], by_day=self._by_day))
            if self._table is None:
                self._table = RustTable.create(
                    self._uri,
                    schema=wanted,
                    partition_by=[_DAY] if self._by_day else None,
                    storage_options=self._options,
                    configuration=_CONFIGURATION
                    | {_BOUNDED: "_cdc_timestamp" if self._by_day else "_cdc_timestamp,_cdc_id"},
                )
                continue
            before = self._table.schema().to_json()
            known = json.loads(before)["fields"]
            if not _has_all(known, json.loads(wanted.to_json())["fields"]):
                self._table.alter.add_columns(
                    list(wanted.fields), commit_properties=CommitProperties(max_commit_retries=0)
                )
        assert self._table is not None
        return self._table


def _bounds(entry: Mapping[str, Any]) -> Bounds | None:
    oldest, newest = entry.get("min._cdc_timestamp"), entry.get("max._cdc_timestamp")
    if oldest is None or newest is None:
        return None
    return Bounds(oldest, newest, entry.get("min._cdc_id"), entry.get("max._cdc_id"))


class _Coverage(Mapping[str, int]):
    """Looked up one by one: a table may have thousands of transactions."""

    def __init__(self, table: RustTable | None) -> None:
        self._table = table

    def __getitem__(self, stream: str) -> int:
        found = None if self._table is None else self._table.transaction_version(f"{_APP}{stream}")
        if found is None:
            raise KeyError(stream)
        return found

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError("a table does not list its transactions")

    def __len__(self) -> int:
        raise NotImplementedError("a table does not list its transactions")


def _has_all(known: list[dict[str, object]], wanted: list[dict[str, object]]) -> bool:
    """Whether fields, in the JSON of the format, are all there, to any depth."""
    by_name = {each["name"]: each["type"] for each in known}
    return all(each["name"] in by_name and _covers(by_name[each["name"]], each["type"]) for each in wanted)


def _covers(known: object, wanted: object) -> bool:
    if isinstance(known, dict) and isinstance(wanted, dict):
        if "fields" in wanted:
            return _has_all(known["fields"], wanted["fields"])
        return _covers(known.get("elementType"), wanted.get("elementType"))
    return True  # a column's type is settled once


def _as_delta(schema: pa.Schema, *, by_day: bool) -> pa.Schema:
    """The schema with the types that the format has, and the partition's column."""
    fields = [pa.field(each.name, _type(each.type)) for each in schema]
    return pa.schema([*fields, pa.field(_DAY, pa.date32())] if by_day else fields)


def _type(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(type_):
        return pa.timestamp("us", type_.tz)
    if pa.types.is_fixed_size_binary(type_):
        return pa.binary()
    if pa.types.is_struct(type_):
        return pa.struct([pa.field(each.name, _type(each.type)) for each in type_])
    if pa.types.is_list(type_):
        return pa.list_(pa.field("element", _type(type_.value_type)))
    return type_


def _options(s3: S3Config) -> dict[str, str]:
    """How the library reads and writes objects; what is not given, it finds as AWS's own tools do."""
    found = {
        "AWS_ENDPOINT_URL": s3.endpoint_url,
        "AWS_REGION": s3.region,
        "AWS_ACCESS_KEY_ID": str(s3.access_key),
        "AWS_SECRET_ACCESS_KEY": str(s3.secret_key),
        "AWS_SESSION_TOKEN": str(s3.session_token),
        "AWS_ALLOW_HTTP": "true" if s3.endpoint_url.startswith("http://") else "",
    }
    return {name: value for name, value in found.items() if value} | {"aws_conditional_put": "etag"}


@contextmanager
def _translated(operation: str, *, is_commit: bool = False) -> Iterator[None]:
    """Errors of the library and of the store as ours."""
    try:
        yield
    except CommitFailedError as error:
        raise ConflictError(operation, str(error), "The table is read again.") from error
    except SchemaMismatchError as error:
        raise ConfigError(operation, str(error), "The table cannot take these files as they are.") from error
    except (DeltaError, OSError) as error:
        if is_commit:
            raise unknown_outcome(operation, error) from error
        raise TransientError(operation, first_line(error), "See whether the store answers.") from error
    except HeadraceError:
        raise
    except Exception as error:
        raise unexpected(operation, error) from error
