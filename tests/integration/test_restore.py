"""``restore``: collections as they stood, compared with what a plain driver had copied at that cluster time."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bson
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.errors import DuplicateKeyError

from bench.decode import Schemas
from bench.local import LocalStack
from engine.backfill.plans import Plans
from engine.commands.restore import Options, restore
from engine.config import load
from engine.core.backfill import Plan, Selection
from engine.core.naming import object_key, partition_of
from engine.core.restoring import parse_moment
from engine.decode.decoder import Decoder
from engine.decode.schema import SchemaOptions
from engine.errors import ConfigError, HeadraceError
from engine.failpoints import VARIABLE
from engine.lake.documents.comparison import normal_form
from engine.state.opening import open_store
from tests.decode.lake import document_tree
from tests.exploring import explored
from tests.integration import workload
from tests.integration.harness import Engine, EngineConfig, catch_up

Client = MongoClient[dict[str, Any]]
RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
LAST = {"at": ""}


def write(client: Client, database: str, rng: random.Random, keys: list[Any], count: int) -> None:
    """A seeded workload of all types on the collection ``orders``; ``keys`` are those that are there."""
    for number in range(count):
        with contextlib.suppress(DuplicateKeyError):
            workload.write(client[database]["orders"], keys, rng, number)


def copied(client: Client, database: str) -> tuple[str, list[bytes]]:
    """The collection as a plain driver reads it in a snapshot, and the snapshot's cluster time."""
    with client.start_session(snapshot=True) as session:
        found = raws(client[database].get_collection("orders", RAW).find({}, session=session))
        at: Any = session._snapshot_time  # what the server chose
    return f"{at.time}:{at.inc}", found


def raws(found: Any) -> list[bytes]:
    """Documents as the server sent them."""
    return [bytes(each.raw) for each in found]


def trees(documents: list[bytes]) -> dict[str, Any]:
    """Documents by ``_id``, as far as the columns tell, by the tests' own code."""
    found = {}
    for each in documents:
        tree = document_tree(each)
        key = repr(tree.get("_id") if isinstance(tree, dict) else each)
        assert key not in found
        found[key] = tree
    return found


def ids(documents: list[bytes]) -> set[bytes]:
    return {bson.encode({"": each.get("_id")}) for each in (RawBSONDocument(doc, RAW) for doc in documents)}


