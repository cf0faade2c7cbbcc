"""The commands ``state export``, ``import`` and ``rewind``."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from pymongo import MongoClient

from bench.local import LocalStack
from tests.integration.harness import Engine, EngineConfig, Lake, PlainStream, catch_up, operation_time, run_engine

Client = MongoClient[dict[str, Any]]


def streams(config: EngineConfig) -> list[dict[str, Any]]:
    """What ``state show`` says."""
    shown = run_engine(config, "state", "show", "--json")
    assert shown.returncode == 0, shown.stderr
    return [line | {"behind_s": None} for line in map(json.loads, shown.stdout.splitlines()) if "stream" in line]


def to_sqlite(config: EngineConfig, name: str = "state.db") -> None:
    config.set("state", url=f"sqlite:///{config.directory}/{name}")


def test_a_state_moves_between_stores(mongo: Client, stack: LocalStack, config: EngineConfig, lake: Lake) -> None:
    """With a finished backfill and a schema; the engine goes on where it was, and a second import is refused."""
    config.set("source", start="snapshot")
    database = mongo[config.name]
    database.orders.insert_many([{"n": n, "ids": [n]} for n in range(50)])
    catch_up(config)
    database.orders.insert_many([{"n": n} for n in range(50)])
    catch_up(config)
    before = streams(config)
    exported = run_engine(config, "state", "export", str(config.directory / "state.jsonl"))
    assert exported.returncode == 0, exported.stderr
    piped = run_engine(config, "state", "export").stdout
    assert piped.splitlines()[1:] == (config.directory / "state.jsonl").read_text().splitlines()[1:]
    head = json.loads(piped.splitlines()[0])
    assert (head["prefix"], head["format"]) == (config.name, 1)
    assert head["sink"].startswith(f"s3://{stack.bucket}/{config.name} ")
    secrets = (config.sections["sink.s3"]["secret_key"], config.sections["sink.s3"]["access_key"])
    assert not any(secret in piped for secret in secrets)
    to_sqlite(config)
    imported = subprocess.run(
        [sys.executable, "-m", "engine", "state", "import", "-", "--config", str(config.path)],
        input=piped,
        capture_output=True,
        text=True,
        check=False,
    )
    assert imported.returncode == 0, imported.stderr
    assert streams(config) == before
    assert run_engine(config, "state", "export").stdout.splitlines()[1:] == piped.splitlines()[1:]
    database.orders.insert_many([{"n": n} for n in range(50)])
    catch_up(config)
    tokens = [row["_cdc_token"] for row in lake.rows() if row["_cdc_op"] == "insert"]
    assert (len(tokens), len(set(tokens))) == (100, 100)
    again = run_engine(config, "state", "import", str(config.directory / "state.jsonl"))
    assert again.returncode == 2
    assert "Nothing was written. With --yes it is replaced" in again.stderr
    assert f"would be replaced: {config.name}.orders" in again.stdout
    assert streams(config)[0]["events"] == 100
    # An export from before is older than the lake, which the next run notices.
    assert run_engine(config, "state", "import", str(config.directory / "state.jsonl"), "--yes").returncode == 0
    older = run_engine(config, "run", "--until-caught-up")
    assert older.returncode == 1
    assert "older than the lake" in older.stderr


def test_nothing_is_imported_or_rewound_under_a_running_engine(mongo: Client, config: EngineConfig) -> None:
    mongo[config.name].orders.insert_one({"n": 1})
    with Engine(config) as engine:
        engine.wait_for(lambda status: sum(each["events_committed"] for each in status["streams"]) == 1, "events")
        exported = run_engine(config, "state", "export", str(config.directory / "state.jsonl"))
        assert "streams are held by" in exported.stderr
        for command in (
            ["import", str(config.directory / "state.jsonl"), "--yes"],
            ["rewind", "--to", "2020-01-01T00:00:00Z", "--yes"],
        ):
            done = run_engine(config, "state", *command)
            assert done.returncode == 2, done.stdout
            assert "Stop every engine first" in done.stderr
        assert engine.terminate() == 0


def test_a_rewound_stream_reads_again_to_new_keys(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    start = operation_time(mongo)
    plain = PlainStream(mongo, config.name, start)
    orders = mongo[config.name].orders
    orders.insert_many([{"_id": n + 0.5, "n": n} for n in range(20)])
    catch_up(config)
    middle = operation_time(mongo)
    orders.insert_many([{"_id": n + 0.25, "n": n} for n in range(20)])
    orders.update_many({}, {"$set": {"m": 1}})
    catch_up(config)
    before = lake.tokens()
    tokens = sorted(plain.stop())
    assert len(tokens) == 80
    stands = streams(config)[0]

    late = run_engine(config, "state", "rewind", "--to", "2990-01-01T00:00:00Z", "--stream", stands["stream"])
    assert late.returncode == 2
    assert "which is not later" in late.stderr
    beyond = run_engine(config, "state", "rewind", "--to", "1970-01-02T00:00:00Z", "--yes")
    assert beyond.returncode == 2
    assert "the oplog reaches back to" in beyond.stderr
    shown = run_engine(config, "state", "rewind", "--to", tokens[29])
    assert shown.returncode == 0, shown.stderr
    assert "Nothing has been written" in shown.stdout
    assert streams(config)[0] == stands
    assert run_engine(config, "state", "rewind", "--to", tokens[29], "--yes").returncode == 0
    orders.insert_one({"_id": 1, "n": 100})
    catch_up(config)
    after = lake.tokens()
    assert {key: after[key] for key in before} == before
    again = [token for key in after.keys() - before.keys() for token in after[key]]
    assert sorted(again)[:-1] == tokens[30:]
    assert {lake.footer(key)["headrace.line"] for key in after.keys() - before.keys()} == {"1"}
    assert {lake.footer(key)["headrace.line"] for key in before} == {"0"}
    assert streams(config)[0]["seq"] > stands["seq"]

    # By a time, once more; then the state is rebuilt, which does not take this for lost events.
    moment = f"{middle.as_datetime():%Y-%m-%dT%H:%M:%SZ}"
    assert run_engine(config, "state", "rewind", "--to", moment, "--yes").returncode == 0
    catch_up(config)
    third = lake.tokens()
    assert {lake.footer(key)["headrace.line"] for key in third.keys() - after.keys()} == {"2"}
    assert set(tokens[20:]) <= {token for key in third.keys() - after.keys() for token in third[key]}
    assert "lacks nothing" in run_engine(config, "state", "rebuild").stdout
    to_sqlite(config, "other.db")
    assert run_engine(config, "state", "rebuild", "--yes").returncode == 0
    catch_up(config)
    assert lake.tokens() == third
