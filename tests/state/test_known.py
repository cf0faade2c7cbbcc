"""Every store notices what it has lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from bench.local import LocalStack
from engine.config import Secret
from engine.config.tree import StateConfig
from engine.errors import LeaseLostError, StateLostError
from engine.state.opening import open_store
from engine.state.seam import HeldElsewhere, StateStore
from tests.state.stores import TTL_S, acquired, every_act


class Tables:
    """Direct access to the records and shared documents of a store, to damage them."""

    def __init__(self, name: str, stack: LocalStack, directory: Path, prefix: str) -> None:
        self.path = directory / "state.db"
        self.redis = redis.Redis(port=stack.valkey.port) if name == "redis" else None
        self.prefix = prefix
        url = stack.valkey.url if self.redis else f"sqlite:///{self.path}"
        self._config = StateConfig(url=Secret(url), prefix=prefix)
        self._opened: list[StateStore] = []

    def open(self) -> StateStore:
        self._opened.append(open_store(self._config))
        return self._opened[-1]

    def close(self) -> None:
        for store in self._opened:
            store.close()
        if self.redis:
            self.redis.close()

    def remove_record(self, *, with_lease: bool = True) -> None:
        if self.redis:
            keys = [f"{self.prefix}:{{s}}:record", f"{self.prefix}:{{s}}:lease"]
            self.redis.delete(*keys[: 1 + with_lease])
        else:
            self._sql("DELETE FROM leases", "DELETE FROM fields")

    def remove_shared(self, name: str) -> None:
        if self.redis:
            self.redis.delete(f"{self.prefix}:{{{name}}}:shared")
        else:
            self._sql(f"DELETE FROM shared WHERE name = '{self.prefix}:{name}'")

    def copy_record(self) -> Callable[[], None]:
        """Copy the current record; a function that restores it."""
        if self.redis:
            client, key = self.redis, f"{self.prefix}:{{s}}:record"
            kept: Any = client.dump(key)

            def put_back() -> None:
                client.restore(key, 0, kept, replace=True)

            return put_back
        with closing(sqlite3.connect(self.path)) as db:
            rows = {table: db.execute(f"SELECT * FROM {table}").fetchall() for table in ("leases", "fields")}

        def restore() -> None:
            self.remove_record()
            with closing(sqlite3.connect(self.path, isolation_level=None)) as db:
                for table, found in rows.items():
                    for row in found:
                        db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)

        return restore

    def _sql(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)


@pytest.fixture(params=["sqlite", "redis"])
def tables(request: pytest.FixtureRequest, stack: LocalStack, tmp_path: Path, unique: str) -> Iterator[Tables]:
    made = Tables(request.param, stack, tmp_path, unique)
    yield made
    made.close()


def test_a_missing_record_is_lost_state_and_not_recreated(tables: Tables) -> None:
    store = tables.open()
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "1"})
    tables.remove_record()
    for act in every_act(store, lease):
        with pytest.raises(StateLostError, match="has lost its record of the stream s"):
            act()
    assert tables.open().read_all() == {}


def test_a_missing_record_is_lost_state_even_with_its_lease(tables: Tables) -> None:
    """Even if the lease still exists."""
    store = tables.open()
    lease = acquired(store, "a").lease
    tables.remove_record(with_lease=False)
    for act in every_act(store, lease):
        with pytest.raises(StateLostError):
            act()


def test_an_older_record_is_lost_state_and_not_a_lost_lease(tables: Tables) -> None:
    store = tables.open()
    acquired(store, "a")
    restore = tables.copy_record()
    lease = acquired(store, "a").lease
    restore()
    for act in every_act(store, lease):
        with pytest.raises(StateLostError, match="has reverted to an older record of the stream s"):
            act()


def test_another_owner_with_our_epoch_means_an_older_record(tables: Tables) -> None:
    store = tables.open()
    store.release(acquired(store, "a").lease)
    restore = tables.copy_record()
    lease = acquired(store, "a").lease
    store.release(lease)
    restore()
    assert acquired(tables.open(), "b").lease.epoch == lease.epoch
    for act in every_act(store, lease)[:2]:
        with pytest.raises(StateLostError, match=r"older record .* by b"):
            act()


def test_a_standby_does_not_start_over_from_a_lost_record(tables: Tables) -> None:
    first, second = tables.open(), tables.open()
    acquired(first, "a")
    assert isinstance(second.acquire("s", "b", TTL_S), HeldElsewhere)
    tables.remove_record()
    with pytest.raises(StateLostError):
        second.acquire("s", "b", TTL_S)


@pytest.mark.parametrize("by", ["write", "renew"])
def test_lost_last_writes_are_restored(tables: Tables, by: str) -> None:
    """A failover loses writes that were not replicated. Nobody else has written, so we know them all."""
    store = tables.open()
    lease = acquired(store, "a").lease
    store.write(lease, {"position": "1", "intent:1": "x"})
    restore = tables.copy_record()
    store.write(lease, {"intent:2": "y"})
    store.write(lease, {"position": "2"}, ["intent:1"])
    restore()
    if by == "renew":
        store.renew(lease, TTL_S)
        assert tables.open().read_all()["s"][0] == {"position": "2", "intent:2": "y"}
    store.write(lease, {"position": "3"}, ["intent:2"])
    assert tables.open().read_all()["s"][0] == {"position": "3"}


def test_a_lease_taken_by_another_owner_is_not_lost_state(tables: Tables) -> None:
    store = tables.open()
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "1"})
    acquired(tables.open(), "b", replacing="a")
    for act in every_act(store, lease)[:2]:
        with pytest.raises(LeaseLostError, match="b has held it"):
            act()
    store.release(lease)
    assert isinstance(store.acquire("s", "a", TTL_S), HeldElsewhere)


def test_a_write_without_an_answer_can_be_repeated(tables: Tables) -> None:
    store = tables.open()
    assert store.write_shared("d", 1, "one")
    assert store.write_shared("d", 1, "one")
    assert not store.write_shared("d", 1, "another's")
    assert store.read_shared("d") == (1, "one")


def test_a_record_without_a_revision(tables: Tables) -> None:
    store = tables.open()
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "1"})
    if tables.redis:
        tables.redis.hdel(f"{tables.prefix}:{{s}}:record", "_revision")
    else:
        tables._sql("DELETE FROM fields WHERE name = '_revision'")
    again = tables.open()
    found = acquired(again, "b", replacing="a")
    assert found.fields == {"x": "1"}
    again.write(found.lease, {"x": "2"})
    assert again.read_all()["s"] == ({"x": "2"}, "b")
