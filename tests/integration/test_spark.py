"""Spark reads tables as the guide says: every row, every value, and by conditions on times."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from bson import DatetimeMS
from pymongo import MongoClient

from bench.local import LocalStack
from tests.exploring import EXPLORE
from tests.integration.harness import EngineConfig, catch_up
from tests.integration.test_mirrors import documents_of, there
from tests.integration.test_reading import HOSTILE, IDS, plain
from tests.integration.test_tables import FORMATS, write
from tests.test_documents import ROOT, blocks

Client = MongoClient[dict[str, Any]]
SQLITE = "org.xerial:sqlite-jdbc:3.54.1.0"
# What the script writes of each table: all rows; the flat columns alone, which Spark reads in vectors; and how
# many rows it finds by some conditions, where statistics have a say.
READ = """
import json, sys
from pathlib import Path

out = Path(sys.argv[1])
for name, (format_, place, conditions) in json.loads((out / "tables.json").read_text()).items():
    rows = spark.table(place) if format_ == "iceberg" else spark.read.format("delta").load(place)
    flat = [each.name for each in rows.schema if each.dataType.typeName() not in ("struct", "array")]
    rows.coalesce(1).write.parquet(str(out / name))
    rows.select(flat).coalesce(1).write.parquet(str(out / f"{name}.flat"))
    found = [rows.filter(each).count() for each in conditions]
    (out / f"{name}.json").write_text(json.dumps(found))
