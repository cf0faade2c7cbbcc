"""The state is lost or restored from a backup: the engine stays exact, or stops with a remedy."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tests.exploring import rare
from tests.integration.harness import Engine, EngineConfig, Lake, catch_up, run_engine

Client = MongoClient[dict[str, Any]]
OLDER = "it was lost, or is older than the lake"


def landed(lake: Lake) -> dict[str, list[str]]:
    """The tokens of each object; none may be there twice."""
    lake.check_no_token_twice()
    return lake.tokens()


def use_sqlite(config: EngineConfig) -> Path:
    path = config.directory / "state.db"
    config.set("state", url=f"sqlite:///{path}")
    return path


def forget(path: Path) -> None:
    for each in path.parent.glob(f"{path.name}*"):
        each.unlink()


@pytest.mark.parametrize("partition_by", ["hour", rare("day"), rare("collection"), "none"])
@pytest.mark.parametrize("start", ["earliest", "now"])
def test_without_its_state_nothing_is_overwritten_or_left_out(
    mongo: Client, config: EngineConfig, lake: Lake, partition_by: str, start: str
) -> None:
    """With other batch sizes, the same numbers mean other segments, and events in between could be missed."""
    state = use_sqlite(config)
    config.set("sink", partition_by=partition_by, prefix_shards=3)
    mongo[config.name].orders.insert_many([{"n": n} for n in range(500)])
    catch_up(config)
    before = landed(lake)
    assert sum(map(len, before.values())) == 500
    forget(state)
    config.set("source", start=start)
    config.set("batch", rows=77)
    mongo[config.name].orders.insert_many([{"n": n} for n in range(300)])
    done = run_engine(config, "run", "--until-caught-up")
    assert done.returncode == 1, done.stderr
    assert OLDER in done.stderr
    assert "Restore the newest state" in done.stderr
    assert landed(lake) == before


@pytest.mark.parametrize("before", [("none", 0), rare(("collection", 0)), ("day", 3), rare(("hour", 0))], ids=str)
@pytest.mark.parametrize("lost", ["the record", "the last of it"])
def test_objects_under_another_layout_are_found(
    mongo: Client, config: EngineConfig, lake: Lake, before: tuple[str, int], lost: str
) -> None:
    state = use_sqlite(config)
    config.set("sink", partition_by=before[0], prefix_shards=before[1])
    orders = mongo[config.name].orders
    orders.insert_many([{"n": n} for n in range(100)])
    if lost == "the last of it":
        catch_up(config)
        shutil.copy(state, state.with_suffix(".backup"))
        orders.insert_many([{"n": n} for n in range(100)])
    catch_up(config)
    found = landed(lake)
    forget(state)
    if lost == "the last of it":
        shutil.copy(state.with_suffix(".backup"), state)
    config.set("sink", partition_by="hour" if before[0] != "hour" else "none", prefix_shards=2)
    done = run_engine(config, "run", "--until-caught-up")
    assert done.returncode == 1, done.stderr
    assert OLDER in done.stderr
    assert landed(lake) == found


def test_the_sqlite_log_is_lost_between_runs(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """The file itself has an older state."""
    state = use_sqlite(config)
    orders = mongo[config.name].orders
    orders.insert_many([{"n": n} for n in range(100)])
    catch_up(config)
    with Engine(config) as engine:
        orders.insert_many([{"n": n} for n in range(200)])
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] == 200, "the events")
        engine.kill_tree()
    state.with_name(f"{state.name}-wal").unlink()
    found = landed(lake)
    done = run_engine(config, "run", "--until-caught-up")
    assert done.returncode == 1, done.stderr
    assert OLDER in done.stderr
    assert landed(lake) == found
    assert run_engine(config, "state", "show").returncode == 0


@pytest.mark.parametrize("watch", ["collections", "database"])
def test_an_older_state_is_noticed(mongo: Client, config: EngineConfig, lake: Lake, watch: str) -> None:
    state = use_sqlite(config)
    if watch == "database":
        config.set("source", watch=watch, collections=[])
    orders = mongo[config.name].orders
    orders.insert_many([{"n": n} for n in range(100)])
    catch_up(config)
    shutil.copy(state, state.with_suffix(".backup"))
    orders.insert_many([{"n": n} for n in range(900)])
    catch_up(config)
    newest = state.read_bytes()
    before = landed(lake)
    shutil.copy(state.with_suffix(".backup"), state)
    done = run_engine(config, "run", "--until-caught-up")
    assert done.returncode == 1, done.stderr
    assert OLDER in done.stderr
    assert landed(lake) == before
    state.write_bytes(newest)
    orders.insert_many([{"n": n} for n in range(10)])
    catch_up(config)
    assert len(lake.check_no_token_twice()) == 1010


def test_only_the_stream_without_its_record_stops(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    state = use_sqlite(config)
    mongo[config.name].orders.insert_many([{"n": n} for n in range(100)])
    catch_up(config)
    forget(state)
    config.set("source", collections=["orders", "items"])
    with Engine(config) as engine:
        status = engine.wait_for(
            lambda status: (
                {each["status"] for each in status["streams"]} >= {"failed"}
                and any(each["reading"] for each in status["streams"])
            ),
            "one stream to read",
        )
        mongo[config.name]["items"].insert_many([{"n": n} for n in range(50)])
        engine.wait_for(lambda status: sum(each["events_committed"] for each in status["streams"]) == 50, "items")
        assert engine.terminate() == 1
    errors = {each["stream"]: each["error"] for each in status["streams"]}
    assert OLDER in errors[f"{config.name}.orders"]
    assert errors[f"{config.name}.items"] == ""
    assert len(lake.check_no_token_twice()) == 150


def test_a_backfill_without_its_state_is_not_loaded_twice(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    state = use_sqlite(config)
    mongo[config.name].orders.insert_many([{"n": n} for n in range(500)])
    assert run_engine(config, "backfill").returncode == 0
    keys = lake.object_keys()
    forget(state)
    done = run_engine(config, "backfill")
    assert done.returncode == 2, done.stderr
    assert "documents would be loaded twice" in done.stderr
    assert lake.object_keys() == keys
    assert run_engine(config, "backfill", "--restart").returncode == 0
    assert [row["_cdc_op"] for row in lake.rows()].count("loaded") == 1  # it voids the rows of the first
    assert len(lake.rows()) == 1001


@pytest.mark.parametrize("laid_out", ["as before", "otherwise", "beside streams"])
def test_a_split_without_its_record_is_not_loaded_twice(
    mongo: Client, config: EngineConfig, lake: Lake, laid_out: str
) -> None:
    """The plan and the records of the other splits exist."""
    state = use_sqlite(config)
    config.set("backfill", split_size="64KiB", readers=1, max_documents_per_s=1000)
    mongo[config.name].orders.insert_many([{"text": "x" * 1000} for _ in range(1000)])
    command = "backfill"
    if laid_out == "beside streams":
        command = "run"
        config.set("source", start="snapshot")
    with Engine(config, command=command) as engine:
        engine.wait_for(lambda status: bool(status["backfills"] and status["backfills"][0]["splits"]), "a split")
        assert engine.terminate() == 0
    with closing(sqlite3.connect(state, isolation_level=None)) as db:
        of_split = "name = 'position' AND value LIKE '%~%' AND stream LIKE '%~read%'"
        done = f"SELECT stream FROM fields WHERE {of_split} LIMIT 1"
        (split,) = db.execute(done).fetchone()
        for table in ("leases", "fields"):
            db.execute(f"DELETE FROM {table} WHERE stream = ?", (split,))
    keys = lake.object_keys()
    if laid_out == "otherwise":
        config.set("sink", partition_by="none")
    ended = run_engine(config, command)
    assert ended.returncode == 2, ended.stderr
    assert "is older than that: documents would be loaded twice" in ended.stderr
    assert lake.object_keys() == keys


def test_a_backfill_with_an_older_state_is_not_loaded_twice(
    mongo: Client, config: EngineConfig, lake: Lake
) -> None:
    state = use_sqlite(config)
    config.set("batch", rows=100, interval="10m")
    config.set("backfill", max_documents_per_s=2000)
    mongo[config.name].orders.insert_many([{"n": n} for n in range(6000)])
    with Engine(config, command="backfill") as engine:
        engine.wait_for(lambda status: bool(status["backfills"][0]["documents"]), "some")
        shutil.copy(state, state.with_suffix(".backup"))
        shutil.copy(f"{state}-wal", state.with_suffix(".backup-wal"))
        some = len(lake.object_keys())
        while len(lake.object_keys()) < some + 4:
            assert engine.process.poll() is None, engine.log_tail()
        engine.kill_tree()
    forget(state)
    shutil.copy(state.with_suffix(".backup"), state)
    shutil.copy(state.with_suffix(".backup-wal"), f"{state}-wal")
    keys = lake.object_keys()
    done = run_engine(config, "backfill")
    assert done.returncode == 2, done.stderr
    assert "is older than that: documents would be loaded twice" in done.stderr
    assert lake.object_keys() == keys
