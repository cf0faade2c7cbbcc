"""Credentials change while an engine runs, in a file of the AWS chain or in files that the configuration names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import pytest
import redis
from pymongo import MongoClient

from bench.local import LocalStack, Mongo, S3Server
from bench.local.servers import Valkey, wait_until
from tests.exploring import EXPLORE
from tests.integration.harness import Engine, EngineConfig, kill_all
from tests.integration.test_tables import FORMATS, Read

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


class Rotating:
    """Servers of one test, each with a secret in a file that the configuration names.

    State: the secrets so far, and the one of each key that the server accepts now.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._ends = ExitStack()
        self._stack = LocalStack(directory / "servers")
        self.mongo = self._stack.mongo = Mongo(directory, password="mongo-0ld", cache_gib=0.25, oplog_mib=990)
        self.valkey = self._stack.valkey = Valkey(directory, options=["--requirepass", "redis-0ld"])
        self.s3 = self._stack.s3
        self.secrets: list[str] = []
        self._now: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.mongo.start()
        self._ends.callback(self.mongo.stop)
        self.valkey.process.start()
        self._ends.callback(self.valkey.stop)
        self.s3.start()
        self._ends.callback(self.s3.process.kill)
        self.s3.make_bucket(self._stack.bucket)
        self._now = {
            "source.uri": self.mongo.password,
            "state.url": "redis-0ld",
            "sink.s3.secret_key": self.s3.secret_key,
        }
        for key in self._now:
            self.write(key)
        file = f"${{file:{self._directory}/"
        port = self.mongo.ports[0]
        self.config = EngineConfig(self._stack, self._directory, self._name)
        self.config.set("source", uri=f"mongodb://root:{file}source.uri}}@127.0.0.1:{port}/?replicaSet=rs0")
        self.config.set("state", url=f"redis://:{file}state.url}}@127.0.0.1:{self.valkey.port}/0")
        self.config.set("sink.s3", secret_key=f"{file}sink.s3.secret_key}}")
        self.config.set("retry", max_attempts=1000)
        self.config.set("writers", processes=1)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ends.close()

    def write(self, key: str) -> None:
        """Put the secret that the server accepts into its file."""
        self.secrets.append(self._now[key])
        (self._directory / key).write_text(self._now[key] + "\n")

    def change(self, key: str) -> None:
        """Give the server another secret, and end the connections made with the former."""
        match key:
            case "source.uri":
                with MongoClient[dict[str, Any]](self.mongo.uri) as client:
                    client.admin.command("updateUser", "root", pwd="mongo-n3w")
                self.mongo.password = self._now[key] = "mongo-n3w"
                self.mongo.members[0].stop()
                self.mongo.members[0].start()
            case "state.url":
                with redis.Redis(port=self.valkey.port, password=self._now[key]) as client:
                    client.config_set("requirepass", "redis-n3w")
                    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                self._now[key] = "redis-n3w"
            case "sink.s3.secret_key":
                self.s3.process.kill()
                self.s3.renew_secret()
                self.s3.start()
                self._now[key] = self.s3.secret_key

    def insert(self) -> None:
        """Ten documents."""
        with MongoClient[dict[str, Any]](self.mongo.uri) as client:
            client[self._name].orders.insert_many([{"text": "x" * 100} for _ in range(10)])

    def config_with(self, format_: str) -> EngineConfig:
        """The configuration, with tables in this format."""
        catalog = {"type": "sql", "uri": f"sqlite:///{self._directory}/catalog.db"}
        only = {"catalog": catalog} if format_ == "iceberg" else {}
        self.config.set("table", format=format_, interval="300ms", **only)
        self.config.set("mirror", enabled=True, interval="500ms")
        return self.config

    def in_tables(self) -> int:
        """Events in the changelog table, none of them twice, as soon as the mirror has as many documents."""
        read = Read(self.config)
        tokens = read.tokens("orders", missing_ok=True)
        assert len(tokens) == len(set(tokens))
        return len(tokens) if tokens and read.has("orders", "", len(tokens)) else 0

    def landed(self) -> tuple[int, int]:
        """Rows in the lake, and distinct tokens."""
        with duckdb.connect() as database:
            database.register_filesystem(self.s3.filesystem())
            files = f"read_parquet('s3://lake/{self._name}/**/cdc_date=*/*.parquet')"
            query = f"select count(*), count(distinct _cdc_token) from {files}"
            found = database.execute(query).fetchone()
        assert found is not None
        return int(found[0]), int(found[1])


@pytest.mark.usefixtures("impatient_s3")
@pytest.mark.parametrize("format_", FORMATS if EXPLORE else ["delta"])
def test_secrets_in_files_are_changed_while_the_engine_runs(format_: str, tmp_path: Path, unique: str) -> None:
    """Those of MongoDB, of Redis and of S3, one after the other; then processes that started with the old die."""
    with Rotating(tmp_path, unique) as servers, Engine(servers.config_with(format_)) as engine:
        engine.wait_reading()
        for number, key in enumerate(("source.uri", "state.url", "sink.s3.secret_key"), 1):
            before = engine.log().count("has changed")
            servers.change(key)
            servers.insert()  # or else nothing is uploaded
            wait_until(lambda: engine.get("/ready")[0] == 503, f"the refusal of {key}")
            servers.write(key)
            events = 10 * number
            engine.wait_for(
                lambda status, events=events: status["streams"][0]["events_committed"] == events,  # type: ignore[misc]
                f"going on after {key}",
            )
            assert engine.log().count("has changed") > before
            wait_until(lambda events=events: servers.in_tables() == events, f"the table going on after {key}")  # type: ignore[misc]
        kill_all([*engine.pids("reader"), *engine.pids("writer")])
        servers.insert()
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] == 40, "the last events")
        wait_until(lambda: servers.in_tables() == 40, "the last events in the table")
        assert engine.terminate() == 0
        assert [each for each in servers.secrets if each in engine.log()] == []
        assert servers.landed() == (40, 40)
