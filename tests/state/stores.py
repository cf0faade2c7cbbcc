"""Helpers for tests of state stores and leases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import redis

from bench.local.servers import Process, Valkey, free_ports, valkey_path
from engine.state.seam import Acquired, Lease, StateStore

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


def acquired(store: StateStore, owner: str, ttl_s: float = TTL_S, **options: str) -> Acquired:
    found = store.acquire("s", owner, ttl_s, **options)
    assert isinstance(found, Acquired), found
    return found


def every_act(store: StateStore, lease: Lease) -> list[Callable[[], object]]:
    """All operations under a lease, and acquiring it again."""
    return [
        lambda: store.write(lease, {"x": "2"}),
        lambda: store.renew(lease, TTL_S),
        lambda: store.release(lease),
        lambda: store.acquire("s", "a", TTL_S),
    ]
