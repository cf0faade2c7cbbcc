"""The fold on random histories, in DuckDB and Spark, compared with a plain dictionary."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.fold import files
from tests.spark import leaves_sockets

WORLDS = 250
CONFIGS = Path(__file__).parents[1] / "configs"
SCHEMA = pa.schema(
    [
        pa.field("_cdc_op", pa.string()),
        pa.field("_cdc_token", pa.string()),
        pa.field("_cdc_cluster_time", pa.timestamp("ms", "UTC")),
        pa.field("_cdc_database", pa.string()),
        pa.field("_cdc_collection", pa.string()),
        pa.field("_cdc_timestamp", pa.int64()),
        pa.field("_cdc_key", pa.string()),
        pa.field("_cdc_id", pa.string()),
        pa.field("_cdc_has_document", pa.bool_()),
        pa.field("_cdc_update", pa.string()),
        pa.field("_cdc_seq", pa.int64()),
        # Names that might collide with those in the view.
        pa.field("newest", pa.int64()),
        pa.field("dropped", pa.int64()),
        pa.field("n", pa.int64()),
    ]
)
NEW = ("_cdc_timestamp", "_cdc_id", "_cdc_has_document", "_cdc_seq")


class World:
    """The history of one collection: its rows, and the state that they must lead to.

    State: ``there``, the keys of the collection; ``known``, the last value of each of them in a row; ``pending``,
    later updates without a document, with their times.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.name = f"c{seed}"
        self.time = 1_800_000_000 << 32
        self.there = {key: key for key in range(6) if self.rng.random() < 0.3}  # from before the capture began
        self.known: dict[int, int] = {}
        self.pending: dict[int, list[tuple[int, str]]] = {}
        self.rows: list[dict[str, Any]] = []
        self.loads: list[list[int]] = []  # remaining splits: time of the plan, their own time (0), their keys
        self.has_gap = False

    def run(self) -> None:
        for _ in range(self.rng.randrange(5, 60)):
            self.time += self.rng.choice((1, 1, 1, 2, 1 << 32))
            for index in range(self.rng.choice((1, 1, 1, 3))):  # events of a transaction have the same time
                self.change(index)
            match self.rng.randrange(16):
                case 0:
                    self.drop()
                case 1 if not self.loads:
                    self.begin_load()
                case 2 | 3 | 4 if self.loads:
                    self.go_on_loading()
                case 5:
                    self.lose()
        while self.loads:
            self.go_on_loading()
        if self.has_gap:
            self.time += 1
            self.begin_load()
            while self.loads:
                self.go_on_loading()

    def rewind(self) -> None:
        """All events from some time on have a second row; an update may then come without its document."""
        since = self.rng.choice(self.rows)["_cdc_timestamp"]
        for row in [row for row in self.rows if row["_cdc_token"] and row["_cdc_timestamp"] >= since]:
            copy = row | {"_cdc_seq": 2}
            if row["_cdc_op"] == "update" and self.rng.random() < 0.3:
                copy |= {"_cdc_has_document": False, "n": None, "newest": None}
            self.rows.append(copy)

    def expected(self) -> dict[int, tuple[int | None, list[str] | None]]:
        """By key: the value, and the pending updates."""
        told = {key for key in self.there if key in self.known or self.pending.get(key)}
        pending = {key: [text for _, text in self.pending.get(key, [])] or None for key in told}
        return {key: (self.known.get(key), pending[key]) for key in told}

    def row(self, op: str, key: int | None, time: int, token: str | None, **more: Any) -> None:
        text = None if key is None else str(key)
        self.rows.append(
            {
                "_cdc_op": op,
                "_cdc_token": token,
                "_cdc_cluster_time": datetime.fromtimestamp(time >> 32, UTC),
                "_cdc_database": "shop",
                "_cdc_collection": self.name,
                "_cdc_timestamp": time,
                "_cdc_key": None if text is None else f'{{"_id":{text}}}',
                "_cdc_id": text,
                "_cdc_has_document": "n" in more,
                "_cdc_seq": 1,
                **more,
            }
        )

    def change(self, index: int) -> None:
        key, value = self.rng.randrange(6), self.rng.randrange(10**6)
        token = f"82{self.time:016X}2B02{index:02X}"
        if key not in self.there:
            self.row("insert", key, self.time, token, n=value, newest=value)
        elif self.rng.random() < 0.3:
            self.row("delete", key, self.time, token)
            self.forget(key)
            return
        elif self.rng.random() < 0.3:
            told = f'{{"updatedFields":{{"n":{value}}}}}'
            self.row("update", key, self.time, token, _cdc_update=told)
            self.pending.setdefault(key, []).append((self.time, told))
            return
        else:
            op = self.rng.choice(("update", "replace"))
            self.row(op, key, self.time, token, n=value, newest=value, _cdc_update='{"x":1}')
        self.there[key] = self.known[key] = value
        self.pending.pop(key, None)

    def forget(self, key: int) -> None:
        for each in (self.there, self.known, self.pending):
            each.pop(key, None)

    def drop(self) -> None:
        self.time += 1
        self.row(self.rng.choice(("drop", "rename")), None, self.time, f"82{self.time:016X}2B0200")
        for key in list(self.there):
            self.forget(key)

    def lose(self) -> None:
        """Changes in a gap of the history, without rows."""
        self.has_gap = True
        key = self.rng.randrange(6)
        self.forget(key)
        if self.rng.random() < 0.5:
            self.there[key] = self.rng.randrange(10**6)

    def begin_load(self) -> None:
        """Begin a load of two splits, each read some time after its own time."""
        self.loads = [[self.time, 0, 0, 1, 2], [self.time, 0, 3, 4, 5]]

    def go_on_loading(self) -> None:
        planned, begun, *keys = self.loads.pop(0)
        if not begun:
            self.loads.insert(0, [planned, self.time, *keys])
            return
        for key in keys:
            if key in self.there:
                value = self.known[key] = self.there[key]
                self.row("read", key, begun, None, n=value, newest=value)
                self.pending[key] = [each for each in self.pending.get(key, []) if each[0] > begun]
        if not self.loads:
            self.row("loaded", None, planned, None)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[World]]:
    """A lake with the rows of several worlds in random order, and the worlds."""
    directory = tmp_path_factory.mktemp("lake")
    found = [World(seed) for seed in range(WORLDS)]
    rows = []
    for world in found:
        world.run()
        if world.rng.random() < 0.5:
            world.rewind()
        rows += world.rows
    random.Random(1).shuffle(rows)
    for number in range(4):
        pq.write_table(pa.Table.from_pylist(rows[number::4], SCHEMA), directory / f"{number}.parquet")
    return directory, found


