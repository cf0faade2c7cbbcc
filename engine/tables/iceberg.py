"""Iceberg tables, by pyiceberg, in whichever catalog is configured.

One transaction widens the schema by name, adds the files and sets the coverage, which is kept in the table's
properties, because snapshots with their summaries expire. Each column comes with the first file that has it.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise

from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.conversions import from_bytes
from pyiceberg.exceptions import (
    AuthorizationExpiredError,
    BadRequestError,
    CommitFailedException,
    CommitStateUnknownException,
    ForbiddenError,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    RESTError,
    TableAlreadyExistsError,
    UnauthorizedError,
)
from pyiceberg.io.pyarrow import parquet_file_to_data_file
from pyiceberg.manifest import DataFile as IcebergFile
from pyiceberg.manifest import ManifestFile
from pyiceberg.schema import Schema
from pyiceberg.table import Table as PyicebergTable
from pyiceberg.table import Transaction
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update.snapshot import _MergeAppendFiles, _OverwriteFiles
from pyiceberg.transforms import DayTransform
from pyiceberg.types import LongType
from requests import Session

from engine.config.renewal import renewed_s3
from engine.config.tree import Config, S3Config
from engine.core.naming import is_split, plan_of_split
from engine.errors import ConfigError, HeadraceError, TransientError
from engine.tables.table import Bounds, ConflictError, DataFile, TableFile, first_line, unexpected, unknown_outcome

_ROOT = "headrace.root"
_SEQ = "headrace.seq."
_SPLITS = "headrace.splits."
_MAPPING = "schema.name-mapping.default"
_THREADS = 8
_ANSWER_S = 30.0
_GONE = "Bring the file back, or drop the table in its catalog: it is made again from the lake."
_EPOCH = datetime.date(1970, 1, 1)
_TIME, _DAY = "_cdc_cluster_time", "_cdc_day"
# The library would add the files a second time, without looking whether they are there.
_RETRIES = "commit.retry.num-retries"
# Each commit writes a new file of metadata, with all snapshots; so many are kept.
_METADATA_FILES = {
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "50",
}
# The columns with bounds. Those of others the library would turn into Python's types, which lack some dates.
_METRICS = {
    "write.metadata.metrics.default": "counts",
    **{f"write.metadata.metrics.column.{each}": "full" for each in (_TIME, "_cdc_timestamp", "_cdc_id")},
}
_PROPERTIES = {"format-version": "2", _RETRIES: "0", **_METADATA_FILES, **_METRICS}
logging.getLogger("pyiceberg").setLevel(logging.ERROR)


class IcebergTables:
    """The tables of a lake.

    State: the connection to the catalog, and the tables that have been opened.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._root = config.sink.url.rstrip("/").replace("s3a://", "s3://", 1)
        self._s3 = config.sink.s3
        self._catalog: Catalog | None = None
        self._tables: dict[tuple[str, str], IcebergTable] = {}

    def check(self) -> None:
        """See whether the catalog answers.

        Raises:
            HeadraceError: it does not.
        """
        with _translated("reach the Iceberg catalog", is_connecting=True):
            self._catalog = self._catalog or self._connect()
            self._catalog.list_namespaces()

    def renew(self) -> None:
        """Connect to the catalog anew at the next occasion, with secrets as they are now."""
        self._s3 = renewed_s3(self._s3)
        self._catalog = None
        self._tables.clear()

    def open(self, database: str, name: str, *, by_day: bool) -> IcebergTable:
        """The table with this name, which is created with the first commit if there is none.

        Args:
            database, name: as in the directory of its objects.
            by_day: whether it is partitioned by the day of its events.

        Raises:
            HeadraceError: of the catalog.
        """
        if (known := self._tables.get((database, name))) is None:
            with _translated("reach the Iceberg catalog", is_connecting=True):
                self._catalog = self._catalog or self._connect()
            known = IcebergTable(self._catalog, (database, name), self._root, by_day=by_day)
            self._tables[database, name] = known
        return known

    def _connect(self) -> Catalog:
        properties = _file_properties(self._s3) | self._config.table.catalog
        kind = properties.get("type", "rest" if properties.get("uri", "").startswith("http") else "")
        if kind == "rest" and "py-catalog-impl" not in properties:
            properties.pop("type", None)
            properties["py-catalog-impl"] = f"{__name__}.{_RestCatalog.__name__}"
        return load_catalog(properties.pop("name", "headrace"), **properties)


