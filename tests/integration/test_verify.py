"""``verify``: clean on a hostile workload while it goes on, and it finds what is planted.

One lake is captured for all tests, with the events of three collections in one stream. Each test has a copy of it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pymongo import MongoClient

from bench.local import LocalStack
from engine.commands.verify import Options, verify
from engine.config import load
from engine.core.position import Position
from engine.core.records import read_record
from engine.errors import ConfigError
from engine.lake.against_source import sides
from engine.state.opening import open_store
from engine.state.seam import Acquired
from tests.integration.harness import Engine, EngineConfig, Lake, catch_up, operation_time, run_engine

NAME = "verified"
WRITES_S = 4
# How long the server keeps the past: 300 s by default, which the tests might need on a slow machine.
HISTORY_S = 3600


@dataclass
class Copy:
    """A copy of the lake and its state, with a configuration of its own."""

    directory: Path
    config: Path

    @property
    def lake(self) -> Path:
        """Where the objects are."""
        return self.directory / "lake"

    def objects(self, collection: str = "plain") -> list[Path]:
        """The objects of a collection, in the order of segments."""
        found = self.lake.rglob(f"cdc_collection={collection}/**/*.parquet")
        return sorted(found, key=lambda path: path.name)

    def segments(self) -> dict[str, list[Path]]:
        """The objects of each segment, by file name, in the order of segments."""
        found: dict[str, list[Path]] = {}
        for path in sorted(self.lake.rglob("*.parquet"), key=lambda path: path.name):
            found.setdefault(path.name, []).append(path)
        return found

    def rewrite(self, path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
        """Change the rows of an object."""
        table = change(pq.ParquetFile(path).read())
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)

    def rewrite_footer(self, path: Path, metadata: dict[bytes, bytes]) -> None:
        """Change what the footer says."""
        self.rewrite(path, lambda table: table.replace_schema_metadata(table.schema.metadata | metadata))

    def remove_row(self, path: Path, row: int) -> None:
        """Remove a row of an object."""
        self.rewrite(path, lambda table: pa.concat_tables([table.slice(0, row), table.slice(row + 1)]))

    def rows_of(self, key: str, operation: str) -> list[tuple[Path, int]]:
        """The objects and the numbers of the rows of events, in order."""
        return [
            (path, number)
            for path in self.objects()
            for number, row in enumerate(pq.ParquetFile(path).read(columns=["_cdc_key", "_cdc_op"]).to_pylist())
            if row["_cdc_op"] == operation and json.loads(row["_cdc_key"] or "{}").get("_id") == key
        ]

    def verify(self, capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[int, dict[str, Any], list[Any]]:
        """Exit code, summary and findings."""
        capsys.readouterr()
        code = verify(load(self.config), Options(**options), as_json=True)
        *found, summary = map(json.loads, capsys.readouterr().out.splitlines())
        return code, summary, found


@pytest.fixture(scope="module")
def captured(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """The lake that all tests copy; ``older.db`` is its state from some segments before."""
    directory = tmp_path_factory.mktemp("verified")
    config = EngineConfig(
        stack,
        directory,
        NAME,
        {
            "source": {"watch": "database", "collections": [], "full_document": "update_lookup"},
            "sink": {"url": f"file://{directory}/lake", "prefix_shards": 2},
            "state": {"url": f"sqlite:///{directory}/state.db"},
        },
    )
    assert stack.mongo is not None
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.workload", stack.mongo.uri, NAME, "11", "wild", "wilder"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with Engine(config) as engine, MongoClient[dict[str, Any]](stack.mongo.uri) as mongo:
        mongo.admin.command("setParameter", 1, minSnapshotHistoryWindowInSeconds=HISTORY_S)
        engine.wait_reading()
        write_plainly(mongo[NAME]["plain"], WRITES_S)
        live = run_engine(config, "verify")
        assert live.returncode == 0, live.stdout + live.stderr[-2000:]
        assert json.loads(live.stdout.splitlines()[-1])["collections"][f"{NAME}.wild"]["source"] > 50
        writer.communicate(b"")
        engine.terminate()
    backup(directory / "state.db", directory / "older.db")
    with MongoClient[dict[str, Any]](stack.mongo.uri) as mongo:
        mongo[NAME]["plain"].update_one({"_id": "last"}, {"$set": {"last": True}}, upsert=True)
    catch_up(config)
    return Copy(directory, config.path)


def write_plainly(collection: Any, seconds: float) -> None:
    """Documents that are inserted, updated and deleted, over some segments."""
    deadline, number = time.monotonic() + seconds, 0
    while time.monotonic() < deadline or number < 40:
        collection.insert_one({"_id": f"d{number}", "n": number, "text": f"text {number}", "list": [number, 1]})
        collection.insert_one({"_id": f"gone{number}"})
        collection.update_one({"_id": f"d{number // 2}"}, {"$inc": {"n": 1000}})
        collection.delete_one({"_id": f"gone{number}"})
        number += 1
        time.sleep(0.05)


def backup(path: Path, to: Path) -> None:
    """A copy of an SQLite file that nothing writes."""
    for each in path.parent.glob(f"{path.name}*"):
        shutil.copy(each, each.with_name(each.name.replace(path.name, to.name)))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine runs that could advance the lake."""
    monkeypatch.setattr(sides, "ADVANCE_S", 0.1)


