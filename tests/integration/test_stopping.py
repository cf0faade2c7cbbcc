"""SIGTERM while everything is at work: the engine ends within ``shutdown.timeout``, and each event lands once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from bench.local import LocalStack
from bench.workloads import insert
from tests.integration.harness import Engine, EngineConfig, Lake, PlainStream, catch_up, operation_time
from tests.integration.s3_proxy import Answer, S3Proxy

Client = MongoClient[dict[str, Any]]
TIMEOUT_S = 25


@pytest.fixture
def slow(stack: LocalStack) -> Iterator[S3Proxy]:
    """S3, half a second away."""
    proxy = S3Proxy(stack.s3.port)
    proxy.rule = lambda *_: Answer(wait_s=0.5)
    yield proxy
    proxy.shutdown()
    proxy.server_close()
