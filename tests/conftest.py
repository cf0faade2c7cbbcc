"""Fixtures: local servers, started once per process, and what each test needs on them."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from pymongo import MongoClient

from bench.local import LocalStack
from bench.local.servers import Valkey
from engine.source.session import connect
from tests.exploring import EXPLORE
from tests.nessie import RestCatalog, nessie

# The same examples in every run, so that a failure is due to the change; EXPLORE=1 looks for new ones.
settings.register_profile("repeatable", derandomize=not EXPLORE, deadline=None)
settings.load_profile("repeatable")

_numbers = itertools.count()

# Without compiled modules, every engine that the tests start would compile the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Nor do users run them unbuffered, which hides what cannot be flushed at the end.
os.environ.pop("PYTHONUNBUFFERED", None)

# Background jobs of a shell ignore SIGINT. The engines would inherit that, and tests interrupt them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow files first, so that no worker is left with one when the others are done."""
    items.sort(key=lambda item: "integration" not in item.path.parts and "sim" not in item.path.parts)


@pytest.fixture(scope="session")
def stack() -> Iterator[LocalStack]:
    """One replica set member, one S3 server, one Valkey."""
    with LocalStack() as servers:
        yield servers


@pytest.fixture(scope="session")
def rest_catalog(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestCatalog]:
    """An Iceberg REST catalog for the tables in this stack's bucket."""
    with nessie(stack, tmp_path_factory.mktemp("nessie")) as catalog:
        yield catalog


@pytest.fixture
def impatient_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    """The S3 client tries once, here and in engines; by default it does not give up for about ten seconds."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture
def unique() -> str:
    """A name that no other test uses, for databases and for prefixes in the bucket and the state store."""
    return f"t{next(_numbers)}"


@pytest.fixture
def client(stack: LocalStack) -> Iterator[MongoClient[dict[str, Any]]]:
    """A client with the engine's own options."""
    assert stack.mongo is not None
    made = connect(stack.mongo.uri)
    yield made
    made.close()


@pytest.fixture
def mongo(stack: LocalStack) -> Iterator[MongoClient[dict[str, Any]]]:
    """A plain client of the replica set."""
    assert stack.mongo is not None
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongo.uri)
    yield client
    client.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    """A Redis server for one test, which may do anything with it."""
    made = Valkey(tmp_path)
    made.start()
    yield made
    made.process.kill()


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Spark in this process; skips without Java."""
    if shutil.which("java") is None:
        pytest.skip("Java is not installed")
    pyspark = pytest.importorskip("pyspark.sql")
    warehouse = tmp_path_factory.mktemp("spark")
    made = (
        pyspark.SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", "1")
        .config("spark.sql.warehouse.dir", str(warehouse))
        .getOrCreate()
    )
    yield made
    made.stop()