@pytest.fixture
def copy(captured: Copy, tmp_path: Path) -> Iterator[Copy]:
    shutil.copytree(captured.directory, tmp_path / "copy")
    config = tmp_path / "copy" / captured.config.name
    config.write_text(config.read_text().replace(str(captured.directory), str(tmp_path / "copy")))
    yield Copy(tmp_path / "copy", config)
    shutil.rmtree(tmp_path / "copy")


# --- the lake by itself ----------------------------------------------------------------------------------


def an_object_is_deleted(copy: Copy) -> None:
    several = next(paths for paths in copy.segments().values() if len(paths) > 1)
    several[0].unlink()


def a_segment_is_deleted(copy: Copy) -> None:
    for path in list(copy.segments().values())[2]:
        path.unlink()


def the_first_segment_is_deleted(copy: Copy) -> None:
    for path in next(iter(copy.segments().values())):
        path.unlink()


def the_last_segment_is_deleted(copy: Copy) -> None:
    for path in list(copy.segments().values())[-1]:
        path.unlink()


def everything_is_deleted(copy: Copy) -> None:
    shutil.rmtree(copy.lake)
    copy.lake.mkdir()


def an_object_is_copied_under_another_number(copy: Copy) -> None:
    path = copy.objects()[1]
    number = int(path.stem.rpartition("-")[2])
    shutil.copy(path, path.with_name(path.name.replace(f"{number:012d}", f"{number + 1:012d}")))


def an_object_is_copied_into_another_hour(copy: Copy) -> None:
    path = copy.objects()[1]
    target = path.parent.with_name("cdc_hour=25")
    target.mkdir()
    shutil.copy(path, target)


def an_object_is_copied_into_another_collection(copy: Copy) -> None:
    path = copy.objects()[1]
    target = Path(str(path).replace("cdc_collection=plain", "cdc_collection=other"))
    target.parent.mkdir(parents=True)
    shutil.copy(path, target)


def an_object_is_copied_into_another_shard(copy: Copy) -> None:
    path = copy.objects()[1]
    shard = path.relative_to(copy.lake).parts[0]
    target = copy.lake / {"0000": "0001", "0001": "0000"}[shard] / path.relative_to(copy.lake / shard)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)


def an_object_is_copied_under_a_name_of_its_own(copy: Copy) -> None:
    path = copy.objects()[1]
    shutil.copy(path, path.with_name("copy.parquet"))


def an_object_is_copied_without_its_suffix(copy: Copy) -> None:
    """pyarrow and Spark read all files of a directory."""
    path = copy.objects()[1]
    shutil.copy(path, path.with_suffix(""))


def a_row_has_another_time(copy: Copy) -> None:
    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index("_cdc_timestamp")
        return table.set_column(at, table.schema.field(at), pc.add(table.column(at), 1))

    copy.rewrite(copy.objects()[1], change)


def a_row_is_removed(copy: Copy) -> None:
    copy.rewrite(copy.objects()[1], lambda table: table.slice(1))


def a_row_is_doubled(copy: Copy) -> None:
    copy.rewrite(copy.objects()[1], lambda table: pa.concat_tables([table.slice(0, 1), table]))


def rows_change_places(copy: Copy) -> None:
    path = next(path for path in copy.objects() if pq.ParquetFile(path).metadata.num_rows > 1)
    copy.rewrite(path, lambda table: table.take(list(range(table.num_rows))[::-1]))