class _RestCatalog(RestCatalog):
    """The library's, which by itself waits for an answer for ever."""

    def _create_session(self) -> Session:
        session = super()._create_session()
        session.request = partial(session.request, timeout=_ANSWER_S)  # type: ignore[method-assign]
        return session


class IcebergTable:
    """One table; see ``table.Table``. State: the table as it was last read; None if there was none.

    Args:
        root: ``sink.url``.
        by_day: whether it is partitioned by the day of its events.
    """

    def __init__(self, catalog: Catalog, name: tuple[str, str], root: str, *, by_day: bool) -> None:
        self._catalog = catalog
        self._names = name
        self._name = ".".join(name)
        self._root = root
        self._by_day = by_day
        self._location = f"{root}/{'/'.join(name)}"
        self._table: PyicebergTable | None = None
        self._splits: dict[str, dict[str, int]] = {}

    @property
    def identity(self) -> str:
        """Which table it is: a new one with the same name is another; "" if there is none."""
        return "" if self._table is None else str(self._table.metadata.table_uuid)

    @property
    def metadata_directory(self) -> str:
        """Where its metadata is, below the root of the lake; "" if elsewhere."""
        location = "" if self._table is None else self._table.location().rstrip("/")
        return f"{self._key(location)}/metadata/" if location.startswith(f"{self._root}/") else ""

    def coverage(self) -> Mapping[str, int]:
        """The last segment of each stream whose files it has, as it stands now."""
        self._splits = {}
        with _translated(f"read the table {self._name}"):
            try:
                self._table = self._catalog.load_table(self._names)
            except (NoSuchTableError, NoSuchNamespaceError):
                self._table = None
                return {}
        self._refuse_another(self._table)
        found: dict[str, int] = {}
        for key, value in self._table.properties.items():
            if key.startswith(_SEQ):
                found[key.removeprefix(_SEQ)] = int(value)
            elif key.startswith(_SPLITS):
                self._splits[key] = json.loads(value)
                found |= self._splits[key]
        return found

    def _refuse_another(self, table: PyicebergTable) -> None:
        """Refuse a table that is not ours, or that the library could add files to twice."""
        root = table.properties.get(_ROOT, table.location()).rstrip("/")
        if root != self._location:
            cause = f"the catalog has one at {root}, and its objects are at {self._location}"
            remedy = "Rename or drop that table, or use another catalog, or another sink.url."
            raise ConfigError(f"open the table {self._name}", cause, remedy)
        if table.properties.get(_RETRIES) != "0":
            cause = f"its property {_RETRIES} is not 0: the library would repeat a commit, and add files twice"
            raise ConfigError(f"open the table {self._name}", cause, f"Set {_RETRIES} to 0.")

    def files(self) -> Sequence[TableFile]:
        """The files that it had when its coverage was last read."""
        if self._table is None:
            return []
        with _translated(f"read the table {self._name}"):
            tasks = list(self._table.scan().plan_files())
            schema = self._table.schema()
        if any(task.delete_files for task in tasks):
            cause = "another writer has removed rows from its files, and has not rewritten these"
            remedy = "Rewrite its data files with the engine that has done so, and let only Headrace write to it."
            raise ConfigError(f"read the table {self._name}", cause, remedy)
        bounds = _Bounds(schema)
        return [
            TableFile(
                self._key(each.file_path),
                each.file_size_in_bytes,
                each.record_count,
                _EPOCH + datetime.timedelta(days=each.partition[0]) if self._by_day else None,
                bounds.of(each),
                each,
            )
            for each in (task.file for task in tasks)
        ]

    def commit(
        self,
        files: Sequence[DataFile],
        coverage: Mapping[str, int],
        removed: Sequence[TableFile] = (),
        *,
        same_rows: bool = False,  # the library has no such kind of snapshot
    ) -> None:
        """Add and remove files and record the coverage in one transaction, with a snapshot.

        The snapshot is what two commits conflict by: of properties alone the last one would win.
        """
        with _translated(f"commit to the table {self._name}", is_commit=True):
            table = self._table = self._table or self._created(files[0])
            with table.transaction() as transaction:
                for version in sorted(versions := {each.version: each.schema for each in files}):
                    with transaction.update_schema() as update:
                        update.union_by_name(versions[version])
                if self._by_day and not table.spec().fields:
                    with transaction.update_spec() as spec:
                        spec.add_field(_TIME, DayTransform(), _DAY)
                if transaction.table_metadata.name_mapping() is None:  # the files have no ids of their own
                    mapping = transaction.table_metadata.schema().name_mapping
                    transaction.set_properties({_MAPPING: mapping.model_dump_json()})
                with _Overwrite.within(transaction) if removed else _append(transaction) as snapshot:
                    for old in removed:
                        snapshot.delete_data_file(old.entry)
                    for entry in self._entries(transaction, files):
                        snapshot.append_data_file(entry)
                transaction.set_properties(self._properties(coverage))

    def expire(self, before: float) -> None:
        """Forget the snapshots that had a successor before a time; those with a name (a tag, a branch) stay."""
        if self._table is None:
            return
        with _translated(f"expire snapshots of the table {self._name}", is_commit=True):
            snapshots = sorted(self._table.snapshots(), key=lambda each: each.sequence_number or 0)
            old = {each.snapshot_id for each, later in pairwise(snapshots) if later.timestamp_ms < before * 1000}
            old -= {each.snapshot_id for each in self._table.refs().values()}
            if old:
                self._table.maintenance.expire_snapshots().by_ids([*old]).commit()

    def unused(self, keys: Collection[str], before: float, beat: Callable[[], None]) -> Collection[str]:
        """Those of these objects that no snapshot names."""
        self.coverage()
        if self._table is None:
            return []
        with _translated(f"read the table {self._name}"):
            named = {self._key(each) for each in self._named(self._table, beat)}
        return set(keys) - named

    def _named(self, table: PyicebergTable, beat: Callable[[], None]) -> Iterator[str]:
        """All that a table's metadata leads to, earlier metadata included."""
        yield table.metadata_location
        yield from (each.metadata_file for each in table.metadata.metadata_log)
        yield from (each.statistics_path for each in table.metadata.statistics)
        yield from (each.statistics_path for each in table.metadata.partition_statistics)
        seen: set[str] = set()
        for snapshot in table.snapshots():
            yield snapshot.manifest_list
            beat()
            for manifest in snapshot.manifests(table.io):
                yield manifest.manifest_path
                if manifest.manifest_path not in seen:
                    beat()
                    seen.add(manifest.manifest_path)
                    entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
                    yield from (each.data_file.file_path for each in entries)

    def _key(self, path: str) -> str:
        return path.removeprefix(f"{self._root}/")

    def _entries(self, transaction: Transaction, files: Sequence[DataFile]) -> Iterator[IcebergFile]:
        metadata, io = transaction.table_metadata, transaction._table.io
        bounds = _Bounds(metadata.schema())
        paths = [f"{self._root}/{each.key}" for each in files]
        with ThreadPoolExecutor(_THREADS) as pool:
            made = pool.map(lambda path: parquet_file_to_data_file(io, metadata, path), paths)
            for file, entry in zip(files, made, strict=True):
                bounds.set(entry, file.bounds)
                yield entry

    def _created(self, first: DataFile) -> PyicebergTable:
        """The table, made with the columns of its first file; another engine's if that was faster."""
        with suppress(NamespaceAlreadyExistsError):
            # Some catalogs choose where metadata goes by the place of the namespace, whatever is asked of them.
            self._catalog.create_namespace(self._names[:1], {"location": f"{self._root}/{self._names[0]}"})
        try:
            return self._catalog.create_table(
                self._names,
                first.schema,
                location=self._location,
                properties=_PROPERTIES | {_ROOT: self._location},
            )
        except TableAlreadyExistsError as error:
            raise CommitFailedException("another engine has made it") from error

    def _properties(self, coverage: Mapping[str, int]) -> dict[str, str]:
        changed: dict[str, str] = {}
        for stream, seq in coverage.items():
            if is_split(stream):  # there may be thousands: one property for all of a backfill
                key = f"{_SPLITS}{plan_of_split(stream)}"
                self._splits.setdefault(key, {})[stream] = seq
                changed[key] = json.dumps(self._splits[key], separators=(",", ":"))
            else:
                changed[f"{_SEQ}{stream}"] = str(seq)
        return changed


