"""Tables have every event of the lake once, whatever dies; they are read through their own metadata."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import duckdb
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pymongo import MongoClient
from pymongo.errors import DuplicateKeyError

from bench.local import LocalStack
from engine.config import load
from engine.core.naming import safe_name
from engine.failpoints import VARIABLE, TablePoint
from engine.state.opening import open_store
from engine.tables.follower import Follower
from engine.tables.table import ConflictError
from tests.exploring import EXPLORE
from tests.integration import workload
from tests.integration.harness import (
    Engine,
    EngineConfig,
    Lake,
    PlainStream,
    catch_up,
    operation_time,
    run_engine,
)
from tests.integration.test_kill import writing
from tests.nessie import RestCatalog
from tests.test_documents import ROOT, blocks

Client = MongoClient[dict[str, Any]]
FORMATS = ["iceberg", "delta"]
# With a REST catalog too, a server of 240 MB, if everything is to be tried.
CATALOGS = [*FORMATS, "iceberg by REST"] if EXPLORE else FORMATS


@pytest.fixture(params=CATALOGS)
def config(request: pytest.FixtureRequest, stack: LocalStack, tmp_path: Path, unique: str) -> EngineConfig:
    made = EngineConfig(stack, tmp_path, unique, {"source": {"collections": ["orders", "items"]}})
    made.set("table", interval="500ms", **table_of(request))
    return made


def table_of(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The format, and the catalog if it has one."""
    if request.param == "delta":
        return {"format": "delta"}
    if request.param == "iceberg":
        uri = f"sqlite:///{request.getfixturevalue('tmp_path')}/catalog.db"
        return {"format": "iceberg", "catalog": {"type": "sql", "uri": uri}}
    address = request.getfixturevalue("rest_catalog").address
    return {"format": "iceberg", "catalog": {"type": "rest", "uri": address}}


def follower(config: EngineConfig) -> Follower:
    from engine.tables.formats import tables_of

    settings = load(config.path, os.environ)
    return Follower(settings, open_store(settings.state, settings.sink, read_only=True), tables_of(settings))


def not_by_rest(config: EngineConfig) -> None:
    """Skip the test with a REST catalog, which keeps its tables' metadata to itself."""
    if config.sections["table"].get("catalog", {}).get("type") == "rest":
        pytest.skip("what is taken away is a file of the catalog")


def only_with(format_: str, config: EngineConfig) -> None:
    """Skip the test with the other format, unless everything is to be tried."""
    if not EXPLORE and config.sections["table"]["format"] != format_:
        pytest.skip("its like is tried: EXPLORE=1")


