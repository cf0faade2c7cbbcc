"""The same batch in every format, read back by common libraries."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, cast

import bson
import duckdb
import fastavro
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import zstandard
from bson.binary import Binary
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.objectid import ObjectId
from msgspec.structs import replace

from bench.decode import Schemas
from engine.config.tree import SinkConfig
from engine.core.schema import parse_type
from engine.decode.decoder import Decoder
from engine.decode.schema import SchemaOptions
from engine.encode.formats import open_file, suffix_of
from engine.encode.parquet import ParquetFile
from tests.decode import values
from tests.decode.test_properties import milliseconds

OID = ObjectId("0123456789abcdef01234567")
FAR = values.element(9, b"when", struct.pack("<q", 2**53))
DOCUMENTS = [
    bson.encode({"_id": OID, "n": 1, "s": "", "d": 1.5, "b": True, "bin": Binary(b"\0\xff", 0), "a.b": 7}),
    bson.encode({"_id": OID, "s": 'quote " comma , line \n \u00e4', "nested": {"x": [1, None], "y": "z"}}),
    bson.encode({"_id": OID, "n": Int64(2**62), "d": float("nan"), "list": [{"p": 1.5}, {}, {"q": "r"}]}),
    values.document([values.element(7, b"_id", OID.binary), FAR]),
    bson.encode({"_id": OID, "price": Decimal128("1.5"), "list": [], "odd": [1, "x"]}),
]
OPTIONS = SchemaOptions(overrides={"c.price": parse_type("decimal128(9, 2)")}, raw=True)
WRAPPED = [(each, compression) for each in ("json", "csv", "bson") for compression in ("none", "gzip", "zstd")]
AVRO = [("avro", compression) for compression in ("none", "gzip", "zstd")]
PARQUET = [("parquet", compression) for compression in ("none", "gzip", "zstd", "snappy", "lz4")]


class Collected:
    """A file in memory."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> int:
        self.data += bytes(data)
        return len(data)


def written(format_: str, compression: str, batches: int = 1) -> tuple[bytes, pa.RecordBatch]:
    """A file with the same batch several times."""
    schemas = Schemas()
    data, offsets = values.as_array(DOCUMENTS)
    batch = (
        Decoder(schemas, OPTIONS, ("db", "c"))
        .decode_documents(data, offsets, 1_777_593_600 << 32)
        .batches[0]
        .batch
    )
    config = replace(SinkConfig(url="file:///"), format=format_, compression=compression)
    file = Collected()
    encoder = open_file(f"x{suffix_of(config)}", file, schemas.get("db", "c"), config, raw=True)
    for _ in range(batches):
        encoder.write([batch])
    encoder.close({"headrace.stream": "s"})
    plain = {"gzip": gzip.decompress, "zstd": unzstd}.get(compression, bytes)
    return (plain(file.data) if (format_, compression) in WRAPPED else file.data), batch


def unzstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


@pytest.mark.parametrize(("format_", "compression"), PARQUET)
def test_parquet(format_: str, compression: str) -> None:
    data, batch = written(format_, compression)
    file = pq.ParquetFile(io.BytesIO(data))
    column = file.metadata.row_group(0).column(0)
    assert column.compression == {"none": "UNCOMPRESSED"}.get(compression, compression.upper())
    table = file.read()
    for name in batch.schema.names:
        assert repr(milliseconds(table.column(name)).to_pylist()) == repr(
            milliseconds(batch.column(name)).to_pylist()
        )