class _Bounds:
    """The bounds of files in a table with this schema."""

    def __init__(self, schema: Schema) -> None:
        named = {each.name: each.field_id for each in schema.fields}
        self._time, self._id = named.get("_cdc_timestamp"), named.get("_cdc_id")

    def of(self, file: IcebergFile) -> Bounds | None:
        lower, upper = file.lower_bounds or {}, file.upper_bounds or {}
        if self._time is None or not (self._time in lower and self._time in upper):
            return None
        oldest, newest = (int(from_bytes(LongType(), each[self._time])) for each in (lower, upper))
        if self._id is None or not (self._id in lower and self._id in upper):
            return Bounds(oldest, newest)
        return Bounds(oldest, newest, lower[self._id].decode(), upper[self._id].decode())

    def set(self, file: IcebergFile, bounds: Bounds) -> None:
        """Have a file's bounds of ids exactly as they are given: the library cuts them after a few characters."""
        if self._id is not None and bounds.first is not None and bounds.last is not None:
            file.lower_bounds[self._id] = bounds.first.encode()
            file.upper_bounds[self._id] = bounds.last.encode()


class _Overwrite(_OverwriteFiles, _MergeAppendFiles):
    """Adds and removes files, and merges manifests as ``_append`` does.

    One that only tells of files that an earlier snapshot has removed is left out, which the library would keep for
    ever.
    """

    @classmethod
    def within(cls, transaction: Transaction) -> _Overwrite:
        """One that becomes part of a transaction."""
        return cls(Operation.OVERWRITE, transaction, transaction._table.io)

    def _existing_manifests(self) -> list[ManifestFile]:
        found = super()._existing_manifests()
        return [each for each in found if each.has_added_files() or each.has_existing_files()]


