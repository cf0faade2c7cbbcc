"""Mirrors of random histories, merged at random moments, compared with the view on what had arrived by then."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.config.tree import SinkConfig
from engine.errors import TransientError
from engine.lake.objects import Objects
from engine.sink.objects import Sink
from engine.tables import mirror as module
from engine.tables.mirror import Mirror
from engine.tables.table import Bounds, ConflictError, DataFile, TableFile
from tests.disks import mounted
from tests.exploring import EXPLORE
from tests.test_fold import CONFIGS, SCHEMA, World

WORLDS = 1500 if EXPLORE else 24
CHANGES = "shop/c_changes/cdc_date=2027-01-15/"


class Table:
    """A table in memory, over real files; its commits can fail, or succeed and say otherwise."""

    metadata_directory = ""

    def __init__(self, root: Path, rng: random.Random | None = None) -> None:
        self._root, self._rng = root, rng
        self.identity = ""
        self._files: dict[str, TableFile] = {}
        self._covered: dict[str, int] = {}

    def coverage(self) -> Mapping[str, int]:
        return dict(self._covered)

    def files(self) -> Sequence[TableFile]:
        return [*self._files.values()]

    def expire(self, before: float) -> None:
        raise NotImplementedError

    def unused(self, keys: Collection[str], before: float, beat: Callable[[], None]) -> Collection[str]:
        raise NotImplementedError

    def commit(
        self,
        files: Sequence[DataFile],
        coverage: Mapping[str, int],
        removed: Sequence[TableFile] = (),
        *,
        same_rows: bool = False,
    ) -> None:
        how = self._rng.random() if self._rng else 1
        if how < 0.1:
            raise ConflictError("commit", "lost")
        assert len({each.key for each in removed}) == len(removed)
        for old in removed:
            del self._files[old.key]
        for new in files:
            path = self._root / new.key
            assert new.size == path.stat().st_size
            assert new.rows == pq.read_metadata(path).num_rows > 0
            assert new.key not in self._files
            self._files[new.key] = TableFile(new.key, new.size, new.rows, new.day, new.bounds, None)
        self._covered |= coverage
        self.identity = "one"
        if how < 0.2:
            raise ConflictError("commit", "the answer was lost")

    def rows(self) -> list[dict[str, Any]]:
        return [row for each in self._files for row in pq.ParquetFile(self._root / each).read().to_pylist()]


class Arrivals:
    """The rows of a world as segments of streams: two parts of the collection, either may be late, and splits."""

    def __init__(self, world: World, root: Path, rng: random.Random, changes: Table) -> None:
        self._rows, self._root, self._rng, self._changes = list(world.rows), root, rng, changes
        self._waiting: dict[str, list[dict[str, Any]]] = {}
        self._seqs: dict[str, int] = {}
        self._long = rng.random() < 0.3
        self._by_world = world.name
        self.landed: list[dict[str, Any]] = []

    def __bool__(self) -> bool:
        return bool(self._rows or self._waiting)

    def some(self) -> None:
        """Some more rows happen, and some segments land."""
        for row in self._take(self._rng.randrange(1, 12)):
            self._waiting.setdefault(self._stream_of(row), []).append(row)
        for stream in [each for each in self._waiting if not self._rows or self._rng.random() < 0.6]:
            rows = self._waiting.pop(stream)
            cut = self._rng.randrange(1, len(rows) + 1) if self._rows else len(rows)
            if cut < len(rows):
                self._waiting[stream] = rows[cut:]
            self._land(stream, rows[:cut])

    def _take(self, count: int) -> list[dict[str, Any]]:
        found, self._rows = self._rows[:count], self._rows[count:]
        return found

    def _stream_of(self, row: dict[str, Any]) -> str:
        if row["_cdc_op"] in ("read", "loaded"):
            return "shop.c~read1-000000"
        key = row["_cdc_id"]
        return "shop.c~0of2" if key is None or int(key) < 3 else "shop.c~1of2"

    def _land(self, stream: str, rows: list[dict[str, Any]]) -> None:
        if self._long:
            rows = [row | {"_cdc_id": row["_cdc_id"] and "\U0010ffff" * 70 + row["_cdc_id"]} for row in rows]
        self.landed += rows
        seq = self._seqs[stream] = self._seqs.get(stream, 0) + 1
        key = f"{CHANGES}{stream}-{seq:012d}.parquet"
        (path := self._root / key).parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(rows, SCHEMA)
        if table["newest"].null_count == len(table):
            table = table.drop_columns(["newest"])
        pq.write_table(table, path)
        times = [row["_cdc_timestamp"] for row in rows]
        file = DataFile(
            stream, seq, key, path.stat().st_size, len(rows), None, table.schema, 1, Bounds(min(times), max(times))
        )
        self._changes.commit([file], {stream: seq})


def by_duckdb(rows: list[dict[str, Any]], directory: Path) -> dict[str, Any]:
    """Value and pending updates by id."""
    path = directory / "view.parquet"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    with duckdb.connect() as database:
        database.execute((CONFIGS / "duckdb" / "current_state.sql").read_text())
        found = database.sql(f"FROM current_state('{path}')").to_arrow_table().to_pylist()
    return {row["_cdc_id"]: (row["n"], row["_cdc_pending"]) for row in found}


def standing(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in rows:
        assert row["_cdc_id"] not in found
        assert row.get("newest") == row.get("n")
        pending = row["_cdc_pending"] and [each["_cdc_update"] for each in row["_cdc_pending"]]
        found[row["_cdc_id"]] = row.get("n"), pending
    return found


@pytest.mark.parametrize("seed", range(WORLDS))
def test_a_mirror_is_what_the_view_shows(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, world = random.Random(seed), World(seed)
    world.run()
    if rng.random() < 0.4:
        world.rewind()
    monkeypatch.setattr(module, "FILE_BYTES", rng.choice((1, 300, 2**20)))
    monkeypatch.setattr(module, "MEMORY", rng.choice((1, 2**20)))
    monkeypatch.setattr(module, "_SMALL_BYTES", rng.choice((0, 2**20)))
    monkeypatch.setattr(module, "_FEW_BYTES", rng.choice((0, 2**20)))
    sink = SinkConfig(url=f"file://{tmp_path}/lake", partition_by="table")
    objects = Objects(sink)
    changes, table = Table(tmp_path / "lake"), Table(tmp_path / "lake", rng)
    arrivals = Arrivals(world, tmp_path / "lake", rng, changes)
    mirror = Mirror(Sink(sink), sink, objects, changes, table, "shop/c/", lambda: None, {})
    while arrivals:
        arrivals.some()
        if rng.random() < 0.5 or not arrivals:
            while True:
                try:
                    mirror.merge()
                    break
                except ConflictError:
                    pass
            found, expected = standing(table.rows()), by_duckdb(arrivals.landed, tmp_path)
            if world.has_gap:  # the view knows of a deletion before an update in it, and the mirror no longer
                found = {key: each for key, each in found.items() if key in expected or each[0] is not None}
            assert found == expected
            assert mirror.merge().rows == 0 or not table.identity
    if not arrivals._long:
        whole = {int(key): each for key, each in standing(table.rows()).items()}
        assert whole == world.expected()


def test_without_room_on_disk_a_merge_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(1)
    world.run()
    sink = SinkConfig(url=f"file://{tmp_path}/lake", partition_by="table")
    changes, table = Table(tmp_path / "lake"), Table(tmp_path / "lake")
    arrivals = Arrivals(world, tmp_path / "lake", random.Random(1), changes)
    while arrivals:
        arrivals.some()
    mirror = Mirror(Sink(sink), sink, Objects(sink), changes, table, "shop/c/", lambda: None, {})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(TransientError, match="TMPDIR"):
        mirror.merge()
    assert not table.files()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(module, "MEMORY", 1)
    with mounted(tmp_path / "room", "4k") as room:
        monkeypatch.setattr("tempfile.tempdir", str(room))
        with pytest.raises(TransientError, match="TMPDIR"):
            mirror.merge()
    assert not table.files()
    monkeypatch.setattr("tempfile.tempdir", None)
    mirror.merge()
    assert standing(table.rows()) == by_duckdb(arrivals.landed, tmp_path)