def restored(config: EngineConfig, to: Path | str, **options: Any) -> dict[str, Any]:
    """Restore in this process; the report."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = restore(load(config.path), Options(str(to), **options), as_json=True)
    assert code == 0
    found: dict[str, Any] = json.loads(printed.getvalue())
    return found


def by_command(config: EngineConfig, *arguments: str, point: str = "") -> subprocess.CompletedProcess[str]:
    """Restore as a process, which is killed at a point."""
    command = [sys.executable, "-m", "engine", "restore", "--config", str(config.path), *arguments]
    return subprocess.run(command, env=os.environ | {VARIABLE: point}, capture_output=True, text=True, check=False)


def in_file(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        data = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read() or b""
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        found.append(data[at : at + size])
        at += size
    return found


def in_server(client: Client, database: str, collection: str) -> list[bytes]:
    return raws(client[database].get_collection(collection, RAW).find())


@pytest.mark.parametrize("raw", [False, True], ids=["columns", "raw"])
def test_three_moments_of_a_live_workload(
    raw: bool, stack: LocalStack, tmp_path: Path, unique: str, mongo: Client
) -> None:
    """With post-images, every moment comes back; with raw, to the byte."""
    mongo[unique].create_collection("orders", changeStreamPreAndPostImages={"enabled": True})
    rng, keys = random.Random(7), list[Any]()
    write(mongo, unique, rng, keys, 100)  # what the backfill reads
    source = {"full_document": "required", "start": "snapshot"}
    config = EngineConfig(stack, tmp_path, unique, {"source": source, "schema": {"raw": raw}})
    moments = []
    with Engine(config) as engine:
        engine.wait_for(loaded, "loaded")
        for _ in range(3):
            write(mongo, unique, rng, keys, 80)
            moments.append(copied(mongo, unique))
        write(mongo, unique, rng, keys, 20)
        assert engine.terminate() == 0
    catch_up(config)
    for number, (at, expected) in enumerate(moments):
        path = tmp_path / f"{number}.bson.zst"
        report = restored(config, path, at=parse_moment(at))
        assert report["documents"] == len(expected)
        assert bool(report["untold"]) is not raw
        doubts = {name for name in ("pending", "missing", "newer", "unknown") if report[name]["count"]}
        assert doubts <= {"newer"}  # a backfill read them less than a minute before they changed
        assert not report["notes"]
        check(in_file(path), expected, raw=raw)
    at, expected = moments[1]
    done = by_command(config, "--at", at, "--to", stack_uri(stack), "--as", f"{unique}.copy")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["documents"] == len(expected)
    check(in_server(mongo, unique, "copy"), expected, raw=raw)
    assert "headrace.restores" not in mongo[unique].list_collection_names()


def loaded(status: dict[str, Any]) -> bool:
    found = status.get("backfills") or []
    return bool(found) and all(each["splits"] == each["splits_total"] for each in found)


def stack_uri(stack: LocalStack) -> str:
    assert stack.mongo is not None
    return stack.mongo.uri


def check(found: list[bytes], expected: list[bytes], *, raw: bool) -> None:
    if raw:
        assert sorted(found) == sorted(expected)
        return
    assert trees(found) == trees(expected)
    assert {normal_form(each) for each in found} == {normal_form(each) for each in expected}


def test_the_newest_of_documents_that_were_looked_up(
    stack: LocalStack, tmp_path: Path, unique: str, mongo: Client
) -> None:
    """Exact for the newest moment; of an earlier one it is said which documents may be newer."""
    rng, keys = random.Random(9), list[Any]()
    config = EngineConfig(stack, tmp_path, unique)
    write(mongo, unique, rng, keys, 100)
    mongo[unique]["orders"].insert_one({"_id": "twice", "n": 0})
    mongo[unique]["orders"].update_one({"_id": "twice"}, {"$set": {"n": 1}})
    earlier, expected = copied(mongo, unique)
    mongo[unique]["orders"].update_one({"_id": "twice"}, {"$set": {"n": 2}})
    newest = copied(mongo, unique)[1]
    mongo[unique]["other"].insert_one({})  # the stream must pass the last event
    catch_up(config)
    report = restored(config, tmp_path / "newest.bson.zst")
    assert report["exact"]
    assert "no backfill" in report["notes"][0]
    check(in_file(tmp_path / "newest.bson.zst"), newest, raw=False)
    report = restored(config, tmp_path / "earlier.bson.zst", at=parse_moment(earlier))
    assert '"twice"' in report["newer"]["examples"]
    assert not report["exact"]
    found, wanted = trees(in_file(tmp_path / "earlier.bson.zst")), trees(expected)
    newer = {key for key in wanted if found[key] != wanted[key]}
    assert found.keys() == wanted.keys()
    assert len(newer) <= report["newer"]["count"]


def test_killed_half_way_it_continues(stack: LocalStack, tmp_path: Path, unique: str, mongo: Client) -> None:
    """Into a server and into a file: nothing is missing and nothing is there twice."""
    documents = [{"_id": number, "text": "x" * 50} for number in range(3000)]
    mongo[unique]["orders"].insert_many(documents)
    mongo[unique]["other"].insert_one({})  # the stream must pass the last event
    config = EngineConfig(stack, tmp_path, unique)
    catch_up(config)
    name = f"{unique}.copy"
    for to in (stack_uri(stack), str(tmp_path / "f.bson.zst")):
        for point in ("restore_written:20", "restore_written:5"):
            assert by_command(config, "--to", to, "--as", name, point=point).returncode == -signal.SIGKILL
        with pytest.raises(ConfigError, match="an unfinished restore"):
            restored(config, to, name=name, at=1)
        assert restored(config, to, name=name)["documents"] == 3000
    expected = [bson.encode(each) for each in documents]
    assert sorted(in_server(mongo, unique, "copy")) == sorted(expected)
    assert sorted(in_file(tmp_path / "f.bson.zst")) == sorted(expected)
    assert {path.name for path in tmp_path.iterdir()} == {"f.bson.zst", config.path.name}
    refusals(config, unique, tmp_path / "f.bson.zst", stack_uri(stack))


def refusals(config: EngineConfig, name: str, file: Path, uri: str) -> None:
    """A target that is in use is left alone, and so on."""
    wrong: list[tuple[str, dict[str, Any], str]] = [
        (uri, {"name": f"{name}.copy"}, "the collection is not empty"),
        (str(file), {}, "the file exists"),
        ("here.bson", {}, r"ends in \.bson\.zst"),
        ("${NO_SUCH}", {}, "is not set"),
        (str(file), {"at": parse_moment("2100-01-01T00:00:00Z")}, "has committed up to"),
        (str(file), {"collection": f"{name}.none"}, "knows no stream"),
        (str(file), {"collection": "none"}, "is not <database>.<collection>"),
        (uri, {"name": f"{name}.sys$tem"}, "must not contain"),
    ]
    for to, options, words in wrong:
        with pytest.raises(HeadraceError, match=words):
            restored(config, to, **options)
    assert restored(config, uri, name=f"{name}.copy", drop=True)["documents"] == 3000
    assert restored(config, file, drop=True)["documents"] == 3000


@explored("takes minutes")
def test_a_collection_several_times_larger_than_memory(tmp_path: Path) -> None:
    """400,000 documents, 420 MB, in a lake that is made here; the rows may take 16 MiB of memory."""
    config = tmp_path / "large.toml"
    config.write_text(
        f'[source]\nuri = "mongodb://none"\ndatabase = "shop"\ncollections = ["orders"]\n'
        f'[sink]\nurl = "file://{tmp_path}/lake"\n[state]\nurl = "sqlite:///{tmp_path}/state.db"\n'
        f'[memory]\nlimit = "64MiB"\n[telemetry]\nlisten = ""\n'
    )
    plan = Plan("p", "shop", "orders", Selection(), None, None, (), 0, 0, 0.0, finished=1.0, begun=1)
    store = open_store(load(config).state)
    Plans(store).save(plan, None)
    store.close()
    options, schemas, rng = SchemaOptions(), Schemas(), random.Random(1)
    count = 0
    for seq in range(40):
        found = [bson.encode({"_id": count + n, "text": rng.randbytes(500).hex(), "n": n}) for n in range(10_000)]
        count += len(found)
        offsets = np.cumsum([0, *map(len, found)], dtype=np.int64)
        (decoded,) = (
            Decoder(schemas, options, ("shop", "orders"))
            .decode_documents(b"".join(found), offsets, 1 << 32)
            .batches
        )
        key = object_key("shop.orders~readp-000000", seq, "shop", "orders", partition_of(1 << 32, "hour"))
        path = tmp_path / "lake" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        names = pa.repeat(pa.scalar("shop"), len(found)), pa.repeat(pa.scalar("orders"), len(found))
        batch = pa.Table.from_batches([decoded.batch])
        for name, values in zip(("_cdc_database", "_cdc_collection"), names, strict=True):
            batch = batch.set_column(batch.schema.get_field_index(name), name, values)
        pq.write_table(batch, path, compression="zstd", row_group_size=5000)
    to = tmp_path / "orders.bson.zst"
    command = [sys.executable, "-m", "engine", "restore", "--config", str(config), "--to", str(to)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = 0
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, psutil.Process(process.pid).memory_info().rss)
            time.sleep(0.05)
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
    assert report["documents"] == count
    print(f"{report['bytes']:,} bytes of BSON, at most {peak:,} bytes of memory")
    assert peak < 2**28
