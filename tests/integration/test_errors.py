"""Errors at startup name operation, cause and remedy, exit with code 2, and show no password."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from bench.local import LocalStack, Mongo
from tests.integration.harness import Engine, EngineConfig, run_engine

Client = MongoClient[dict[str, Any]]
PASSWORD = "s3cret/p@ss"
QUOTED = "s3cret%2Fp%40ss"


@pytest.fixture
def config(stack: LocalStack, tmp_path: Path, unique: str) -> EngineConfig:
    return EngineConfig(stack, tmp_path, unique)


@pytest.fixture(scope="module")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongo]:
    """A mongod without a replica set."""
    mongo = Mongo(tmp_path_factory.mktemp("standalone"), standalone=True)
    mongo.start()
    yield mongo
    mongo.members[0].kill()


def refused(config: EngineConfig, *words: str, code: int = 2) -> str:
    """Run an engine, which must exit with this code and print these words."""
    done = run_engine(config)
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    for secret in (PASSWORD, QUOTED, config.stack.s3.secret_key):
        assert secret not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def given_up(config: EngineConfig, *words: str) -> None:
    """It must use all its attempts, log each, and exit with code 1 and these words."""
    config.set("retry", max_attempts=4)
    said = refused(config, *words, code=1)
    *attempts, last = [line for line in said.splitlines() if words[0] in line]
    assert json.loads(last)["message"] == "ended with an error"
    assert len([line for line in attempts if '"level":"warning"' in line]) >= 3, said


def test_unknown_key_and_wrong_type_are_reported_together(config: EngineConfig) -> None:
    config.set("source", databse="x")
    config.set("batch", rows="many")
    refused(
        config,
        "2 problem(s)",
        "source.databse: unknown key; did you mean 'database'?",
        "batch.rows: got 'many'; expected an integer of at least 1",
    )


def test_standalone_mongod(config: EngineConfig, standalone: Mongo) -> None:
    config.set("source", uri=standalone.uri)
    refused(config, "standalone mongod", "--replSet")


def test_wrong_password(config: EngineConfig, guarded: Mongo) -> None:
    config.set("source", uri=guarded.uri.replace("root:right", f"root:{QUOTED}"))
    refused(config, "Authentication failed", "Check the user, the password and authSource")


def test_no_right_to_read(config: EngineConfig, guarded: Mongo) -> None:
    with Client(guarded.uri) as client:
        client.admin.command("createUser", "poor", pwd=PASSWORD, roles=[{"role": "read", "db": "elsewhere"}])
        client[config.name].orders.insert_one({})
    uri = guarded.uri.replace("root:right", f"poor:{QUOTED}").replace("?", "?authSource=admin&")
    config.set("source", uri=uri, start="now")
    said = refused(
        config,
        "not authorized",
        f"Grant the user find and changeStream on the database {config.name} (the role read",
    )
    assert "{" not in json.loads(said.splitlines()[-1])["cause"]
    for text in (said, run_engine(config, "check").stdout):
        assert "there is no" not in text, "it may only not be visible"
        assert "cannot determine whether orders exists" in text


def test_unreachable_mongod(config: EngineConfig) -> None:
    config.set("source", uri=f"mongodb://u:{QUOTED}@127.0.0.1:1/?replicaSet=rs0&serverSelectionTimeoutMS=300")
    given_up(config, "connect to MongoDB", "Connection refused", "Is MongoDB up")


def test_unreachable_mongod_while_planning(config: EngineConfig) -> None:
    config.set("source", uri=f"mongodb://u:{QUOTED}@127.0.0.1:1/?replicaSet=rs0&serverSelectionTimeoutMS=300")
    config.set("retry", max_attempts=3)
    done = run_engine(config, "backfill")
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("MongoDB is away") == 2, done.stderr


def test_a_name_that_does_not_resolve(config: EngineConfig) -> None:
    """It may later: an engine must not need to be started again for that."""
    config.set("source", uri=f"mongodb+srv://u:{QUOTED}@nowhere.invalid/?connectTimeoutMS=500")
    given_up(config, "The name cannot be resolved")
    assert run_engine(config, "check").returncode == 1


def test_an_invalid_address(config: EngineConfig) -> None:
    config.set("source", uri=f"mongodb://u:{QUOTED}@127.0.0.1:99999/")
    refused(config, "Port must be", "Check source.uri")


_BUG = """
import s3fs.core