class Read:
    """Reads tables by the formats' own libraries."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._format = config.sections["table"]["format"]
        self._s3 = config.stack.s3
        self._options = {
            "AWS_ENDPOINT_URL": self._s3.endpoint_url, "AWS_ACCESS_KEY_ID": self._s3.access_key,
            "AWS_SECRET_ACCESS_KEY": self._s3.secret_key, "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true",
        }  # fmt: skip

    def _catalog(self) -> Any:
        from pyiceberg.catalog import load_catalog

        store = {
            "s3.endpoint": self._s3.endpoint_url, "s3.access-key-id": self._s3.access_key,
            "s3.secret-access-key": self._s3.secret_key, "s3.region": "us-east-1",
        }  # fmt: skip
        return load_catalog("headrace", **store, **self._config.sections["table"]["catalog"])

    def table(self, collection: str, suffix: str = "_changes") -> pa.Table:
        """The rows of a changelog table, or with the suffix "" of a mirror."""
        return self.reader(collection, suffix)()

    def reader(self, collection: str, suffix: str) -> Callable[[], pa.Table]:
        """Opens a table; what is returned reads it as it was then."""
        if self._format == "iceberg":  # pyiceberg itself reads a null list of documents as an empty one
            table = self._catalog().load_table((self._config.name, f"{collection}{suffix}"))
            os.environ["POLARS_ICEBERG_PLANNER"] = "pyiceberg"
            return lambda: polars.scan_iceberg(table, storage_options=self._options).collect().to_arrow()
        from deltalake import DeltaTable

        url = f"{self._config.sections['sink']['url']}/{self._config.name}/{collection}{suffix}"
        return DeltaTable(url, storage_options=self._options).to_pyarrow_table

    def with_ids(self, collection: str, ids: Sequence[str]) -> Iterator[list[pa.Table]]:
        """For each id, what a query for it finds in a mirror, by each reader that uses a table's statistics."""
        if self._format == "iceberg":
            from pyiceberg.expressions import EqualTo

            equal: Any = EqualTo
            table = self._catalog().load_table((self._config.name, collection))
            os.environ["POLARS_ICEBERG_PLANNER"] = "pyiceberg"
            lazy = polars.scan_iceberg(table, storage_options=self._options)
            for id_ in ids:
                found = table.scan(row_filter=equal(term="_cdc_id", value=id_)).to_arrow()
                yield [found, lazy.filter(polars.col("_cdc_id") == id_).collect().to_arrow()]
            return
        from deltalake import DeltaTable

        url = f"{self._config.sections['sink']['url']}/{self._config.name}/{collection}"
        delta = DeltaTable(url, storage_options=self._options)
        lazy, dataset = polars.scan_delta(url, storage_options=self._options), delta.to_pyarrow_dataset()
        with duckdb.connect() as database:
            database.register("mirror", dataset)
            for id_ in ids:
                yield [
                    dataset.to_table(filter=pc.field("_cdc_id") == id_),
                    lazy.filter(polars.col("_cdc_id") == id_).collect().to_arrow(),
                    database.sql("FROM mirror WHERE _cdc_id = ?", params=[id_]).to_arrow_table(),
                ]

    def with_operation(self, collection: str, suffix: str, operation: str) -> Iterator[int]:
        """How many rows a query by a column without statistics finds, by each reader."""
        wanted = polars.col("_cdc_op") == operation
        if self._format == "iceberg":
            from pyiceberg.expressions import EqualTo

            equal: Any = EqualTo
            table = self._catalog().load_table((self._config.name, f"{collection}{suffix}"))
            os.environ["POLARS_ICEBERG_PLANNER"] = "pyiceberg"
            yield table.scan(row_filter=equal(term="_cdc_op", value=operation)).count()
            yield polars.scan_iceberg(table, storage_options=self._options).filter(wanted).collect().height
            return
        from deltalake import DeltaTable

        url = f"{self._config.sections['sink']['url']}/{self._config.name}/{collection}{suffix}"
        dataset = DeltaTable(url, storage_options=self._options).to_pyarrow_dataset()
        yield dataset.count_rows(filter=pc.field("_cdc_op") == operation)
        yield polars.scan_delta(url, storage_options=self._options).filter(wanted).collect().height
        with duckdb.connect() as database:
            database.register("rows", dataset)
            yield database.execute("SELECT count(*) FROM rows WHERE _cdc_op = ?", [operation]).fetchall()[0][0]

    def files(self, collection: str) -> list[str]:
        """The files of a changelog table."""
        if self._format == "iceberg":
            table = self._catalog().load_table((self._config.name, f"{collection}_changes"))
            return [each.file.file_path for each in table.scan().plan_files()]
        from deltalake import DeltaTable

        url = f"{self._config.sections['sink']['url']}/{self._config.name}/{collection}_changes"
        return DeltaTable(url, storage_options=self._options).file_uris()

    def manifests(self, collection: str, suffix: str = "") -> int:
        """How many manifests a reader of an Iceberg table has to read."""
        table = self._catalog().load_table((self._config.name, f"{collection}{suffix}"))
        return len(table.current_snapshot().manifests(table.io))

    def drop(self, collection: str, suffix: str = "_changes") -> None:
        """Drop a table: its metadata goes, its objects stay."""
        if self._format == "iceberg":
            self._catalog().drop_table((self._config.name, f"{collection}{suffix}"))
            return
        root = (
            f"{self._config.stack.bucket}/{self._config.name}/{self._config.name}/{collection}{suffix}/_delta_log/"
        )
        files = self._s3.filesystem()
        for each in files.find(root):
            files.rm_file(each)

    def tokens(self, *collections: str, missing_ok: bool = False) -> list[str]:
        found: list[str] = []
        for name in collections:
            with contextlib.suppress(*(self.missing if missing_ok else ())):
                found += self.table(name)["_cdc_token"].to_pylist()
        return found

    def has(self, collection: str, suffix: str, rows: int) -> bool:
        """Whether a table is there and has so many rows."""
        with contextlib.suppress(*self.missing):
            return len(self.table(collection, suffix)) == rows
        return False

    @property
    def missing(self) -> tuple[type[Exception], ...]:
        from deltalake.exceptions import TableNotFoundError
        from pyiceberg.exceptions import NoSuchTableError

        return NoSuchTableError, TableNotFoundError


