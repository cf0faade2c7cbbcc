"""A configuration for each test, and its lake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.local import LocalStack, Mongo
from tests.integration.harness import EngineConfig, Lake


@pytest.fixture
def config(stack: LocalStack, tmp_path: Path, unique: str) -> EngineConfig:
    return EngineConfig(stack, tmp_path, unique)


@pytest.fixture
def lake(config: EngineConfig) -> Lake:
    return Lake(config.stack, config.name)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongo]:
    """A replica set with authentication."""
    mongo = Mongo(tmp_path_factory.mktemp("guarded"), password="right")
    mongo.start()
    yield mongo
    mongo.members[0].kill()


@pytest.fixture(scope="module")
def latest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongo]:
    """A server that splits large events."""
    mongo = Mongo(tmp_path_factory.mktemp("latest"), latest=True, cache_gib=0.5)
    mongo.start()
    yield mongo
    mongo.stop()
