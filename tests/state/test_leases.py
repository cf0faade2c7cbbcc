"""Taking the leases of engines that have died, and not of those that may be alive."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.config import Secret
from engine.config.tree import StateConfig
from engine.owner import this_owner
from engine.state.leases import take
from engine.state.opening import open_store
from engine.state.seam import Acquired, HeldElsewhere, StateStore

TTL_S = 600.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    """A store that another owner may have used."""
    made = open_store(StateConfig(url=Secret(f"sqlite:///{tmp_path}/state.db")))
    yield made
    made.close()


def dead_owner() -> str:
    """The owner id of a process that has exited."""
    script = "from engine.owner import this_owner; print(this_owner())"
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_free_lease_is_taken(store: StateStore, caplog: pytest.LogCaptureFixture) -> None:
    found = take(store, "s", "host/1", TTL_S)
    assert isinstance(found, Acquired)
    assert (found.lease.owner, found.lease.epoch, found.fields) == ("host/1", 1, {})
    assert not caplog.records


def test_leases_and_records_of_dead_owners_are_taken(store: StateStore, caplog: pytest.LogCaptureFixture) -> None:
    dead = dead_owner()
    before = store.acquire("s", dead, TTL_S)
    assert isinstance(before, Acquired)
    store.write(before.lease, {"x": "1"})
    with caplog.at_level("INFO", "headrace"):
        found = take(store, "s", "host/2", TTL_S)
    assert isinstance(found, Acquired)
    assert (found.lease.owner, found.lease.epoch, found.fields) == ("host/2", 2, {"x": "1"})
    (record,) = caplog.records
    assert record.message == "took over from a dead engine"
    assert record.fields == {"stream": "s", "holder": dead}  # type: ignore[attr-defined]


@pytest.mark.parametrize("holder", ["this process", "elsewhere/x/1/1"])
def test_an_owner_that_may_be_alive_keeps_the_lease(store: StateStore, holder: str) -> None:
    holder = this_owner() if holder == "this process" else holder
    store.acquire("s", holder, TTL_S)
    found = take(store, "s", "host/2", TTL_S)
    assert isinstance(found, HeldElsewhere)
    assert found.holder == holder


def test_an_owner_that_came_first_keeps_the_lease(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another engine takes over the lease while we determine that its owner is dead."""
    store.acquire("s", dead := dead_owner(), TTL_S)

    def is_dead(owner: str) -> bool:
        assert owner == dead
        store.acquire("s", "host/3", TTL_S, replacing=dead)
        return True

    monkeypatch.setattr("engine.state.leases.is_certainly_dead", is_dead)
    with caplog.at_level("INFO", "headrace"):
        found = take(store, "s", "host/2", TTL_S)
    assert isinstance(found, HeldElsewhere)
    assert found.holder == "host/3"
    assert not caplog.records