def _append(transaction: Transaction) -> _MergeAppendFiles:
    """Appends, and now and then makes one manifest of many: their number decides how long a read takes to plan."""
    return transaction.update_snapshot().merge_append()


def _file_properties(s3: S3Config) -> dict[str, str]:
    """How the library reads and writes objects; what is not given, it finds as AWS's own tools do."""
    found = {
        "s3.endpoint": s3.endpoint_url,
        "s3.region": s3.region,
        "s3.access-key-id": s3.access_key,
        "s3.secret-access-key": s3.secret_key,
        "s3.session-token": s3.session_token,
    }
    return {name: str(value) for name, value in found.items() if value}


@contextmanager
def _translated(operation: str, *, is_commit: bool = False, is_connecting: bool = False) -> Iterator[None]:
    """Errors of the library and of what it talks to as ours."""
    try:
        yield
    except (CommitFailedException, CommitStateUnknownException) as error:
        raise ConflictError(operation, first_line(error), "The table is read again.") from error
    except (UnauthorizedError, ForbiddenError, AuthorizationExpiredError) as error:
        remedy = "Check the credentials in table.catalog."
        raise ConfigError(operation, first_line(error), remedy) from error
    except BadRequestError as error:
        raise ConfigError(operation, first_line(error), "Check table.catalog.") from error
    except FileNotFoundError as error:
        raise ConfigError(operation, first_line(error), _GONE) from error
    except (OSError, RESTError) as error:
        if is_commit:
            raise unknown_outcome(operation, error) from error
        raise TransientError(operation, first_line(error), "See whether catalog and store answer.") from error
    except HeadraceError:
        raise
    except Exception as error:
        if _is_of_a_database(error):
            if is_commit:
                raise unknown_outcome(operation, error) from error
            raise TransientError(operation, first_line(error), "See whether the catalog answers.") from error
        if is_connecting:
            raise ConfigError(operation, first_line(error), "Check table.catalog.") from error
        raise unexpected(operation, error) from error


def _is_of_a_database(error: Exception) -> bool:
    """Whether the database of an SQL catalog has raised it; its library is there only with such a catalog."""
    classes = type(error).__mro__
    is_at_fault = any(each.__name__ == "ArgumentError" for each in classes)  # the configuration
    return not is_at_fault and any(each.__module__.startswith("sqlalchemy.") for each in classes)
