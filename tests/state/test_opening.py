"""A store that is opened patiently retries within the retry budget."""

from __future__ import annotations

import threading

import pytest

from bench.local.servers import Valkey, wait_until
from engine.backfill.plans import Plans
from engine.config import RetryConfig, Secret
from engine.config.tree import StateConfig
from engine.core.backfill import Plan, Selection
from engine.errors import TransientError
from engine.state.opening import open_retrying
from engine.state.seam import StateStore
from tests.conditions import out_of_memory

PLAN = Plan("p", "shop", "orders", Selection(), "", "", (), 0, 0, 1.0)


def opened(server: Valkey, attempts: int) -> StateStore:
    retry = RetryConfig(max_attempts=attempts, initial_delay=0.01, max_delay=0.05)  # type: ignore[arg-type]
    return open_retrying(StateConfig(url=Secret(server.url)), None, retry)


def test_a_plan_is_kept_when_the_store_is_back(server: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    plans = Plans(opened(server, 10_000))
    assert plans.read_all() == []
    kept: list[Plan] = []
    thread = threading.Thread(target=lambda: kept.append(plans.save(PLAN, None)))
    with out_of_memory(server):
        thread.start()
        wait_until(lambda: caplog.text.count("the state store is away") > 3, "several attempts")
    thread.join()
    assert kept == plans.read_all() == [PLAN]


def test_the_wait_for_the_store_is_limited(server: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    plans = Plans(opened(server, 4))
    with out_of_memory(server), pytest.raises(TransientError, match="raise its maxmemory"):
        plans.save(PLAN, None)
    assert caplog.text.count("the state store is away") == 3
