"""Running: where a stream starts and ends, what lands, and how it stops."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bson
import duckdb
import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from bench.local import LocalStack, Mongo
from tests.exploring import rare
from tests.integration.harness import Engine, EngineConfig, Lake, catch_up, is_alive, run_engine

Client = MongoClient[dict[str, Any]]
CAPPED_POSITION_LOST = 136


def test_every_kind_of_event_lands_in_its_columns(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    orders = mongo[config.name].orders
    key = ObjectId()
    orders.insert_one({"_id": key, "n": 1, "nested": {"a": [1, 2], "b": "x"}, "tags": ["p", "q"]})
    orders.update_one({"_id": key}, {"$set": {"n": 2}, "$unset": {"tags": ""}})
    orders.replace_one({"_id": key}, {"n": 3})
    orders.delete_one({"_id": key})
    orders.drop()
    catch_up(config)
    rows = lake.rows()
    assert [row["_cdc_op"] for row in rows] == ["insert", "update", "replace", "delete", "drop", "invalidate"]
    insert, update, replace, delete, drop, invalidate = rows
    assert insert["nested"] == {"a": [1, 2], "b": "x"}
    assert insert["tags"] == ["p", "q"]
    assert insert["_id"] == str(key)
    assert insert["_cdc_key"] == json.dumps({"_id": {"$oid": str(key)}}, separators=(",", ":"))
    assert insert["_cdc_cluster_time"] <= insert["_cdc_wall_time"] <= datetime.now(UTC)
    assert json.loads(update["_cdc_update"])["updatedFields"] == {"n": 2}
    assert update["n"] is None  # looked up after the delete
    assert update["_id"] == str(key)
    assert replace["n"] == 3
    assert (delete["_id"], delete["n"], delete["_cdc_key"]) == (str(key), None, insert["_cdc_key"])
    assert drop["_cdc_key"] is None
    assert {(row["_cdc_database"], row["_cdc_collection"]) for row in rows} == {(config.name, "orders")}
    assert invalidate["_cdc_token"] > drop["_cdc_token"]


def test_continues_after_an_invalidate(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    orders = mongo[config.name].orders
    for round_ in range(3):
        orders.insert_one({"round": round_})
        orders.drop()
        catch_up(config)
    with Engine(config) as engine:
        engine.wait_reading()
        orders.insert_one({"round": 3})
        orders.drop()
        orders.insert_one({"round": 4})
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] == 4, "past the drop")
    inserted = [row["round"] for row in lake.rows() if row["_cdc_op"] == "insert"]
    assert inserted == [0, 1, 2, 3, 4]
    lake.check_no_token_twice()


def test_a_split_stream_continues_after_an_invalidate(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    config.set("source", split={"orders": 2})
    orders = mongo[config.name].orders
    for round_ in range(2):
        orders.insert_many([{"_id": f"{round_}-{n}"} for n in range(20)])
        orders.drop()
        catch_up(config)
    rows = lake.rows()
    assert len([row for row in rows if row["_cdc_op"] == "insert"]) == 40
    assert [row["_cdc_op"] for row in rows if row["_cdc_op"] != "insert"] == ["drop", "invalidate"] * 2
    lake.check_no_token_twice()


def test_starts_now(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    config.set("source", start="now")
    orders = mongo[config.name].orders
    orders.insert_one({"n": 1})
    with Engine(config) as engine:
        engine.wait_reading()
        time.sleep(1)
        orders.insert_one({"n": 2})
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] == 1, "the insert")
        assert engine.terminate() == 0
    assert [row["n"] for row in lake.rows()] == [2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_of_its_processes_ends_it_in_order(
    mongo: Client, config: EngineConfig, lake: Lake, number: signal.Signals
) -> None:
    """Sent by service managers, and by terminals that close."""
    mongo[config.name].create_collection("orders")
    with Engine(config) as engine:
        engine.wait_reading()
        mongo[config.name].orders.insert_many([{"n": n} for n in range(500)])
        engine.wait_for(lambda status: status["streams"][0]["events_read"] == 500, "all streams")
        children = engine.template() + engine.pids("reader") + engine.pids("writer")
        os.killpg(engine.process.pid, number)
        if number == signal.SIGHUP:  # the shell reports it, too
            os.killpg(engine.process.pid, number)
        assert engine.end() == 0
        assert '"level":"warning"' not in engine.log()
    assert len(children) >= 3
    assert not any(map(is_alive, children))
    assert len(lake.rows()) == 500


@pytest.mark.parametrize("command", ["run", "backfill"])
def test_an_interrupt_during_startup_leaves_no_process(
    mongo: Client, config: EngineConfig, command: str, tmp_path: Path
) -> None:
    mongo[config.name].orders.insert_one({"n": 1})
    for delay_s in (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2):
        config.set("state", url=f"sqlite:///{tmp_path}/{delay_s}.db")
        with Engine(config, command=command) as engine:
            time.sleep(delay_s)
            children = engine.children()
            with suppress(ProcessLookupError):
                os.killpg(engine.process.pid, signal.SIGINT)
            engine.end(20)
        deadline = time.monotonic() + 10
        while any(map(is_alive, children)):
            assert time.monotonic() < deadline, "processes are left"
            time.sleep(0.05)


def test_the_start_is_kept_even_if_nothing_has_happened_yet(
    mongo: Client, config: EngineConfig, lake: Lake
) -> None:
    config.set("source", start="now")
    catch_up(config)
    mongo[config.name].orders.insert_one({"n": 1})
    catch_up(config)
    assert [row["n"] for row in lake.rows()] == [1]


def test_starts_at_a_time(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    orders = mongo[config.name].orders
    orders.insert_one({"n": 1})
    time.sleep(2)
    at = datetime.now(UTC)
    orders.insert_one({"n": 2})
    config.set("source", start=(at - timedelta(seconds=0.5)).isoformat())
    catch_up(config)
    assert [row["n"] for row in lake.rows()] == [2]


def test_a_committed_token_takes_precedence_over_the_start(
    mongo: Client, config: EngineConfig, lake: Lake
) -> None:
    orders = mongo[config.name].orders
    orders.insert_one({"n": 1})
    catch_up(config)
    orders.insert_one({"n": 2})
    config.set("source", start="now")
    catch_up(config)
    assert [row["n"] for row in lake.rows()] == [1, 2]


def test_a_pipeline_filters_and_may_change(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    orders = mongo[config.name].orders
    config.set("source", pipeline=[{"$match": {"fullDocument.kind": "a"}}])
    orders.insert_many([{"n": n, "kind": "ab"[n % 2]} for n in range(9)])
    catch_up(config)
    config.set("source", pipeline=[{"$match": {"fullDocument.kind": "b"}}])
    orders.insert_many([{"n": n, "kind": "ab"[n % 2]} for n in range(9, 20)])
    catch_up(config)
    assert [row["n"] for row in lake.rows()] == [0, 2, 4, 6, 8, 9, 11, 13, 15, 17, 19]


def test_watches_a_database_and_a_deployment(
    mongo: Client, config: EngineConfig, lake: Lake, tmp_path: Path
) -> None:
    config.set("source", watch="database", collections=[])
    mongo[config.name].a.insert_one({"n": 1})
    mongo[config.name]["odd name/%~="].insert_one({"n": 2})
    catch_up(config)
    keys = lake.object_keys()
    assert [key.split("/cdc_date=")[0] for key in keys] == [
        f"cdc_database={config.name}/cdc_collection=a",
        f"cdc_database={config.name}/cdc_collection=odd%20name%2F%25%7E%3D",
    ]
    whole = EngineConfig(config.stack, tmp_path, f"{config.name}-whole")
    whole.set("source", watch="deployment", collections=[], database="", start="now")
    with Engine(whole) as engine:
        engine.wait_reading()
        time.sleep(1)
        mongo[config.name].a.insert_one({"n": 3})
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] == 1, "the insert")
        assert engine.terminate() == 0
    assert [row["n"] for row in Lake(config.stack, whole.name).rows()] == [3]


@pytest.mark.parametrize("partition_by", ["hour", "day", "collection", "none"])
def test_partitions_and_shards(mongo: Client, config: EngineConfig, lake: Lake, partition_by: str) -> None:
    config.set("sink", partition_by=partition_by, prefix_shards=4)
    mongo[config.name].orders.insert_one({"n": 1})
    now = datetime.now(UTC)
    catch_up(config)
    shard, *rest, name = lake.object_keys()[0].split("/")
    assert 0 <= int(shard, 16) < 4
    directories = [f"cdc_database={config.name}", "cdc_collection=orders"]
    times = [f"cdc_date={now:%Y-%m-%d}", f"cdc_hour={now:%H}"]
    expected = {"hour": directories + times, "day": directories + times[:1], "collection": directories, "none": []}
    assert rest == expected[partition_by]
    seq = int(name.removeprefix(f"{config.name}.orders-").removesuffix(".parquet"))
    assert now.timestamp() - 86400 < seq / 100 < now.timestamp() + 60, "numbering starts at the start time"


def test_a_local_directory_is_a_sink_too(mongo: Client, config: EngineConfig, tmp_path: Path) -> None:
    config.set("sink", url=f"file://{tmp_path}/lake")
    config.set("state", url=f"sqlite:///{tmp_path}/state.db")
    mongo[config.name].orders.insert_many([{"n": n} for n in range(1000)])
    catch_up(config)
    query = f"select count(*), count(distinct _cdc_token), sum(n) from '{tmp_path}/lake/**/*.parquet'"
    assert duckdb.execute(query).fetchall() == [(1000, 1000, 499500)]
    assert not list((tmp_path / "lake").rglob(".*"))


def test_the_footer_contains_the_position(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    import pyarrow.parquet as pq

    mongo[config.name].orders.insert_many([{"n": n} for n in range(10)])
    catch_up(config)
    (key,) = lake.object_keys()
    with config.stack.s3.filesystem().open(f"{config.stack.bucket}/{config.name}/{key}") as file:
        facts = {name.decode(): value.decode() for name, value in pq.ParquetFile(file).metadata.metadata.items()}
    (tokens,) = lake.tokens().values()
    assert facts["headrace.stream"] == f"{config.name}.orders"
    assert key.endswith(f"-{facts['headrace.seq']:0>12}.parquet")
    found = [bson.decode(bytes.fromhex(facts[f"headrace.{each}_token"])) for each in ("first", "last")]
    assert found == [{"_data": tokens[0]}, {"_data": tokens[-1]}]
    assert facts["headrace.schema_version"] == "1"
    assert facts["headrace.version"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_engine(
    mongo: Client, config: EngineConfig, lake: Lake, number: signal.Signals
) -> None:
    config.set("batch", interval="1h")
    with Engine(config) as engine:
        engine.wait_reading()
        mongo[config.name].orders.insert_many([{"n": n} for n in range(100)])
        engine.wait_for(lambda status: status["streams"][0]["events_read"] == 100, "the inserts")
        assert not lake.object_keys()
        engine.process.send_signal(number)
        assert engine.end() == 0
    assert len(lake.check_no_token_twice()) == 100
    shown = json.loads(run_engine(config, "state", "show").stdout)
    assert (shown["events"], shown["intents"], shown["held_by"]) == (100, 0, "")


def test_a_second_signal_ends_the_engine_at_once(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    with Engine(config) as engine:
        engine.wait_reading()
        engine.wait_for(lambda status: bool(engine.pids("writer")), "a writer")
        config.stack.s3.process.pause()
        try:
            mongo[config.name].orders.insert_many([{"n": n} for n in range(100)])
            engine.wait_for(lambda status: status["streams"][0]["segments_in_flight"] > 0, "a segment")
            engine.process.send_signal(signal.SIGTERM)
            engine.wait_for(lambda status: status["draining"], "draining")
            engine.process.send_signal(signal.SIGTERM)
            assert engine.end(20) == 1
        finally:
            config.stack.s3.process.resume()
    assert "a second signal arrived during the drain" in engine.log()
    catch_up(config)
    assert len(lake.check_no_token_twice()) == 100


def test_idle_streams_advance(mongo: Client, config: EngineConfig) -> None:
    mongo[config.name].orders.insert_one({"n": 1})
    catch_up(config)
    before = json.loads(run_engine(config, "state", "show").stdout)
    for n in range(20):
        mongo[config.name].other.insert_one({"n": n})
    catch_up(config)
    after = json.loads(run_engine(config, "state", "show").stdout)
    assert after["seq"] == before["seq"]
    assert after["position"] > before["position"]


@pytest.mark.parametrize("policy", ["fail", "snapshot", rare("now")])
def test_history_lost(tmp_path: Path, stack: LocalStack, unique: str, policy: str) -> None:
    """An oplog of 1 MiB rolls over between two runs."""
    small = Mongo(tmp_path, oplog_mib=1, cache_gib=0.25, options=["--syncdelay", "1"])
    small.start()
    try:
        config = EngineConfig(stack, tmp_path, unique, {"source": {"uri": small.uri, "on_history_lost": policy}})
        lake = Lake(stack, unique)
        with Client(small.uri) as client:
            orders = client[unique].orders
            orders.insert_one({"n": 1})
            catch_up(config)
            orders.insert_one({"n": 5})
            checked = run_engine(config, "check")
            assert (checked.returncode, "1 where they stand" in checked.stdout) == (0, True), checked.stdout
            _turn_oplog_over(client)
            checked = run_engine(config, "check")
            assert checked.returncode == (1 if policy == "fail" else 0), checked.stdout
            assert "no longer be in the oplog" in checked.stdout
            if policy == "fail":
                done = run_engine(config, "run", "--until-caught-up")
                assert done.returncode == 1
                for said in (done.stderr, checked.stdout):  # the remedy without loss comes first
                    advice = said.replace("\\", "").partition("source.on_history_lost = ")[2]
                    assert advice.startswith('"snapshot"')
                    assert '"now" loads nothing' in advice
                    assert "caused by" not in said
                return
            with Engine(config) as engine:
                engine.wait_for(lambda status: "history lost" in engine.log(), "the lost history")
                engine.wait_reading()
                time.sleep(2)
                orders.insert_one({"n": 2})
                engine.wait_for(lambda status: status["streams"][0]["events_committed"] == 1, "later events")
                if policy == "snapshot":
                    engine.wait_for(lambda status: status["backfills"][0]["documents"] >= 2, "the second load")
                assert engine.terminate() == 0
            found = sorted((row["n"], row["_cdc_op"]) for row in lake.rows() if row["_cdc_op"] != "loaded")
            captured = [(1, "insert"), (2, "insert")]
            loaded = [(1, "read"), (5, "read")] if policy == "snapshot" else []
            assert [each for each in found if each != (2, "read")] == sorted(captured + loaded)
    finally:
        small.members[0].kill()


def _turn_oplog_over(client: Client) -> None:
    """Write until the oldest entry of the oplog is newer than the start."""
    first = client.local["oplog.rs"].find_one(sort=[("$natural", 1)])
    assert first is not None
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        client.filler.filler.insert_many([{"x": "x" * 100_000} for _ in range(50)])
        try:
            oldest = client.local["oplog.rs"].find_one(sort=[("$natural", 1)])
        except OperationFailure as error:  # the first entry was removed while being read
            if error.code != CAPPED_POSITION_LOST:
                raise
            continue
        assert oldest is not None
        if oldest["ts"] > first["ts"]:
            time.sleep(2)
            return
    raise AssertionError("the oplog does not turn over")


def test_health_ready_metrics_status(mongo: Client, config: EngineConfig) -> None:
    with Engine(config) as engine:
        engine.wait_reading()
        mongo[config.name].orders.insert_many([{"n": n} for n in range(7)])
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] == 7, "the inserts")
        assert engine.get("/health") == (200, "ok\n")
        assert engine.get("/ready") == (200, "ok\n")
        assert engine.get("/nowhere")[0] == 404
        code, metrics = engine.get("/metrics")
        assert code == 200
        assert f'headrace_events_committed_total{{stream="{config.name}.orders"}} 7.0' in metrics
        assert "headrace_memory_limit_bytes 1.073741824e+09" in metrics
        secrets = (config.stack.s3.secret_key,)
        for path in ("/metrics", "/status"):
            assert not any(secret in engine.get(path)[1] for secret in secrets)


def test_nothing_is_left_behind(mongo: Client, config: EngineConfig) -> None:
    """Shared memory has no name, whichever process ends."""

    def named() -> set[Path]:
        # Other tests that run now have semaphores there.
        return {each for each in Path("/dev/shm").iterdir() if not each.name.startswith("sem.")}

    before = named()
    with Engine(config) as engine:
        engine.wait_reading()
        mongo[config.name].orders.insert_many([{"n": n} for n in range(1000)])
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] > 0, "events")
        assert named() <= before
        children = engine.kill_supervisor()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()], "orphans must exit by themselves"
    assert named() <= before