def test_parquet_has_dictionaries_for_repeated_values() -> None:
    count = 3000
    columns: dict[str, tuple[pa.DataType, Callable[[int], Any]]] = {
        "string": (pa.string(), str),
        "int64": (pa.int64(), int),
        "int32": (pa.int32(), int),
        "float64": (pa.float64(), float),
        "timestamp": (pa.timestamp("ms", "UTC"), int),
        "binary": (pa.binary(), lambda n: b"%d" % n),
        "object_id": (pa.binary(12), lambda n: b"%012d" % n),
        "decimal": (pa.decimal128(9, 2), Decimal),
        "struct": (pa.struct([("x", pa.string())]), lambda n: {"x": str(n)} if n % 7 else None),
        "list": (pa.list_(pa.int64()), lambda n: [n, -n] if n % 7 else None),
    }
    arrays = {
        f"{name}_{word}": pa.array([make(n % period) for n in range(count)], type_)
        for name, (type_, make) in columns.items()
        for word, period in (("again", 100), ("once", count))
    }
    arrays |= {"bool": pa.array([n % 2 > 0 for n in range(count)]), "_id": pa.array(["same"] * count)}
    arrays["few"] = pa.array([str(n) if n < 20 else None for n in range(count)])
    rows = pa.RecordBatch.from_pydict(arrays)
    file = Collected()
    encoder = ParquetFile(file, rows.schema, SinkConfig(url="file:///"))
    encoder.write([rows.slice(0, 1100), rows.slice(1100)])
    encoder.close({})
    found = pq.ParquetFile(io.BytesIO(file.data))
    assert found.read().equals(pa.table(rows))
    group = found.metadata.row_group(0)
    chunks = [group.column(number) for number in range(group.num_columns)]
    dictionaries = {each.path_in_schema.split(".")[0] for each in chunks if each.has_dictionary_page}
    assert dictionaries == {f"{name}_again" for name in columns} | {"few"}


def test_parquet_has_statistics_except_for_very_long_values() -> None:
    """The encoder would keep several copies of them in memory."""
    long = ["x" * 100_000, "y" * 100_000]
    columns = {
        "_cdc_token": ["a", "b"],
        "_cdc_update": ["{}", None],
        "_cdc_before": ["{}", None],
        "_cdc_rescued": [None, "{}"],
        "_cdc_raw": [b"x", b"y"],
        "n": [1, 2],
        "s": ["a", "b"],
        "long": long,
        "long_binary": [each.encode() for each in long],
        "nested": [{"s": "a", "long": each, "list": [1, 2]} for each in long],
        "list": [["a"], [None]],
        "long_list": [[None, each] for each in long],
    }
    rows = pa.RecordBatch.from_pydict(columns)
    file = Collected()
    encoder = ParquetFile(file, rows.schema, SinkConfig(url="file:///"))
    encoder.write([rows])
    encoder.close({})
    found = pq.ParquetFile(io.BytesIO(file.data))
    assert found.read().equals(pa.table(rows))
    group = found.metadata.row_group(0)
    chunks = {each.path_in_schema: each for each in map(group.column, range(group.num_columns))}
    without = {path for path, each in chunks.items() if not each.is_stats_set}
    large = {"long", "long_binary", "nested.long", "long_list.list.element"}
    assert without == {"_cdc_update", "_cdc_before", "_cdc_raw"} | large
    assert not any(chunks[path].has_dictionary_page for path in large)
    assert chunks["_cdc_rescued"].statistics.null_count == 1


@pytest.mark.parametrize("format_", ["json", "csv", "bson"])
def test_rows_are_built_a_few_columns_at_a_time(format_: str) -> None:
    """Assembled, they take several times the memory that they take as columns."""
    sizes: list[int] = []

    class Sizes:
        def write(self, data: bytes) -> int:
            sizes.append(len(data))
            return len(data)

    count, size = 3000, 4000
    rows = pa.record_batch([[b"x" * size] * count], names=["_cdc_raw"])
    config = replace(SinkConfig(url="file:///"), format=format_, compression="none")
    schemas = Schemas()
    encoder = open_file(f"x{suffix_of(config)}", Sizes(), schemas.get("db", "c"), config, raw=True)
    encoder.write([rows])
    encoder.close({})
    assert sum(sizes) >= count * size
    assert max(sizes) < 3 * 2**20


