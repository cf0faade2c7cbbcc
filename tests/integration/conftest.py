"""A configuration for each test, and the lake that it makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.local import LocalStack
from tests.integration.harness import EngineConfig, Lake


@pytest.fixture
def config(stack: LocalStack, tmp_path: Path, unique: str) -> EngineConfig:
    return EngineConfig(stack, tmp_path, unique)


@pytest.fixture
def lake(config: EngineConfig) -> Lake:
    return Lake(config.stack, config.name)