def as_expected(rows: list[dict[str, Any]]) -> dict[str, dict[int, tuple[int | None, list[str] | None]]]:
    """The result of a view by collection, in the form that worlds expect."""
    found: dict[str, dict[int, tuple[int | None, list[str] | None]]] = {}
    for row in rows:
        collection = found.setdefault(row["_cdc_collection"], {})
        key = int(row["_cdc_id"])
        assert key not in collection, row
        collection[key] = row["n"], row["_cdc_pending"]
        assert row["newest"] == row["n"]
    return found


@pytest.fixture(scope="module")
def reread(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Updates that were read again after a rewind, and what must come of them, by collection."""
    told = '{"updatedFields":{"n":2}}'
    both: dict[str, tuple[list[tuple[int, int | None]], Any]] = {
        "a later document": ([(1, 1), (9, 2)], (2, None)),
        "no document any more": ([(1, 1), (9, None)], (1, None)),
        "a document by now": ([(1, None), (9, 3)], (3, None)),
        "never a document": ([(1, None), (9, None)], (0, [told])),
    }
    rows = []
    for name, (copies, _) in both.items():
        world = World(0)
        world.name = name
        world.row("insert", 1, world.time, f"82{world.time:016X}2B0200", n=0, newest=0)
        for seq, n in copies:
            document: dict[str, Any] = {} if n is None else {"n": n, "newest": n}
            world.row("update", 1, world.time + 1, f"82{world.time + 1:016X}2B0200", _cdc_update=told, **document)
            world.rows[-1]["_cdc_seq"] = seq
        rows += world.rows
    directory = tmp_path_factory.mktemp("reread")
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), directory / "all.parquet")
    return directory, {name: {1: expected} for name, (_, expected) in both.items()}


def test_after_a_rewind_the_row_that_was_read_later_counts(reread: tuple[Path, dict[str, Any]]) -> None:
    lake, expected = reread
    assert as_expected(by_duckdb(lake)) == expected


@leaves_sockets
def test_after_a_rewind_in_spark(reread: tuple[Path, dict[str, Any]], spark: Any) -> None:
    lake, expected = reread
    assert as_expected(by_spark(lake, spark)) == expected


def by_duckdb(lake: Path) -> list[dict[str, Any]]:
    with duckdb.connect() as database:
        database.execute((CONFIGS / "duckdb" / "current_state.sql").read_text())
        found: list[dict[str, Any]] = (
            database.sql(f"FROM current_state('{lake}/**/*.parquet')").to_arrow_table().to_pylist()
        )
        return found


def by_spark(lake: Path, spark: Any) -> list[dict[str, Any]]:
    script = (CONFIGS / "spark" / "current_state.sql").read_text()
    script = script.replace("{{name}}", "orders").replace("{{path}}", str(lake))
    for statement in filter(str.strip, re.sub(r"^--.*$", "", script, flags=re.MULTILINE).split(";")):
        spark.sql(statement)
    return [row.asDict() for row in spark.sql("SELECT * FROM orders").collect()]


def test_duckdb(worlds: tuple[Path, list[World]]) -> None:
    lake, found = worlds
    assert as_expected(by_duckdb(lake)) == {each.name: each.expected() for each in found if each.expected()}
    assert any(pending for each in found for _, pending in each.expected().values())


@leaves_sockets
def test_spark(worlds: tuple[Path, list[World]], spark: Any) -> None:
    lake, found = worlds
    assert as_expected(by_spark(lake, spark)) == {each.name: each.expected() for each in found if each.expected()}


def test_the_sql_files_are_up_to_date() -> None:
    """``python -m engine.fold`` generates them."""
    for path, content in files().items():
        assert path.read_text() == content, path


def test_a_lake_without_the_newer_columns(tmp_path: Path) -> None:
    """Identity is the document key, and read rows come before the events of the same second."""
    world = World(0)
    world.time = base = 1_800_000_000 << 32
    world.row("read", 1, base, None, n=1)
    world.row("read", 2, base, None, n=2)
    world.row("update", 1, base + 5, f"82{base + 5:016X}2B0200", n=11)
    world.row("delete", 2, base + 6, f"82{base + 6:016X}2B0200")
    world.row("insert", 3, base + 7, f"82{base + 7:016X}2B0200", n=3)
    world.row("delete", 3, base + 8, f"82{base + 8:016X}2B0200")
    world.row("insert", 4, base + 9, f"82{base + 9:016X}2B0200", n=4)
    rows = [{name: value for name, value in row.items() if name not in NEW} for row in world.rows]
    schema = pa.schema([field for field in SCHEMA if field.name not in NEW])
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "old.parquet")
    assert {row["_cdc_key"]: row["n"] for row in by_duckdb(tmp_path)} == {'{"_id":1}': 11, '{"_id":4}': 4}