@pytest.mark.parametrize(("format_", "compression"), [each for each in WRAPPED if each[0] == "json"])
def test_json_lines(format_: str, compression: str) -> None:
    data, _ = written(format_, compression, batches=2)
    rows = [json.loads(line) for line in data.splitlines()]
    assert len(rows) == 2 * len(DOCUMENTS)
    first, second, third, fourth, fifth = rows[: len(DOCUMENTS)]
    assert first["_cdc_op"] == "read"
    assert first["_cdc_cluster_time"] == "2026-05-01T00:00:00.000Z"
    assert first["_cdc_key"] == '{"_id":{"$oid":"0123456789abcdef01234567"}}'
    assert (first["n"], first["s"], first["b"], first["bin"], first["a.b"]) == (1, "", True, "AP8=", 7)
    assert base64.b64decode(first["_cdc_raw"]) == DOCUMENTS[0]
    assert second["s"] == 'quote " comma , line \n \u00e4'
    assert second["nested"] == {"x": [1, None], "y": "z"}
    assert (third["n"], third["d"]) == (2**62, {"$numberDouble": "NaN"})
    assert third["list"] == [{"p": 1.5, "q": None}, {"p": None, "q": None}, {"p": None, "q": "r"}]
    assert fourth["when"] == 2**53
    assert "n" not in fourth
    assert (fifth["price"], fifth["list"], fifth["odd"]) == ("1.50", [], '[1,"x"]')


@pytest.mark.parametrize(("format_", "compression"), [each for each in WRAPPED if each[0] == "csv"])
def test_csv(format_: str, compression: str, tmp_path: Path) -> None:
    data, batch = written(format_, compression, batches=2)
    rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    assert len(rows) == 2 * len(DOCUMENTS)
    assert set(batch.schema.names) <= set(rows[0])
    assert (rows[0]["n"], rows[0]["bin"], rows[0]["_cdc_cluster_time"]) == (
        "1",
        "AP8=",
        "2026-05-01T00:00:00.000Z",
    )
    assert rows[1]["s"] == 'quote " comma , line \n \u00e4'
    assert json.loads(rows[1]["nested"]) == {"x": [1, None], "y": "z"}
    assert rows[3]["when"] == str(2**53)
    path = tmp_path / "x.csv"
    path.write_bytes(data)
    found = duckdb.execute(
        f"select s from read_csv('{path}', all_varchar = true, allow_quoted_nulls = false)"
    ).fetchall()
    assert [text for (text,) in found[:4]] == ["", 'quote " comma , line \n \u00e4', None, None]


@pytest.mark.parametrize(("format_", "compression"), AVRO)
def test_avro(format_: str, compression: str) -> None:
    data, _ = written(format_, compression, batches=2)
    reader = fastavro.reader(io.BytesIO(data))
    assert reader.metadata["avro.codec"] == {"none": "null", "gzip": "deflate", "zstd": "zstandard"}[compression]
    assert {field["name"]: field.get("doc") for field in reader.writer_schema["fields"]}["a_x2eb"] == "a.b"  # type: ignore[index,union-attr,call-overload]
    rows: list[Any] = list(islice(reader, 3))  # Python has no date for the fourth
    assert len(rows) == 3
    assert (rows[0]["n"], rows[0]["s"], rows[0]["bin"], rows[0]["a_x2eb"]) == (1, "", b"\0\xff", 7)
    assert rows[0]["_cdc_raw"] == DOCUMENTS[0]
    assert rows[1]["nested"] == {"x": [1, None], "y": "z"}
    assert rows[2]["n"] == 2**62
    assert rows[2]["list"] == [{"p": 1.5, "q": None}, {"p": None, "q": None}, {"p": None, "q": "r"}]


@pytest.mark.parametrize(("format_", "compression"), [each for each in WRAPPED if each[0] == "bson"])
def test_bson(format_: str, compression: str) -> None:
    data, _ = written(format_, compression, batches=2)
    assert data == b"".join(DOCUMENTS) * 2
    assert len(bson.decode_all(data[: sum(map(len, DOCUMENTS[:3]))])) == 3


