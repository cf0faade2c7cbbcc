"""Parquet as common readers see it: names that differ only by case, and dates of any size."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path

import bson
import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bson.datetime_ms import DatetimeMS

from bench.decode import Schemas
from engine.config.tree import SinkConfig
from engine.decode.decoder import Decoder
from engine.decode.schema import SchemaOptions
from engine.encode.formats import open_file
from tests.decode import values

MS_MAX = 9_223_372_036_854_775
# Pairs of names that at least one reader considers equal, in the order of the documents.
PAIRS = [("Name", "name"), ("\u00c4", "\u00e4"), ("\u0130x", "ix"), ("\u017f", "s"), ("\u1e9e", "\u00df")]
DOCUMENT = {
    "_id": 1,
    "_ID": "not the id",
    "_CDC_KEY": "not the key",
    "cdc_hour": "not the directory",
    **{first: "first" for first, _ in PAIRS},
    "sub": {name: name for pair in PAIRS for name in pair},
    **{second: "second" for _, second in PAIRS},
    "when": DatetimeMS(0),
}
DATES = [0, MS_MAX, -MS_MAX, MS_MAX + 1, -MS_MAX - 1, 2**63 - 1, -(2**63)]

_SPARK = """
import json, sys
from pyspark.sql import SparkSession
spark = (SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    .config("spark.driver.bindAddress", "127.0.0.1").config("spark.sql.session.timeZone", "UTC").getOrCreate())
try:
    rows = spark.read.parquet(sys.argv[1])
    queries = json.loads(sys.argv[2])
    print(json.dumps([rows.selectExpr(f"cast({each} as string)").collect()[0][0] for each in queries]))
    print(json.dumps([row[0] for row in rows.selectExpr("unix_millis(when)").collect()]))
finally:
    spark.stop()
"""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in a directory of a lake."""
    schemas = Schemas()
    documents = [bson.encode(DOCUMENT | {"when": DatetimeMS(stamp)}) for stamp in DATES]
    data, offsets = values.as_array(documents)
    (decoded,) = Decoder(schemas, SchemaOptions(), ("db", "c")).decode_documents(data, offsets).batches
    path = tmp_path_factory.mktemp("lake") / "cdc_hour=07" / "one.parquet"
    path.parent.mkdir()
    with path.open("wb") as file:
        encoder = open_file(path.name, file, schemas.get("db", "c"), SinkConfig(url="file:///lake"), raw=False)
        encoder.write([decoded.batch])
        encoder.close({})
    return path


@pytest.fixture(scope="module")
def columns(lake: Path) -> dict[str, str]:
    """The column of each field, according to the file itself."""
    return originals(pq.read_schema(lake))


def originals(fields: pa.Schema | pa.StructType) -> dict[str, str]:
    return {(field.metadata or {}).get(b"bson.name", field.name.encode()).decode(): field.name for field in fields}


@pytest.fixture(scope="module")
def inner(lake: Path) -> dict[str, str]:
    return originals(pq.read_schema(lake).field("sub").type)


def expected() -> list[str]:
    outer = {name: value for name, value in DOCUMENT.items() if name not in ("_id", "sub", "when")}
    return [*map(str, outer.values()), *(name for pair in PAIRS for name in pair)]


def expressions(columns: dict[str, str], inner: dict[str, str], quote: str) -> list[str]:
    outer = [columns[name] for name in DOCUMENT if name not in ("_id", "sub", "when")]
    inside = [f"sub.{quote}{inner[name]}{quote}" for pair in PAIRS for name in pair]
    return [*(f"{quote}{name}{quote}" for name in outer), *inside]


def test_the_file_contains_the_original_names(columns: dict[str, str], inner: dict[str, str]) -> None:
    assert set(columns) >= set(DOCUMENT)
    assert set(inner) == {name for pair in PAIRS for name in pair}
    assert columns["_id"] == "_id"
    assert columns["name"] == inner["name"] == "name__2"


def test_duckdb(lake: Path, columns: dict[str, str], inner: dict[str, str]) -> None:
    source = f"read_parquet('{lake.parent.parent}/**/*.parquet', hive_partitioning = true)"
    names = ", ".join(expressions(columns, inner, '"'))
    assert list(duckdb.execute(f"select {names} from {source} limit 1").fetchall()[0]) == expected()
    assert duckdb.execute(f'select any_value(cdc_hour), min("_cdc_key") from {source}').fetchall() == [
        ("07", '{"_id":1}')
    ]
    found = duckdb.execute(f'select epoch_ms("when") from {source} order by _cdc_rescued nulls first').fetchall()
    assert [row[0] for row in found] == [0, MS_MAX, -MS_MAX, None, None, None, None]


def test_polars(lake: Path, columns: dict[str, str], inner: dict[str, str]) -> None:
    frame = polars.read_parquet(lake)
    outer = [columns[name] for name in DOCUMENT if name not in ("_id", "sub", "when")]
    inside = [frame["sub"].struct.field(inner[name])[0] for pair in PAIRS for name in pair]
    assert [*(frame[name][0] for name in outer), *inside] == expected()
    assert frame["when"].dt.epoch("ms").to_list() == [0, MS_MAX, -MS_MAX, None, None, None, None]
    assert frame["when"][0] == datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def test_pandas(lake: Path) -> None:
    frame = pq.read_table(lake, columns=["when"]).to_pandas()
    assert frame["when"].isna().tolist() == [False] * 3 + [True] * 4
    assert frame["when"].astype("int64").tolist()[:3] == [0, MS_MAX, -MS_MAX]


@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
def test_spark(lake: Path, columns: dict[str, str], inner: dict[str, str]) -> None:
    queries = json.dumps(expressions(columns, inner, "`"))
    command = [sys.executable, "-c", _SPARK, str(lake), queries]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    names, dates = map(json.loads, done.stdout.splitlines()[-2:])
    assert names == expected()
    assert dates == [0, MS_MAX, -MS_MAX, None, None, None, None]
