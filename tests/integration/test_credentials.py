"""The S3 key changes while the engine runs, in a file of the AWS credential chain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from pymongo import MongoClient

from bench.local import LocalStack, S3Server
from bench.local.servers import wait_until
from tests.integration.harness import Engine, EngineConfig

Client = MongoClient[dict[str, Any]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[S3Server]:
    server = S3Server(tmp_path)
    server.start()
    server.make_bucket("lake")
    yield server
    server.process.kill()


@pytest.mark.usefixtures("impatient_s3")
def test_the_engine_continues_with_the_new_key(
    mongo: Client, config: EngineConfig, stack: LocalStack, store: S3Server, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    store.write_credentials(file)
    config.set("sink.s3", endpoint_url=store.endpoint_url, access_key="", secret_key="")
    config.set("retry", max_attempts=1000)
    config.set("writers", processes=1)
    orders = mongo[config.name].orders
    with Engine(config, environment={"AWS_SHARED_CREDENTIALS_FILE": str(file)}) as engine:
        for size in (100, 7 * 2**20):  # objects of one request, and of several parts
            engine.wait_reading()
            before = engine.wait_for(lambda status: all(each["ready"] for each in status["processes"]), "ready")
            store.process.kill()
            store.renew_secret()
            store.start()
            said = engine.log().count("They worked before")
            orders.insert_many([{"text": "x" * size} for _ in range(2)])
            wait_until(lambda said=said: engine.log().count("They worked before") > said, "the refusal")  # type: ignore[misc]
            store.write_credentials(file)
            engine.wait_for(
                lambda status: status["streams"][0]["events_committed"] == orders.count_documents({}), "all events"
            )
            after = engine.status()
            assert after is not None
            assert [each["pid"] for each in after["processes"]] == [each["pid"] for each in before["processes"]]
        assert engine.terminate() == 0
    with duckdb.connect() as database:
        database.register_filesystem(store.filesystem())
        files = f"read_parquet('s3://lake/{config.name}/**/*.parquet')"
        landed = database.execute(f"select count(*), count(distinct _cdc_token) from {files}").fetchone()
    assert landed == (4, 4)
