"""Helpers for tests of state stores and leases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import redis

from bench.local import LocalStack
from bench.local.servers import Process, Valkey, free_ports, valkey_path
from engine.config.tree import S3Config, SinkConfig
from engine.quantities import Secret
from engine.state.seam import Acquired, HeldElsewhere, Lease, StateStore

TTL_S = 30.0


Open = Callable[..., StateStore]


@contextmanager
def sentinel_before(valkey: Valkey, directory: Path) -> Iterator[int]:
    """A Sentinel that monitors one server as ``main``; its port."""
    (port,) = free_ports(1)
    config = directory / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {directory}\nsentinel monitor main 127.0.0.1 {valkey.port} 1\n"
    )
    process = Process("sentinel", [valkey_path(), str(config), "--sentinel"], directory)
    process.start()

    def knows_master() -> bool:
        try:
            with closing(redis.Redis(port=port, decode_responses=True)) as client:
                return bool(client.execute_command("SENTINEL", "get-master-addr-by-name", "main"))
        except redis.ConnectionError:
            return False

    try:
        process.wait_ready(knows_master)
        yield port
    finally:
        process.stop()


def acquired(store: StateStore, owner: str, ttl_s: float = TTL_S, *, replacing: str = "") -> Acquired:
    found = store.acquire("s", owner, ttl_s, replacing=replacing)
    assert isinstance(found, Acquired), found
    return found


def acquired_after(store: StateStore, owner: str, ttl_s: float) -> Acquired:
    """Acquire a lease of this duration from an owner that no longer renews it.

    Some stores have a clock of their own; others must have seen the lease unchanged for so long.
    """
    deadline = time.monotonic() + ttl_s + 10
    while isinstance(found := store.acquire("s", owner, TTL_S), HeldElsewhere):
        assert time.monotonic() < deadline, found
        time.sleep(min(max(found.expires_in_s, 0.01), ttl_s))
    return found


def s3_sink(stack: LocalStack, name: str) -> SinkConfig:
    """A sink of this name on the local S3 server."""
    s3 = stack.s3
    keys = S3Config("us-east-1", s3.endpoint_url, Secret(s3.access_key), Secret(s3.secret_key))
    return SinkConfig(f"s3://{stack.bucket}/{name}", s3=keys)


def every_act(store: StateStore, lease: Lease) -> list[Callable[[], object]]:
    """All operations under a lease, and acquiring it again."""
    return [
        lambda: store.write(lease, {"x": "2"}),
        lambda: store.renew(lease, TTL_S),
        lambda: store.release(lease),
        lambda: store.acquire("s", "a", TTL_S),
    ]