def test_bsondump_reads_it(tmp_path: Path) -> None:
    tool = shutil.which("bsondump")
    if tool is None:
        pytest.skip("there is no bsondump here")
    path = tmp_path / "x.bson"
    path.write_bytes(written("bson", "none")[0])
    done = subprocess.run([tool, "--type=json", str(path)], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(DOCUMENTS)


def test_avro_names_that_would_collide() -> None:
    schemas = Schemas()
    document = bson.encode({"a.b": 1, "a_x2eb": 2, "1st": 3, "s": {"\u00e4": 4}})
    data, offsets = values.as_array([document])
    batch = Decoder(schemas, SchemaOptions(), ("db", "c")).decode_documents(data, offsets).batches[0].batch
    file = Collected()
    encoder = open_file("x.avro", file, schemas.get("db", "c"), SinkConfig(url="file:///"), raw=False)
    encoder.write([batch])
    encoder.close({})
    (row,) = fastavro.reader(io.BytesIO(file.data))
    assert isinstance(row, dict)
    assert (row["a_x2eb"], row["a_x2eb_2"], row["_1st"], row["s"]) == (1, 2, 3, {"_xe4": 4})


def test_names_that_differ_by_case_in_formats_other_than_parquet() -> None:
    """Other formats use the column names; Avro also keeps the original ones."""
    data, offsets = values.as_array([bson.encode({"a.b": 1, "A.b": 2, "s": {"x": 3, "X": 4}})])
    files = {}
    for ending in ("avro", "jsonl", "csv"):
        schemas, file = Schemas(), Collected()
        batch = Decoder(schemas, SchemaOptions(), ("db", "c")).decode_documents(data, offsets).batches[0].batch
        config = SinkConfig(url="file:///", compression="none")
        encoder = open_file(f"x.{ending}", file, schemas.get("db", "c"), config, raw=False)
        encoder.write([batch])
        encoder.close({})
        files[ending] = file.data
    row = json.loads(files["jsonl"])
    assert (row["a.b"], row["A.b__2"], row["s"]) == (1, 2, {"x": 3, "X__2": 4})
    header, line = csv.reader(io.StringIO(files["csv"].decode()))
    assert dict(zip(header, line, strict=True))["A.b__2"] == "2"
    reader = fastavro.reader(io.BytesIO(files["avro"]))
    schema: Any = reader.writer_schema
    row = next(cast("Iterator[dict[str, Any]]", reader))
    original = {field.get("doc", field["name"]): field["name"] for field in schema["fields"]}
    assert (row[original["a.b"]], row[original["A.b"]], row["s"]) == (1, 2, {"x": 3, "X__2": 4})


def test_files_before_and_after_new_columns_are_one_table(tmp_path: Path) -> None:
    """DuckDB by name, and a pyarrow dataset under the newest file's schema."""
    schemas, config = Schemas(), SinkConfig(url="file:///")
    decoder = Decoder(schemas, SchemaOptions(), ("db", "c"))
    generations: list[list[dict[str, Any]]] = [
        [{"_id": n, "a": n, "s": {"x": 1}} for n in range(10)],
        [{"_id": n, "a": n, "b": "new", "s": {"x": 1, "y": 2.5}} for n in range(10, 20)],
        [{"_id": n, "a": "another type", "c": [{"k": n}]} for n in range(20, 30)],
    ]
    for number, documents in enumerate(generations):
        data, offsets = values.as_array([bson.encode(each) for each in documents])
        batch = decoder.decode_documents(data, offsets).batches[0].batch
        file = Collected()
        encoder = open_file("x.parquet", file, schemas.get("db", "c"), config, raw=False)
        encoder.write([batch])
        encoder.close({})
        (tmp_path / f"{number}.parquet").write_bytes(file.data)
    query = f"select _id, a, b, s, c, _cdc_rescued from read_parquet('{tmp_path}/*.parquet', union_by_name = true)"
    rows = duckdb.execute(f"{query} order by _id").fetchall()
    assert rows[5] == (5, 5, None, {"x": 1, "y": None}, None, None)
    assert rows[15] == (15, 15, "new", {"x": 1, "y": 2.5}, None, None)
    assert rows[25] == (25, None, None, None, [{"k": 25}], '{"a":"another type"}')
    newest = pq.read_schema(tmp_path / "2.parquet")
    table = pyarrow.dataset.dataset(tmp_path, schema=newest).to_table().sort_by("_id")
    assert table.column("b").to_pylist() == [None] * 10 + ["new"] * 10 + [None] * 10
    assert table.column("s").to_pylist()[5] == {"x": 1, "y": None}
    assert table.column("a").to_pylist()[20:] == [None] * 10
    unified = pa.unify_schemas(
        [pq.read_schema(tmp_path / f"{n}.parquet") for n in (0, 2)], promote_options="permissive"
    )
    assert [field.name for field in unified if not field.name.startswith("_cdc_")] == ["_id", "a", "s", "b", "c"]