def write(mongo: Client, database: str, rng: random.Random, keys: Mapping[str, list[Any]], count: int) -> None:
    for name, known in keys.items():
        for number in range(count):
            with contextlib.suppress(DuplicateKeyError):
                workload.write(mongo[database][name], known, rng, number)


def test_the_tables_have_what_the_lake_has(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    rng, keys = random.Random(1), {"orders": list[Any](), "items": list[Any]()}
    plain, read, follow = PlainStream(mongo, config.name, operation_time(mongo)), Read(config), follower(config)
    for number in range(3):
        write(mongo, config.name, rng, keys, 80)
        mongo[config.name].orders.insert_many([{"a": {"b": n, f"c{number}": [{"d": n}]}} for n in range(20)])
        catch_up(config)
        done = follow.run_once() if number < 2 else follower(config).run_once()
        assert not done.failed, done.failed
        again = follower(config).run_once()
        assert not any(each.files for each in again.tables.values()), (number, done, again)
        tokens = read.tokens("orders", "items")
        assert len(tokens) == len(set(tokens))
        assert set(tokens) == lake.check_no_token_twice()
    assert set(tokens) == plain.stop()


def test_an_engine_brings_its_tables_up_to_date(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    only_with("delta", config)
    rng, keys = random.Random(2), {"orders": list[Any](), "items": list[Any]()}
    plain, read = PlainStream(mongo, config.name, operation_time(mongo)), Read(config)
    for _ in range(2):
        write(mongo, config.name, rng, keys, 60)
        catch_up(config)
        tokens = read.tokens("orders", "items")
        assert len(tokens) == len(set(tokens))
        assert set(tokens) == lake.check_no_token_twice()
    with Engine(config) as engine:
        engine.wait_reading()
        write(mongo, config.name, rng, keys, 60)
        engine.wait_for(lambda _: set(read.tokens("orders", "items")) > set(tokens), "a commit to the tables")
        write(mongo, config.name, rng, keys, 60)
        assert engine.terminate() == 0
    catch_up(config)
    tokens = read.tokens("orders", "items")
    assert len(tokens) == len(set(tokens))
    assert set(tokens) == plain.stop() == lake.check_no_token_twice()


class Looks:
    """Looks at tables again and again: no event is there twice, and none goes away."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self.seen: set[str] = set()

    def look(self) -> set[str]:
        tokens = self._read.tokens("orders", "items", missing_ok=True)
        assert len(tokens) == len(set(tokens)), "an event is in a table twice"
        assert self.seen <= set(tokens), "events are gone from a table"
        self.seen = set(tokens)
        return self.seen


@pytest.mark.parametrize("point", get_args(TablePoint))
def test_killed_at_a_failpoint(
    stack: LocalStack, mongo: Client, config: EngineConfig, lake: Lake, point: str
) -> None:
    only_with("iceberg" if point == "before_table_commit" else "delta", config)
    looks, plain = Looks(Read(config)), PlainStream(mongo, config.name, operation_time(mongo))
    with writing(stack, config.name, seed=4), Engine(config, environment={VARIABLE: f"{point}:3"}) as engine:
        engine.wait_for(
            lambda status: any(
                each["restarts"] > 1 for each in status["processes"] if each["process"] == "committer-0"
            ),
            "a committer that has died twice",
        )
        looks.look()
        engine.kill_tree()
    catch_up(config)
    assert looks.look() == plain.stop() == lake.check_no_token_twice()


def test_a_committer_that_keeps_dying_does_not_hold_the_end(
    mongo: Client, config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_with("delta", config)
    mongo[config.name].orders.insert_one({"n": 1})
    config.set("retry", initial_delay="50ms", max_delay="100ms", max_attempts=3)
    monkeypatch.setenv(VARIABLE, "before_table_commit:1")
    ended = run_engine(config, "run", "--until-caught-up")
    assert ended.returncode == 1
    assert "bring the tables up to date" in ended.stderr
    monkeypatch.delenv(VARIABLE)
    catch_up(config)
    assert len(Read(config).tokens("orders")) == 1


HOSTILE = ["a.b", "a b", "100%", "Ü~1", "n" * 120, "x=y", "orders_changes", "_hidden"]


def test_hostile_names(mongo: Client, config: EngineConfig) -> None:
    """Of collections, and of fields that differ by case, have dots, or are those of the metadata."""
    config.set("source", collections=HOSTILE)
    config.set("memory", limit="2GiB")
    document = {"a.b": 1, "a": {"b": 2, "b.c": 3}, "A": "x", "": 4, "_cdc_op": 5, " ,;{}()=": 6, "cdc_date": "7"}
    for name in HOSTILE:
        mongo[config.name][name].insert_many([document | {"line\nend": 8, "n": n} for n in range(3)])
    catch_up(config)
    read = Read(config)
    for name in HOSTILE:
        rows = read.table(directory_name(name))
        assert sorted(rows["n"].to_pylist()) == [0, 1, 2], name
        assert set(rows["_cdc_collection"].to_pylist()) == {name}
        row = rows.to_pylist()[0]
        rescued = json.loads(row.pop("_cdc_rescued") or "{}")
        assert {1, 2, 3, 4, 5, 6, 8, "7", "x"} <= {*values_of(row), *values_of(rescued)}
        assert not re.search(r"[.\s,;{}()=]", "".join(names_of(rows.schema))), rows.schema.names


def directory_name(collection: str) -> str:
    """What stands for a collection in the path of its table, by the documentation."""
    return safe_name(collection).replace("%", "~")


def names_of(fields: Iterable[pa.Field]) -> Iterator[str]:
    for field in fields:
        yield field.name
        while pa.types.is_list(field.type) or pa.types.is_large_list(field.type):
            field = field.type.value_field  # noqa: PLW2901
        if pa.types.is_struct(field.type):
            yield from names_of(field.type)


def values_of(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for each in value.values():
            yield from values_of(each)
    elif isinstance(value, list):
        for each in value:
            yield from values_of(each)
    else:
        yield value


def has_committed(status: dict[str, Any]) -> bool:
    return bool(sum(each["events_committed"] for each in status["streams"]) == 1)


def test_many_add_at_once(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """As the committers of several engines may, for a moment, or after a pause of one of them."""
    rng, keys = random.Random(5), {"orders": list[Any](), "items": list[Any]()}
    config.set("table", interval="1h")
    write(mongo, config.name, rng, keys, 20)
    with Engine(config) as engine:
        for _ in range(6):
            write(mongo, config.name, rng, keys, 20)
            time.sleep(0.6)
        engine.wait_for(lambda status: all(each["events_committed"] for each in status["streams"]), "commits")
        landed = set(lake.check_no_token_twice())
        engine.kill_tree()
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda one: one.run_once(), [follower(config) for _ in range(4)]))
    failed = [each for one in done for each in one.failed.values()]
    assert all(isinstance(each, ConflictError) for each in failed), failed
    follower(config).run_once()
    tokens = Read(config).tokens("orders", "items")
    assert len(tokens) == len(set(tokens))
    assert landed
    assert set(tokens) >= landed


def test_a_dropped_table_is_made_again(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    rng, keys = random.Random(6), {"orders": list[Any](), "items": list[Any]()}
    read, follow = Read(config), follower(config)
    write(mongo, config.name, rng, keys, 40)
    catch_up(config)
    assert not follow.run_once().failed
    read.drop("orders")
    mongo[config.name].orders.insert_one({"n": 1})
    config.set("table", interval="1h")
    with Engine(config) as engine:
        engine.wait_for(
            lambda status: sum(each["events_committed"] for each in status["streams"]) == 1, "a commit"
        )
        engine.kill_tree()
    assert not follow.run_once().failed
    tokens = read.tokens("orders", "items")
    assert len(tokens) == len(set(tokens))
    assert set(tokens) == lake.check_no_token_twice()


def test_check_looks_at_the_catalog(config: EngineConfig) -> None:
    checked = run_engine(config, "check")
    assert checked.returncode == 0, checked.stdout
    assert re.search(r"tables\s+changelog tables in (iceberg|delta) can be looked at", checked.stdout)
    if config.sections["table"]["format"] == "iceberg":
        config.set("table", catalog={"type": "rest", "uri": "http://127.0.0.1:9", "token": "hidden-word"})
        checked = run_engine(config, "check")
        assert checked.returncode == 1, checked.stdout
        assert "failed" in checked.stdout
        assert "reach the Iceberg catalog" in checked.stdout
        assert "hidden-word" not in checked.stdout + checked.stderr
        config.set("retry", initial_delay="50ms", max_delay="100ms", max_attempts=2)
        ended = run_engine(config, "run", "--until-caught-up")
        assert ended.returncode == 1
        assert "bring the tables up to date" in ended.stderr
        assert "hidden-word" not in ended.stdout + ended.stderr


def test_while_the_catalog_is_away_the_lake_goes_on(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    if config.sections["table"]["format"] != "iceberg":
        pytest.skip("there is no catalog")
    not_by_rest(config)
    path = Path(config.sections["table"]["catalog"]["uri"].removeprefix("sqlite:///"))
    mongo[config.name].orders.insert_one({"n": 0})
    catch_up(config)
    away = path.with_suffix(".away")
    with Engine(config) as engine:
        engine.wait_for(lambda status: bool(engine.pids("committer")), "a committer")
        path.rename(away)
        path.mkdir()
        mongo[config.name].orders.insert_one({"n": 1})
        wait_for_events(engine, 1)
        engine.wait_for(lambda _: "a table is behind" in engine.log(), "a warning")
        path.rmdir()
        away.rename(path)
        wait_for_rows(config, engine, 2, timeout_s=60)
        assert engine.terminate() == 0
    assert set(Read(config).tokens("orders")) == lake.check_no_token_twice()


def wait_for_events(engine: Engine, count: int) -> None:
    engine.wait_for(
        lambda status: sum(each["events_committed"] for each in status["streams"]) == count, "a commit"
    )


def wait_for_rows(config: EngineConfig, engine: Engine, count: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while len(Read(config).tokens("orders")) < count:
        assert time.monotonic() < deadline, engine.log_tail()
        time.sleep(0.3)


def test_while_a_rest_catalog_hangs_the_lake_goes_on(
    mongo: Client, config: EngineConfig, lake: Lake, request: pytest.FixtureRequest
) -> None:
    """It accepts connections and says nothing; afterwards the tables catch up."""
    if config.sections["table"].get("catalog", {}).get("type") != "rest":
        pytest.skip("with a REST catalog, a server of 240 MB: EXPLORE=1")
    rest_catalog: RestCatalog = request.getfixturevalue("rest_catalog")
    mongo[config.name].orders.insert_one({"n": 0})
    catch_up(config)
    with Engine(config) as engine:
        engine.wait_for(lambda status: bool(engine.pids("committer")), "a committer")
        rest_catalog.server.pause()
        try:
            for number in range(1, 4):
                mongo[config.name].orders.insert_one({"n": number})
                wait_for_events(engine, number)
            engine.wait_for(lambda _: "a table is behind" in engine.log(), "a warning", timeout_s=90)
        finally:
            rest_catalog.server.resume()
        wait_for_rows(config, engine, 4, timeout_s=90)
        assert engine.terminate() == 0
    assert set(Read(config).tokens("orders")) == lake.check_no_token_twice()


def test_the_guide_reads_tables(mongo: Client, config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of the guide to the lake, with the names of these servers in place of its own."""
    config.set("mirror", enabled=True)
    config.set("memory", limit="2GiB")
    mongo[config.name].orders.insert_many([{"n": n} for n in range(3)])
    catch_up(config)
    guide = (ROOT / "configs" / "LAKE.md").read_text().partition("\n## Tables\n")[2].partition("\n## ")[0]
    of_iceberg, of_delta, _, of_mirror = blocks(guide, "python")  # that for Spark is run elsewhere
    s3 = config.stack.s3
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    found: dict[str, Any] = {}
    if config.sections["table"]["format"] == "iceberg":
        catalog = config.sections["table"]["catalog"]
        given = f'type="{catalog["type"]}", uri="{catalog["uri"]}", **{{"s3.endpoint": "{s3.endpoint_url}"}}'
        block = of_iceberg.replace('type="rest", uri="http://localhost:8181"', given)
        exec(block.replace("shop.", f"{config.name}."), found)
        assert found["rows"].num_rows == 3
    else:
        root = f"{config.sections['sink']['url']}/{config.name}/"
        exec(of_delta.replace("s3://lake/prefix/shop/", root), found)
        assert found["rows"].height == 3
        exec(of_mirror.replace("s3://lake/prefix/shop/", root), found)
        assert sorted(found["orders"]["n"]) == [0, 1, 2]
