"""Temporary conditions of a Redis server, brought about on a real one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bench.local.servers import Valkey, wait_until


@contextmanager
def client_of(server: Valkey) -> Iterator[redis.Redis]:
    with closing(redis.Redis(port=server.port, decode_responses=True)) as client:
        yield client


@contextmanager
def set_to(client: redis.Redis, **settings: object) -> Iterator[None]:
    """Change settings of the server, and restore them at the end."""
    names = {name: name.replace("_", "-") for name in settings}
    before: dict[str, Any] = {}
    for name in names.values():
        before |= client.config_get(name)  # type: ignore[arg-type]
    for name, value in settings.items():
        client.config_set(names[name], value)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, value in before.items():
            client.config_set(name, value)


@contextmanager
def out_of_memory(server: Valkey) -> Iterator[None]:
    with client_of(server) as client, set_to(client, maxmemory=1, maxmemory_policy="noeviction"):
        yield


@contextmanager
def unable_to_save(server: Valkey) -> Iterator[None]:
    with client_of(server) as client:
        (server.data / "dump.rdb").mkdir()  # cannot be replaced by a file
        with set_to(client, save="1 1", stop_writes_on_bgsave_error="yes"):
            client.set("changed", 1)
            client.bgsave()
            wait_until(lambda: client.info()["rdb_last_bgsave_status"] == "err", "a failed save")  # type: ignore[index]
            yield
        (server.data / "dump.rdb").rmdir()


@contextmanager
def without_replicas(server: Valkey) -> Iterator[None]:
    with client_of(server) as client, set_to(client, min_replicas_to_write=1):
        yield


@contextmanager
def as_a_replica(server: Valkey) -> Iterator[None]:
    with client_of(server) as client:
        client.replicaof("127.0.0.1", "1")
        yield
        client.replicaof("NO", "ONE")


@contextmanager
def cut_off_replica(server: Valkey) -> Iterator[None]:
    with client_of(server) as client, set_to(client, replica_serve_stale_data="no"), as_a_replica(server):
        yield


@contextmanager
def busy(server: Valkey) -> Iterator[None]:
    with client_of(server) as client, set_to(client, lua_time_limit=1):

        def run() -> None:
            # It must not be sent again: it never returns.
            once = Retry(NoBackoff(), 0)
            with (
                closing(redis.Redis(port=server.port, socket_timeout=None, retry=once)) as other,
                suppress(redis.RedisError),
            ):
                other.eval("while true do end", 0)

        thread = threading.Thread(target=run)
        thread.start()

        def is_busy() -> bool:
            try:
                return not client.ping()
            except redis.ResponseError as error:
                return str(error).startswith("BUSY")

        wait_until(is_busy, "the script")
        yield
        client.script_kill()
        thread.join()


@contextmanager
def full_of_clients(server: Valkey) -> Iterator[None]:
    """No further client may connect. Existing clients would stay connected, so they are disconnected first."""
    with client_of(server) as client, set_to(client, maxclients=1):
        drop_others(client)
        yield


@contextmanager
def with_another_password(server: Valkey) -> Iterator[None]:
    with client_of(server) as client, set_to(client, requirepass="n3w"):
        client.auth("n3w")
        drop_others(client)
        yield


def drop_others(client: redis.Redis) -> None:
    """Disconnect all other clients, because some conditions affect only new connections."""
    client.client_kill_filter(_type="normal", skipme=True)


CONDITIONS = [
    (out_of_memory, "raise its maxmemory"),
    (unable_to_save, "cannot save to its disk"),
    (without_replicas, "min-replicas-to-write"),
    (as_a_replica, "must lead to the primary"),
    (cut_off_replica, "must lead to the primary"),
    (busy, "SCRIPT KILL"),
    (full_of_clients, "maxclients"),
    (with_another_password, "have they been changed"),
]