async def broken(*arguments, **named):
    raise TypeError("a bug of ours")

s3fs.core.S3FileSystem._pipe_file = broken
"""


def test_a_bug_in_the_sink_is_reported_as_one(mongo: Client, config: EngineConfig, tmp_path: Path) -> None:
    """With a traceback, and not as a store that is down. ``sitecustomize`` brings it into the processes."""
    mongo[config.name].orders.insert_one({"n": 1})
    (tmp_path / "sitecustomize.py").write_text(_BUG)
    config.set("retry", max_attempts=2)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with Engine(config, "--until-caught-up", environment={"PYTHONPATH": path}) as engine:
        assert engine.end() == 1
        assert "TypeError: a bug of ours" in engine.log()
        assert '"a bug in the engine"' in engine.log()
        assert '"stream stopped"' in engine.log()
        assert "process failed" not in engine.log()
        assert "stream failed; starting over" not in engine.log()


def test_missing_bucket(config: EngineConfig) -> None:
    config.set("sink", url="s3://no-such-bucket/x")
    refused(config, "s3://no-such-bucket/x", "Create the bucket")


def test_wrong_s3_key(config: EngineConfig) -> None:
    config.set("sink.s3", access_key="nobody", secret_key=PASSWORD)
    refused(config, "[sink.s3]", "credentials")


@pytest.mark.usefixtures("impatient_s3")
def test_unreachable_s3(config: EngineConfig) -> None:
    config.set("sink.s3", endpoint_url="http://127.0.0.1:1")
    given_up(config, "Is the store up, and is sink.s3.endpoint_url right?")


def test_unreachable_state_store(config: EngineConfig) -> None:
    config.set("state", url=f"redis://u:{QUOTED}@127.0.0.1:1/0")
    given_up(config, "Is the state store up, and is state.url right?")


def test_wrong_state_password(config: EngineConfig) -> None:
    config.set("state", url=f"redis://u:{QUOTED}@127.0.0.1:{config.stack.valkey.port}/0")
    refused(config, "Check the user and the password in state.url")


def test_memory_limit_too_small(config: EngineConfig) -> None:
    config.set("memory", limit="256MiB")
    refused(config, "256MiB cannot hold this configuration", "1 reader(s)", "total", "Raise memory.limit")


def test_more_parts_than_readers(config: EngineConfig) -> None:
    config.set("source", split={"orders": 9})
    refused(config, "source.split needs 9 readers", "Raise source.max_readers")


def test_pipeline_with_a_stage_that_does_not_exist(config: EngineConfig) -> None:
    config.set("source", pipeline=[{"$mtach": {"x": 1}}])
    refused(config, "$mtach", "Check source.pipeline")


def test_port_in_use(config: EngineConfig) -> None:
    config.set("telemetry", listen=f"127.0.0.1:{config.stack.valkey.port}")
    refused(config, "Address already in use", "telemetry.listen")


def test_missing_file(config: EngineConfig) -> None:
    config.path.unlink()
    refused(config, "No such file", "--config")


def test_check_reports_all_at_once(config: EngineConfig) -> None:
    config.set("source", uri=f"mongodb://u:{QUOTED}@127.0.0.1:1/?replicaSet=rs0&serverSelectionTimeoutMS=300")
    config.set("sink", url="s3://no-such-bucket/x")
    config.set("memory", limit="1MiB")
    done = run_engine(config, "check")
    assert done.returncode == 2
    assert [line.split()[0] for line in done.stdout.splitlines() if line[:2] in ("ok", "fa")] == [
        "ok",
        "failed",
        "failed",
        "failed",
    ]
    assert QUOTED not in done.stdout


def test_check_distinguishes_unavailable_from_misconfigured(config: EngineConfig) -> None:
    config.set("source", uri="mongodb://127.0.0.1:1/?replicaSet=rs0&serverSelectionTimeoutMS=300")
    assert run_engine(config, "check").returncode == 1
