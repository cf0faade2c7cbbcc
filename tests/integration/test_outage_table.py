"""The table in configs/OPERATIONS.md of servers that hang or go down is true."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from bench.local import LocalStack
from engine.commands.reference import OPERATIONS
from tests.exploring import explored
from tests.integration.harness import Engine
from tests.integration.outage_table import (
    AT_S,
    SERVERS,
    WAYS,
    Row,
    broken,
    log_messages,
    observed,
    read_table,
    running,
    tried,
    wait_well,
)

CASES = list(itertools.product(SERVERS, WAYS))
TABLE = read_table(OPERATIONS.read_text())


@pytest.fixture(scope="module")
def servers() -> Iterator[LocalStack]:
    """Servers for this module, which it may break."""
    with LocalStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def engine(servers: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running(servers, tmp_path_factory.mktemp("outages"), "t0") as made:
        yield made


def test_the_table_is_complete() -> None:
    assert list(TABLE) == [(*case, at_s) for case in CASES for at_s in AT_S]


def is_as_told(found: Row, server: str, way: str, at_s: int) -> bool:
    """Whether the table agrees; when a wait turns into an error, and into which one, depends on the drivers."""
    told = TABLE[server, way, at_s]
    problems = {essence(row.problem) for case, row in TABLE.items() if case[0] == server}
    same = (found.health, found.ready, found.state) == (told.health, told.ready, told.state)
    return same and essence(found.problem) in problems


def essence(problem: str) -> str:
    return problem.partition(":")[0]


@pytest.mark.parametrize(("server", "way"), CASES)
def test_what_is_reported_within_a_minute(servers: LocalStack, engine: Engine, server: str, way: str) -> None:
    log_from = engine.log_path.stat().st_size
    with broken(servers, server, way):
        deadline = time.monotonic() + 60
        while not is_as_told(found := observed(engine, log_from), server, way, AT_S[1]):
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        assert "streams are held up" in log_messages(engine, log_from)
    wait_well(engine)
    assert b'"streams resumed"' in engine.log_path.read_bytes()[log_from:]


@explored("takes as long as it says")
@pytest.mark.parametrize(("server", "way"), CASES)
def test_at_each_of_its_times(servers: LocalStack, engine: Engine, server: str, way: str) -> None:
    found = tried(engine, servers, server, way, AT_S)
    assert all(is_as_told(row, server, way, at_s) for row, at_s in zip(found, AT_S, strict=True)), found