def a_row_names_another_segment(copy: Copy) -> None:
    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index("_cdc_seq")
        return table.set_column(at, table.schema.field(at), pc.add(table.column(at), 1))

    copy.rewrite(copy.objects()[1], change)


def a_footer_has_another_range(copy: Copy) -> None:
    earlier = pq.ParquetFile(copy.objects()[0]).metadata.metadata[b"headrace.first_token"]
    for path in list(copy.segments().values())[3]:
        copy.rewrite_footer(path, {b"headrace.first_token": earlier})


def a_footer_ends_too_early(copy: Copy) -> None:
    path = next(path for path in copy.objects()[1:] if pq.ParquetFile(path).metadata.num_rows > 1)
    earlier = pq.ParquetFile(path).metadata.metadata[b"headrace.first_token"]
    for each in copy.segments()[path.name]:
        copy.rewrite_footer(each, {b"headrace.last_token": earlier})


def a_byte_is_damaged(copy: Copy) -> None:
    path = copy.objects()[1]
    group = pq.ParquetFile(path).metadata.row_group(0)
    tokens = next(
        each for n in range(group.num_columns) if (each := group.column(n)).path_in_schema == "_cdc_token"
    )
    data = bytearray(path.read_bytes())
    data[tokens.data_page_offset + tokens.total_compressed_size - 3] ^= 0x10
    path.write_bytes(data)


def a_footer_is_damaged(copy: Copy) -> None:
    path = copy.objects()[1]
    path.write_bytes(path.read_bytes()[:-10])


def the_state_is_an_older_one(copy: Copy) -> None:
    for each in copy.directory.glob("state.db*"):
        each.unlink()
    backup(copy.directory / "older.db", copy.directory / "state.db")


def the_state_is_gone(copy: Copy) -> None:
    for each in copy.directory.glob("state.db*"):
        each.unlink()


