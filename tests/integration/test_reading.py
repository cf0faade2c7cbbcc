"""Reading a lake as documented: hostile names and all types, with every query engine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bson import Binary, CodecOptions, DatetimeMS, Decimal128, Int64, ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient

from engine.config import load
from engine.core.records import schema_document
from engine.core.schema import CollectionSchema
from engine.state.opening import open_store
from tests.decode import lake as inverse
from tests.integration.harness import EngineConfig, catch_up, run_engine
from tests.spark import leaves_sockets

Client = MongoClient[dict[str, Any]]
CONFIGS = Path(__file__).parents[2] / "configs"
GUIDE = CONFIGS / "LAKE.md"
WHEN = datetime(1909, 3, 4, tzinfo=UTC)

# Names of directories and parts of the queries, with different types in different documents.
HOSTILE: dict[str, list[dict[str, Any]]] = {
    "orders": [
        {"year": 1909, "month": "March", "day": WHEN, "hour": 1.5, "database": "mine", "collection": ["a"]},
        {"cdc_database": 1, "cdc_collection": "c", "cdc_date": WHEN, "cdc_hour": True, "cdc_year": 3},
        {"newest": 1, "dropped": True, "dropped_at": WHEN, "events": "e", "files": ["f"], "filename": "n"},
        {"address": {"street": "s", "no": 5}, "ok": True, "amount": 5, "_cdc_op": "mine", "when": WHEN},
        {"a.b": 1, "": "no name", "$price": 3, "with space": 1, 'quo"te': 2, "ünï": 3, "select": "from"},
        {
            "Name": 1,
            "name": "lower",
            "NAME": WHEN,
            "_ID": 7,
            "_CDC_KEY": "k",
            "CDC_Hour": 5,
            "in": {"A": 1, "a": "x"},
        },
        {
            "deep": {"year": 1909, "list": [{"x": 1}, {"x": 2, "y": "z"}]},
            "binary": b"\0\1",
            "uuid": Binary(b"u" * 16, 4),
        },
    ],
    "people": [
        {"address": "a text here", "ok": 7, "amount": "five", "newest": "x", "year": "MCMIX", "when": 3},
        {"address": "another", "ok": 2**40, "amount": Decimal128("1.10"), "deep": [1, 2]},
    ],
    "_hidden": [{"_x": 1, ".y": 2, "year": WHEN}],
    "a.dots": [{"value": DatetimeMS(2**60)}, {"value": WHEN}],
}
IDS: list[Any] = [
    1,
    Int64(2),
    3.0,
    Decimal128("4.0"),
    0.1,
    "5",
    ObjectId(),
    {"a": 1.0},
    WHEN,
    Binary(b"k", 5),
    None,
    True,
]


class Landed(NamedTuple):
    """A local lake, and the database that it was made from."""

    config: EngineConfig
    root: Path
    source: Any


@pytest.fixture(scope="module")
def landed(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Landed]:
    """A lake that was loaded, and then captured every kind of change."""
    directory = tmp_path_factory.mktemp("reading")
    config = EngineConfig(stack, directory, "_reading")
    config.set("sink", url=f"file://{directory}/lake")
    config.set("source", collections=[*HOSTILE, "gone"], start="snapshot")
    config.set("memory", limit="2GiB")
    mongo: Client
    with MongoClient(stack.mongo.uri) as mongo:
        yield made(mongo, config)


def made(mongo: Client, config: EngineConfig) -> Landed:
    database = mongo[config.name]
    for name, documents in HOSTILE.items():
        database[name].insert_many([{"_id": key} | documents[n % len(documents)] for n, key in enumerate(IDS)])
    database["gone"].insert_many([{"n": n} for n in range(9)])
    catch_up(config)
    for name, documents in HOSTILE.items():
        collection = database[name]
        collection.replace_one({"_id": 1}, {"_id": 1.0} | documents[0])
        collection.update_one({"_id": 2}, {"$set": {"changed": True, "year": 1910}})
        collection.replace_one({"_id": 3}, {"_id": Int64(3), "replaced": name})
        for value in (70.5, 71.25, Decimal128("72.5")):  # a delete in the same second as its insert
            collection.insert_one({"_id": value, "short": 1})
            collection.delete_one({"_id": value})
        collection.insert_one({"_id": 80.5, "n": 1})
        collection.update_one({"_id": 80.5}, {"$set": {"n": 2}})  # looked up after the delete
        collection.delete_one({"_id": 80.5})
        with mongo.start_session() as session, session.start_transaction():
            collection.insert_one({"_id": "t", "n": 1}, session=session)
            collection.delete_one({"_id": "t"}, session=session)
            collection.insert_one({"_id": "t", "n": 2}, session=session)
    database["gone"].drop()
    database["gone"].insert_one({"_id": 1.5, "n": "again"})
    catch_up(config)
    return Landed(config, config.directory / "lake", database)


def place(landed: Landed, collection: str) -> tuple[str, str]:
    """The directories of a collection, in a key and in a glob pattern."""
    (found,) = (landed.root / "cdc_database=_reading").glob(f"cdc_collection={collection.replace('~', '%7E')}")
    return str(found), str(found).replace("cdc_database", "*database").replace("cdc_collection", "*collection")


def block(heading: str, language: str, landed: Landed, collection: str, number: int = 0) -> str:
    """A code block of the guide, applied to a collection of this lake."""
    section = re.split(r"^##", GUIDE.read_text().partition(f"## {heading}\n")[2], flags=re.MULTILINE)[0]
    code = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[number]
    directory, pattern = place(landed, collection)
    text = code.replace("s3://lake/prefix/*database=shop/*collection=orders", pattern)
    text = re.sub("s3a?://lake/prefix/cdc_database=shop/cdc_collection=orders", directory, text)
    assert str(landed.root) in text
    return text


# --- each engine's rows, as an Arrow table ---------------------------------------------------------------


def by_duckdb(landed: Landed, collection: str, _: Any) -> pa.Table:
    with duckdb.connect() as database:
        return database.sql(block("DuckDB", "sql", landed, collection)).to_arrow_table()


def by_polars(landed: Landed, collection: str, _: Any) -> pa.Table:
    names: dict[str, Any] = {}
    exec(block("Polars", "python", landed, collection), names)
    return names["rows"].to_arrow()


def by_pyarrow(landed: Landed, collection: str, _: Any) -> pa.Table:
    names: dict[str, Any] = {}
    exec(block("pyarrow", "python", landed, collection), names)
    return names["table"]


def by_spark(landed: Landed, collection: str, spark: Any) -> pa.Table:
    names: dict[str, Any] = {"spark": spark}
    exec(block("Spark", "python", landed, collection), names)
    return names["rows"].toArrow()


def plain(table: pa.Table) -> list[dict[str, Any]]:
    """The rows with times in milliseconds and without nulls, sorted."""

    def type_(each: pa.DataType, of_time: pa.DataType) -> pa.DataType:
        if pa.types.is_timestamp(each):
            return of_time
        if pa.types.is_struct(each):
            return pa.struct([pa.field(field.name, type_(field.type, of_time)) for field in each])
        if pa.types.is_list(each) or pa.types.is_large_list(each):
            return pa.list_(type_(each.value_type, of_time))
        return each

    columns = []
    for column in table.columns:
        in_ms = column.cast(type_(column.type, pa.timestamp("ms", "UTC")))
        columns.append(in_ms.cast(type_(column.type, pa.int64())))
    rows = pa.Table.from_arrays(columns, names=table.column_names).to_pylist()
    found = [{name: value for name, value in row.items() if value is not None} for row in rows]
    return sorted(
        found,
        key=lambda row: (row["_cdc_stream"], row["_cdc_seq"], row.get("_cdc_token", ""), row.get("_cdc_id", "")),
    )


ENGINES = [
    pytest.param(by_duckdb, id="duckdb"),
    pytest.param(by_polars, id="polars"),
    pytest.param(by_spark, id="spark", marks=leaves_sockets),
]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_query_engine_reads_the_same(landed: Landed, engine: Any, request: pytest.FixtureRequest) -> None:
    """With the documented query; directory names are not turned into columns."""
    spark = request.getfixturevalue("spark") if engine is by_spark else None
    for name in (*HOSTILE, "gone"):
        reference = plain(by_pyarrow(landed, name, None))
        assert len(reference) >= len(IDS) or name == "gone"
        assert repr(plain(engine(landed, name, spark))) == repr(reference), name


def by_duckdbs_view(landed: Landed, collection: str, _: Any) -> pa.Table:
    with duckdb.connect() as database:
        database.execute((CONFIGS / "duckdb" / "current_state.sql").read_text())
        database.execute(block("A collection as it stands", "sql", landed, collection))
        return database.sql("SELECT * FROM orders").to_arrow_table()


def by_sparks_view(landed: Landed, collection: str, spark: Any) -> pa.Table:
    script = (CONFIGS / "spark" / "current_state.sql").read_text()
    script = script.replace("{{name}}", "orders").replace("{{path}}", place(landed, collection)[0])
    for statement in filter(str.strip, re.sub(r"^--.*$", "", script, flags=re.MULTILINE).split(";")):
        spark.sql(statement)
    return spark.sql("SELECT * FROM orders").toArrow()


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(by_duckdbs_view, id="duckdb"),
        pytest.param(by_sparks_view, id="spark", marks=leaves_sockets),
    ],
)
def test_the_view_is_the_collection(landed: Landed, view: Any, request: pytest.FixtureRequest) -> None:
    """Document by document, values and types, by converting columns back to documents."""
    spark = request.getfixturevalue("spark") if view is by_sparks_view else None
    raw: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument)
    for name in (*HOSTILE, "gone"):
        rows = plain(view(landed, name, spark))
        assert not any("_cdc_pending" in row for row in rows)
        found = [inverse.document_of(row, schema_of(landed.config, name).fields) for row in rows]
        there = [inverse.document_tree(bytes(each.raw)) for each in landed.source[name].with_options(raw).find()]
        assert sorted(map(in_order, found)) == sorted(map(in_order, there)), name


def in_order(tree: Any) -> str:
    """A tree as text, fields sorted by name, because schemas have another order."""
    if isinstance(tree, dict):
        return repr(sorted((name, in_order(each)) for name, each in tree.items()))
    return repr([in_order(each) for each in tree]) if isinstance(tree, list) else repr(tree)


@pytest.mark.parametrize(
    ("sink", "files"),
    [
        ({"partition_by": "none"}, "*{db}.orders[-~]*.parquet"),
        ({"partition_by": "day", "prefix_shards": 3}, "*/*database={db}/*collection=orders/**/*.parquet"),
        ({"partition_by": "collection"}, "*database={db}/*collection=orders/**/*.parquet"),
    ],
    ids=["none", "shards", "collection"],
)
def test_other_directories(mongo: Client, config: EngineConfig, sink: dict[str, Any], files: str) -> None:
    """With the glob patterns that the file of the view suggests."""
    config.set("sink", url=f"file://{config.directory}/lake", **sink)
    config.set("source", collections=["orders", "orders-2"], max_readers=1)
    for name in ("orders", "orders-2"):
        mongo[config.name][name].insert_many([{"_id": n, "name": name, "year": 1909} for n in range(30)])
    catch_up(config)
    mongo[config.name].orders.delete_many({"_id": {"$lt": 10}})
    catch_up(config)
    pattern = f"{config.directory}/lake/{files.format(db=config.name)}"
    with duckdb.connect() as database:
        database.execute((CONFIGS / "duckdb" / "current_state.sql").read_text())
        query = f"SELECT _cdc_id, name, year FROM current_state('{pattern}') WHERE _cdc_collection = 'orders'"
        found = database.sql(query).fetchall()
    assert sorted(found) == sorted((str(n), "orders", 1909) for n in range(10, 30))


def test_a_document_gains_a_document(mongo: Client, config: EngineConfig) -> None:
    """While the outer one is null in all rows of some file, here of the deletes: too much for DuckDB 2.0.1."""
    config.set("sink", url=f"file://{config.directory}/lake")
    orders = mongo[config.name].orders
    orders.insert_many([{"_id": n, "outer": {"a": n}} for n in range(9)])
    catch_up(config)
    orders.delete_many({"_id": {"$lt": 5}})
    catch_up(config)
    orders.insert_many([{"_id": n, "outer": {"a": n, "inner": {"b": n}}} for n in range(9, 12)])
    catch_up(config)
    with duckdb.connect() as database:
        database.execute((CONFIGS / "duckdb" / "current_state.sql").read_text())
        found = database.sql(
            f"SELECT _id, \"outer\" FROM current_state('{config.directory}/lake/**/*.parquet')"
        ).fetchall()
    expected = [(n, {"a": n, "inner": {"b": n} if n > 8 else None}) for n in range(5, 12)]
    assert sorted(found) == expected


def test_a_range_of_days(landed: Landed) -> None:
    with duckdb.connect() as database:
        query = block("DuckDB", "sql", landed, "people", 1)
        assert database.sql(query).fetchall() == [(len(by_pyarrow(landed, "people", None)),)]
        assert database.sql(query.replace("2126", "2026")).fetchall() == [(0,)]


def test_default_partition_handling_hides_no_field(landed: Landed) -> None:
    """DuckDB and Polars turn directories into columns by default."""
    directory, pattern = place(landed, "orders")
    with duckdb.connect() as database:
        query = f"SELECT year, month FROM read_parquet('{pattern}/**/*.parquet', union_by_name = true)"
        by_default = database.sql(query).fetchall()
    expected = [(row.get("year"), row.get("month")) for row in plain(by_pyarrow(landed, "orders", None))]
    assert sorted(map(repr, by_default)) == sorted(map(repr, expected))
    for file in Path(directory).rglob("*.parquet"):
        own = pq.ParquetFile(file).read()
        found = pl.read_parquet(file, hive_partitioning=True)
        assert found.select(own.column_names).to_arrow().equals(pl.from_arrow(own).to_arrow()), file


def test_the_readme_has_the_guides_view() -> None:
    """The guide's view is the one that is tested."""
    view = re.search("CREATE VIEW.*?;", (CONFIGS.parent / "README.md").read_text(), re.DOTALL)
    assert view
    assert view[0] in GUIDE.read_text()


def schema_of(config: EngineConfig, collection: str) -> CollectionSchema:
    """The collection's settled schema."""
    settings = load(config.path)
    store = open_store(settings.state)
    try:
        text = store.read_shared(schema_document(config.name, collection))[1]
    finally:
        store.close()
    return msgspec.json.decode(text, type=CollectionSchema)


def test_a_drop_reaches_all_parts_and_a_second_backfill_drops_deleted_documents(landed: Landed) -> None:
    """Documents deleted in a gap of the history are gone after a second backfill."""
    config = landed.config
    landed.source["people"].delete_one({"_id": 0.1})
    config.set("source", collections=["people"])
    done = run_engine(config, "backfill", "--restart")
    assert done.returncode == 0, done.stderr
    rows = plain(by_duckdbs_view(landed, "people", None))
    assert {row["_cdc_id"] for row in rows} == {
        each for each in (row["_cdc_id"] for row in rows) if each != '{"$numberDouble":"0.1"}'
    }
    assert len(rows) == landed.source["people"].count_documents({})
