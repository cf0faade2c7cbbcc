"""The fold in bounded memory on random histories, compared with the views' SQL in DuckDB."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import bson
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.lake.folding.fold import PARTITIONS, Current, Fold, Next, partition_of
from tests.exploring import EXPLORE
from tests.test_fold import CONFIGS, NEW, SCHEMA, World

WORLDS = 400 if EXPLORE else 10


def batches(rows: list[dict[str, Any]], rng: random.Random, schema: pa.Schema = SCHEMA) -> list[pa.RecordBatch]:
    """The rows in random order, in batches of random sizes; some lack a column in which they have no value."""
    rows = rng.sample(rows, len(rows))
    found = []
    while rows:
        size = rng.randrange(1, 40)
        batch = pa.RecordBatch.from_pylist(rows[:size], schema)
        if batch.column("newest").null_count == batch.num_rows:
            batch = batch.drop_columns(["newest"])
        found.append(batch)
        rows = rows[size:]
    return found


def folded(
    found: Iterable[pa.RecordBatch], directory: Path, at: int | None = None, memory: int = 2**20
) -> list[Current]:
    with Fold(at=at, memory=memory, directory=directory) as fold:
        for batch in found:
            fold.add(batch)
        result = []
        for part in fold.partitions():
            for each in part.documents:
                assert partition_of(each.id) == part.number
                result.append(each)
    assert not list(directory.glob("headrace-fold-*"))
    return result


def by_duckdb(lake: Path, at: int | None) -> dict[str, Any]:
    """Value and pending updates by collection and id."""
    with duckdb.connect() as database:
        database.execute((CONFIGS / "duckdb" / "current_state.sql").read_text())
        until = "" if at is None else f"WHERE _cdc_timestamp <= {at}"
        # The macro takes files, so the rows up to the time become files first.
        database.execute(f"COPY (FROM read_parquet('{lake}/*.parquet') {until}) TO '{lake}/at/rows.parquet'")
        rows = database.sql(f"FROM current_state('{lake}/at/rows.parquet')").to_arrow_table().to_pylist()
    return {row["_cdc_id"]: (row["n"], row["_cdc_pending"]) for row in rows}


def as_expected(found: list[Current]) -> dict[str, Any]:
    result = {}
    for each in found:
        document = {} if each.document is None else bson.decode(each.document)
        assert each.id not in result
        assert each.document is None or document["_id"] == int(each.id)
        assert document.get("newest") == document.get("n")
        result[each.id] = document.get("n"), list(each.pending) or None
    return result


@pytest.mark.parametrize("seed", range(WORLDS))
def test_a_history_folds_as_in_sql(seed: int, tmp_path: Path) -> None:
    """Of all, and up to some moments; in memory, and with so little of it that parts are divided on disk."""
    world, rng = World(seed), random.Random(seed)
    world.run()
    if seed % 2:
        world.rewind()
    (tmp_path / "at").mkdir()
    pq.write_table(pa.Table.from_pylist(world.rows, SCHEMA), tmp_path / "rows.parquet")
    found = batches(world.rows, rng)
    times = sorted({row["_cdc_timestamp"] for row in world.rows})
    whole = {str(key): value for key, value in world.expected().items()}
    for at in (None, rng.choice(times), rng.choice(times) - 1):
        expected = by_duckdb(tmp_path, at)
        assert at is not None or expected == whole
        for memory in (2**20, 2):
            assert as_expected(folded(found, tmp_path, at, memory)) == expected


def test_the_next_row_and_what_is_unknown(tmp_path: Path) -> None:
    world = World(0)
    world.time = base = 1_800_000_000 << 32
    for key, time, operation in [
        (1, 1, "insert"), (1, 9, "update"), (1, 7, "replace"),
        (2, 1, "insert"),
        (3, 9, "delete"), (3, 8, "read"),
        (4, 9, "insert"),
        (5, 1, "insert"), (5, 2, "delete"), (5, 9, "insert"),
    ]:  # fmt: skip
        world.row(operation, key, base + time, f"82{base + time:016X}2B0200", n=time)
    for memory in (2**20, 2):
        with Fold(at=base + 5, memory=memory, directory=tmp_path) as fold:
            for batch in batches(world.rows, random.Random(1)):
                fold.add(batch)
            found: dict[str, Next | None] = {}
            unknown: list[str] = []
            for part in fold.partitions():
                found |= {each.id: each.next for each in part.documents}
                unknown += part.unknown
        assert found == {"1": Next(base + 7, "replace"), "2": None}
        assert unknown == ["3"]


def test_rows_of_earlier_versions(tmp_path: Path) -> None:
    """The id is from the key, the time from the token or, of a read row, the second."""
    world = World(0)
    world.time = base = 1_800_000_000 << 32
    world.row("read", 1, base, None, n=1)
    world.row("read", 2, base, None, n=2)
    world.row("update", 1, base + 5, f"82{base + 5:016X}2B0200", n=11)
    world.row("delete", 2, base + 6, f"82{base + 6:016X}2B0200")
    world.row("insert", 3, base + 7, f"82{base + 7:016X}2B0200", n=3)
    rows = [{name: value for name, value in row.items() if name not in NEW} for row in world.rows]
    schema = pa.schema([field for field in SCHEMA if field.name not in NEW])
    newer = World(0)
    newer.row("replace", 3, base + 9, f"82{base + 9:016X}2B0200", n=33)
    found = batches(rows, random.Random(1), schema) + batches(newer.rows, random.Random(1))
    result = {each.id: each for each in folded(found, tmp_path)}
    assert {id_: bson.decode(each.document or b"")["n"] for id_, each in result.items()} == {"1": 11, "3": 33}


def test_a_document_that_is_rewritten_often_takes_little_room(tmp_path: Path) -> None:
    world = World(0)
    rows = world.rows
    for time in range(1, 20_001):
        world.row("replace", time % 2, time, f"82{time:016X}2B0200", n=time)
    with Fold(memory=2**18, directory=tmp_path) as fold:
        largest = 0
        for at in range(0, len(rows), 100):
            fold.add(pa.RecordBatch.from_pylist(rows[at : at + 100], SCHEMA))
            largest = max(largest, sum(path.stat().st_size for path in tmp_path.rglob("*.arrow")))
        values = {
            each.id: bson.decode(each.document or b"")["n"]
            for part in fold.partitions()
            for each in part.documents
        }
    assert values == {"0": 20_000, "1": 19_999}
    assert 0 < largest < 2**18


def test_partitions_that_are_not_wanted(tmp_path: Path) -> None:
    world = World(0)
    for key in range(500):
        world.row("insert", key, 1, f"82{key:016X}2B0200", n=key)
    unwanted = set(range(0, PARTITIONS, 2))
    with Fold(memory=2**12, directory=tmp_path, without=unwanted) as fold:
        fold.add(pa.RecordBatch.from_pylist(world.rows, SCHEMA))
        found = [(part.number, each.id) for part in fold.partitions() for each in part.documents]
    assert {number for number, _ in found} == set(range(1, PARTITIONS, 2))
    assert {id_ for _, id_ in found} == {str(key) for key in range(500) if partition_of(str(key)) not in unwanted}


def test_what_is_on_disk_is_removed_after_a_failure(tmp_path: Path) -> None:
    world = World(0)
    world.row("insert", 1, 1, "82", n=1)
    fold = Fold(memory=2, directory=tmp_path)
    fold.add(pa.RecordBatch.from_pylist(world.rows, SCHEMA))
    assert list(tmp_path.rglob("*.arrow"))
    with pytest.raises(ZeroDivisionError), fold:
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