PLANTED: dict[Callable[[Copy], None], set[str]] = {
    an_object_is_deleted: {"object_missing", "rows_lost"},
    a_segment_is_deleted: {"segment_missing", "rows_lost"},
    the_first_segment_is_deleted: {"segment_missing", "rows_lost"},
    the_last_segment_is_deleted: {"segment_missing", "rows_lost"},
    everything_is_deleted: {"segment_missing"},
    an_object_is_copied_under_another_number: {"misplaced"},
    an_object_is_copied_into_another_hour: {"misplaced", "object_doubled", "token_twice"},
    an_object_is_copied_into_another_collection: {"misplaced", "object_doubled", "token_twice"},
    an_object_is_copied_into_another_shard: {"object_doubled", "token_twice"},
    an_object_is_copied_under_a_name_of_its_own: {"foreign"},
    an_object_is_copied_without_its_suffix: {"foreign"},
    a_row_has_another_time: {"wrong_stamp"},
    a_row_is_removed: {"rows_lost"},
    a_row_is_doubled: {"rows_lost", "token_twice"},
    rows_change_places: {"token_order"},
    a_row_names_another_segment: {"wrong_stamp"},
    a_footer_has_another_range: {"token_order"},
    a_footer_ends_too_early: {"token_outside"},
    a_byte_is_damaged: {"unreadable"},
    a_footer_is_damaged: {"unreadable"},
    the_state_is_an_older_one: {"segment_beyond"},
    the_state_is_gone: {"no_record"},
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_what_is_planted_in_the_lake_is_found(
    plant: Callable[[Copy], None], copy: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(copy)
    code, summary, found = copy.verify(capsys, lake_only=True)
    assert set(summary["differences"]) >= PLANTED[plant], (summary, found)
    assert code == 1


def test_what_is_not_of_the_lake_is_ignored(copy: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    objects = sum(map(len, copy.segments().values()))
    for name in (
        "_headrace/x.json",
        "readme.md",
        "other/part-0.parquet",
        "cdc_database=x/cdc_collection=y/_SUCCESS",
    ):
        (copy.lake / name).parent.mkdir(parents=True, exist_ok=True)
        (copy.lake / name).write_text("not ours")
    code, summary, found = copy.verify(capsys, lake_only=True)
    assert (code, found) == (0, [])
    assert summary["lake"]["objects"] == objects


def test_a_window_leaves_out_what_has_expired(copy: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    """As a lifecycle rule would leave it: the first segments are gone."""
    first, second, *_ = copy.segments().values()
    since = max(pc.max(pq.ParquetFile(path).read().column("_cdc_cluster_time")).as_py() for path in second)
    for path in first:
        path.unlink()
    code, _, found = copy.verify(capsys, lake_only=True, since=since.isoformat())
    assert (code, found) == (0, [])


def test_a_report_for_a_terminal(copy: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    a_row_is_removed(copy)
    assert verify(load(copy.config), Options(lake_only=True, examples=1), as_json=False) == 1
    shown = capsys.readouterr().out
    for words in ("objects with fewer or more rows", "rows, and was written with", "there are differences"):
        assert words in shown


# --- against the source ----------------------------------------------------------------------------------


def test_nothing_is_found_in_a_whole_lake(copy: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    code, summary, found = copy.verify(capsys, collections=["plain"])
    assert (code, found, summary["differences"]) == (0, [], {})
    compared = summary["collections"][f"{NAME}.plain"]
    # The source is read as of a time just before the last event, with which the last document came.
    assert compared["source"] == compared["lake"] - 1 >= 40


@pytest.mark.parametrize("since", [None, "2020-01-01T00:00:00Z"])
def test_an_altered_row_is_a_different_document(
    since: str | None, copy: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    ((path, row),) = copy.rows_of("d39", "insert")

    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index("text")
        values = table.column(at).to_pylist()
        values[row] = "something else"
        return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))

    copy.rewrite(path, change)
    code, summary, (found,) = copy.verify(capsys, collections=["plain"], since=since)
    assert (code, summary["differences"]) == (1, {"document_different": 1})
    assert (found["key"], found["what"]) == ('"d39"', "it differs in text")
    assert (found["lake"], found["source"]) == ('{"text": "something else"}', '{"text": "text 39"}')


@pytest.mark.parametrize(
    ("operation", "key", "kind"),
    [
        ("insert", "d39", "document_missing"),
        ("delete", "gone7", "document_extra"),
        ("update", "d3", "document_different"),
    ],
)
def test_an_event_that_is_gone_is_found_in_its_document(
    operation: str, key: str, kind: str, copy: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, row in reversed(copy.rows_of(key, operation)):
        copy.remove_row(path, row)
    code, summary, found = copy.verify(capsys, collections=["plain"])
    assert code == 1
    assert [each["key"] for each in found if each["kind"] == kind] == [json.dumps(key)]
    assert summary["differences"][kind] == 1


def test_a_document_changed_in_the_source_alone(
    copy: Copy, mongo: MongoClient[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The lake is told to have passed a time by which there were changes that it does not have."""
    plain = mongo[NAME]["plain"]
    plain.update_one({"_id": "d1"}, {"$set": {"text": "new"}})
    plain.insert_one({"_id": "new"})
    plain.delete_one({"_id": "d2"})
    try:
        assert copy.verify(capsys, collections=["plain"])[0] == 0, "as of the time that the lake has reached"
        reached(copy, mongo)
        code, summary, found = copy.verify(capsys, collections=["plain"])
    finally:
        plain.update_one({"_id": "d1"}, {"$set": {"text": "text 1"}})
    assert code == 1
    assert {each["kind"]: each["key"] for each in found} == {
        "document_different": '"d1"',
        "document_missing": '"new"',
        "document_extra": '"d2"',
    }
    assert summary["differences"] == dict.fromkeys(("document_different", "document_extra", "document_missing"), 1)


def reached(copy: Copy, mongo: MongoClient[dict[str, Any]] | None, back_s: int = 0) -> None:
    """Move the stream's position in the state to the present, or to some time before where it is."""
    store = open_store(load(copy.config).state)
    ((stream, (fields, _)),) = store.read_all().items()
    position = read_record(fields).position
    assert position is not None
    stamp = operation_time(mongo) if mongo is not None else None
    moved = (stamp.time << 32) + stamp.inc + 1 if stamp else position.time - (back_s << 32)
    acquired = store.acquire(stream, "test", 60)
    assert isinstance(acquired, Acquired)
    store.write(acquired.lease, {"position": msgspec.json.encode(Position(position.token, moved)).decode()})
    store.release(acquired.lease)
    store.close()


def test_a_lake_that_is_too_far_behind_is_refused_with_a_remedy(
    copy: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    reached(copy, None, back_s=2 * HISTORY_S)
    with pytest.raises(ConfigError, match=re.escape("Start the engine, or run it with --until-caught-up")):
        copy.verify(capsys, collections=["plain"])
    a_row_is_removed(copy)
    code, summary, _ = copy.verify(capsys, collections=["plain"])
    assert (code, summary["differences"]) == (1, {"rows_lost": 2}), "what has been found is reported nonetheless"
    assert "was not compared" in summary["notes"][0]


def test_with_the_state_in_the_lake_on_s3(
    stack: LocalStack,
    mongo: MongoClient[dict[str, Any]],
    unique: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And with a capped collection, which the server does not read as of a time."""
    mongo[unique].create_collection("capped", capped=True, size=2**20)
    for name in ("orders", "capped"):
        mongo[unique][name].insert_many([{"_id": n, "n": n} for n in range(100)])
    config = EngineConfig(stack, tmp_path, unique, {"state": {"url": "lake", "prefix": "headrace"}})
    config.set("source", collections=["orders", "capped"])
    catch_up(config)
    there = Copy(tmp_path, config.path)
    marker = f"{unique}/cdc_database={unique}/cdc_collection=orders/"  # as consoles make them
    stack.s3.filesystem().call_s3("put_object", Bucket=stack.bucket, Key=marker, Body=b"")
    code, summary, _ = there.verify(capsys)
    assert (code, list(summary["collections"])) == (0, [f"{unique}.orders"])
    (note,) = summary["notes"]
    assert f"{unique}.capped was not compared: it is a capped collection" in note
    lake = Lake(stack, unique)
    (key,) = [key for key in lake.object_keys() if key.endswith(".parquet") and "=orders/" in key]
    lake.remove(key)
    code, summary, _ = there.verify(capsys, lake_only=True)
    assert (code, summary["differences"]) == (1, {"segment_missing": 1})


def test_what_was_loaded_after_the_streams_had_stopped(
    mongo: MongoClient[dict[str, Any]],
    config: EngineConfig,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lake has it from a time that no stream has passed: that is no difference, and it is told."""
    monkeypatch.setattr(sides, "ADVANCE_S", 1)  # how long the streams are given to advance
    config.set("source", start="now")
    orders = mongo[config.name].orders
    orders.insert_many([{"_id": f"d{n}"} for n in range(6)])
    catch_up(config)
    orders.update_many({}, {"$set": {"n": 1}})
    assert run_engine(config, "backfill").returncode == 0
    for unsettled in (6, 0):
        assert verify(load(config.path), Options(), as_json=True) == 0
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        compared = summary["collections"][f"{config.name}.orders"]
        assert (compared["source"], compared["unsettled"]) == (6, unsettled)
        said = any("or were loaded after what the streams have passed" in each for each in summary["notes"])
        assert said == bool(unsettled)
        orders.insert_one({"_id": unsettled})  # by which the stream passes all that was before
        catch_up(config)


def test_no_protected_value_is_shown(
    stack: LocalStack,
    mongo: MongoClient[dict[str, Any]],
    unique: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nor does one count as a difference, also under a name with a dot; what differs beside it is shown."""
    secret = "a protected value"
    config = EngineConfig(stack, tmp_path, unique, {"state": {"url": "lake"}})
    config.set("sink", url=f"file://{tmp_path}/lake")
    config.set("schema", protect={"orders.customer.email": "hash"}, protect_key="a key of the hashes")
    orders = mongo[unique]["orders"]
    orders.insert_many([{"_id": n, "customer": {"email": secret, "n": n}} for n in range(9)])
    orders.insert_one({"_id": "dotted", "customer.email": secret, "customer": [{"email": secret}]})
    catch_up(config)
    there = Copy(tmp_path, config.path)
    assert there.verify(capsys)[0] == 0
    (path,) = there.objects("orders")
    there.rewrite(path, with_another_number)
    there.remove_row(path, 0)
    code = verify(load(there.config), Options(), as_json=True)
    shown = capsys.readouterr()
    assert code == 1
    found = {each["kind"]: each for each in map(json.loads, shown.out.splitlines()[:-1])}
    assert found["document_different"]["source"] == '{"customer": {"n": 8}}'
    assert found["document_different"]["what"] == "it differs in customer"
    assert "document_missing" in found
    assert secret not in shown.out + shown.err


def with_another_number(table: pa.Table) -> pa.Table:
    """In the last document that has a number in it."""
    index = table.schema.get_field_index("customer")
    values = table.column(index).to_pylist()
    row = max(row for row, value in enumerate(values) if value and value["n"] is not None)
    values[row]["n"] += 100
    return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))