spark.stop()
"""


@pytest.mark.skipif(not EXPLORE, reason="100 MB from Maven, and a minute: EXPLORE=1")
def test_spark_reads_tables(stack: LocalStack, mongo: Client, tmp_path: Path) -> None:
    """Both formats; changelog tables as the lake has them, mirrors as the collections are."""
    if shutil.which("java") is None:
        pytest.skip("Java is not installed")
    collections = ["people", "a.dots", "random"]
    database = mongo["_spark"]
    configs = {each: config_of(each, stack, tmp_path, collections) for each in FORMATS}
    rng, keys = random.Random(21), {"random": list[Any]()}
    for name in collections[:2]:
        documents = HOSTILE[name]
        database[name].insert_many([{"_id": key} | documents[n % len(documents)] for n, key in enumerate(IDS)])
    write(mongo, "_spark", rng, keys, 100)
    for config in configs.values():
        catch_up(config)
    write(mongo, "_spark", rng, keys, 100)
    times = [DatetimeMS(each) for each in (0, -1, 1, 1795000000123, 253402300800000, -62135596800001, 2**53)]
    grown = [{"at_time": each, "sure": not n % 2, "in": {"at_time": [each]}} for n, each in enumerate(times)]
    for name in collections[:2]:
        database[name].insert_many([{**each} for each in grown])
        database[name].update_one({"_id": 1}, {"$set": grown[3]})
        database[name].delete_one({"_id": "5"})
    tables: dict[str, tuple[str, str, list[str]]] = {}
    counts: dict[str, list[int]] = {}
    for format_, config in configs.items():
        catch_up(config)
        for collection in collections:
            name = f"{format_}-{collection}"
            conditions = dict(conditions_on(of_lake(config, collection))) if collection == "people" else {}
            counts[f"{name}_changes"] = [*conditions.values()]
            tables[f"{name}_changes"] = format_, place(config, f"{collection}_changes"), [*conditions]
            tables[name] = format_, place(config, collection), []
    in_spark(tmp_path, tables)

    assert sum(map(len, counts.values())) > 40
    for name, expected_counts in counts.items():
        assert json.loads((tmp_path / f"{name}.json").read_text()) == expected_counts, tables[name]
    for format_, config in configs.items():
        for collection in collections:
            name = f"{format_}-{collection}"
            mirror = pq.read_table(tmp_path / name)
            assert documents_of(mirror, config, collection) == there(mongo, config, collection), name
            expected = of_lake(config, collection)
            assert expected.num_rows > 20
            for each in (f"{name}_changes", f"{name}_changes.flat"):
                changes = pq.read_table(tmp_path / each)
                columns = [column for column in expected.column_names if column in changes.column_names]
                assert len(columns) == len(expected.column_names) or each.endswith(".flat")
                assert repr(plain(changes.select(columns))) == repr(plain(expected.select(columns))), each


def conditions_on(rows: pa.Table) -> Iterator[tuple[str, int]]:
    """Conditions in SQL, and how many rows fulfil each."""
    compare: dict[str, Any] = {"=": pc.equal, ">=": pc.greater_equal, "<": pc.less}
    for name in ("_cdc_cluster_time", "_cdc_id", "at_time", "sure"):
        column = rows[name].combine_chunks()
        distinct = pc.unique(column.drop_null())
        for number in sorted({len(distinct) // 3, len(distinct) - 1}):
            value = distinct[number]
            if pa.types.is_timestamp(column.type):
                literal = f"timestamp_micros({value.cast(pa.timestamp('us', 'UTC')).value})"
            elif pa.types.is_boolean(column.type):
                literal = str(value)
            else:
                literal = f"decode(unhex('{value.as_py().encode().hex()}'), 'UTF-8')"
            for sign, function in compare.items():
                yield f"`{name}` {sign} {literal}", pc.sum(function(column, value)).as_py() or 0


def in_spark(directory: Path, tables: dict[str, tuple[str, str, list[str]]]) -> None:
    """Run the guide's block, with the catalog of the test, and READ."""
    (directory / "tables.json").write_text(json.dumps(tables))
    guide = (ROOT / "configs" / "LAKE.md").read_text().partition("\n## Tables\n")[2]
    (block,) = (each for each in blocks(guide, "python") if "iceberg-spark-runtime" in each)
    session = block.partition("from_iceberg =")[0]
    rest = '.config("spark.sql.catalog.headrace.type", "rest")'
    uri = '.config("spark.sql.catalog.headrace.uri", "http://localhost:8181")'
    assert rest in session
    assert uri in session
    session = session.replace(rest, '.config("spark.sql.catalog.headrace.type", "jdbc")')
    own = {
        "spark.sql.catalog.headrace.uri": f"jdbc:sqlite:{directory}/catalog.db",
        "spark.sql.catalog.headrace.jdbc.schema-version": "V1",
        "spark.sql.catalog.headrace.warehouse": str(directory),
        "spark.sql.shuffle.partitions": "1",
        "spark.databricks.delta.snapshotPartitions": "1",
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
    }
    session = session.replace(uri, "".join(f".config({key!r}, {value!r})" for key, value in own.items()))
    session = session.replace('f"{iceberg},{delta}"', f'f"{{iceberg}},{{delta}},{SQLITE}"')
    script = directory / "read.py"
    script.write_text(session + READ)
    done = subprocess.run([sys.executable, script, directory], capture_output=True, text=True, check=False)
    if "unresolved dependency" in done.stderr:
        pytest.skip("Maven, which has the libraries for Spark, cannot be reached")
    assert done.returncode == 0, done.stderr[-4000:]


def config_of(format_: str, stack: LocalStack, directory: Path, collections: list[str]) -> EngineConfig:
    (directory / format_).mkdir()
    made = EngineConfig(stack, directory / format_, "_spark")
    made.set("sink", url=f"file://{directory}/{format_}/lake")
    made.set("source", collections=collections, start="snapshot")
    catalog = {"type": "sql", "uri": f"sqlite:///{directory}/catalog.db"}
    made.set("table", format=format_, **({"catalog": catalog} if format_ == "iceberg" else {}))
    made.set("state", prefix=f"_spark-{format_}")
    made.set("mirror", enabled=True, interval="1s")
    made.set("memory", limit="2GiB")
    return made


def place(config: EngineConfig, table: str) -> str:
    if config.sections["table"]["format"] == "iceberg":
        return f"headrace._spark.`{table}`"
    return f"{config.sections['sink']['url']}/_spark/{table}"


def of_lake(config: EngineConfig, collection: str) -> pa.Table:
    """The rows of all files, as they are."""
    root = Path(config.sections["sink"]["url"].removeprefix("file://")) / "_spark" / f"{collection}_changes"
    files = [pq.ParquetFile(each).read() for each in sorted(root.glob("cdc_date=*/*.parquet"))]
    return pa.concat_tables(files, promote_options="permissive")
