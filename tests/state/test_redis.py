"""Redis servers: lost answers, replicas, Sentinel, a cluster, and every condition that keeps one from writing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import trustme
from redis.client import Pipeline

from bench.local import LocalStack
from bench.local.servers import Process, Valkey, free_ports, valkey_path, wait_until
from engine.config import Secret
from engine.config.tree import StateConfig
from engine.core.naming import split_id
from engine.errors import HeadraceError, TransientError
from engine.state.opening import open_store
from engine.state.redis import RedisStore
from engine.state.seam import Acquired
from tests.conditions import CONDITIONS, client_of, set_to
from tests.integration.proxy import Cuts
from tests.state.stores import TTL_S, acquired, sentinel_before
from tests.tls import tls_in_front_of


def test_a_late_write_changes_nothing(stack: LocalStack, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It timed out and was repeated, others followed, and then the network delivers it after all."""
    sent: list[tuple[Any, ...]] = []

    def noted(self: Pipeline, *arguments: Any) -> Any:
        sent.append(arguments)
        return self.execute_command("EVAL", *arguments)

    store = RedisStore(StateConfig(url=Secret(stack.valkey.url), prefix=unique))
    lease = acquired(store, "a").lease
    monkeypatch.setattr(Pipeline, "eval", noted)
    store.write(lease, {"position": "1"})
    store.write(lease, {"position": "2"})
    with closing(redis.Redis(port=stack.valkey.port)) as client:
        client.eval(*sent[0])
    assert store.read_all()["s"][0] == {"position": "2"}
    store.close()


@pytest.mark.parametrize("act", ["acquire", "renew", "write", "release", "write_shared", "forget"])
def test_operations_without_an_answer_can_be_repeated(stack: LocalStack, unique: str, act: str) -> None:
    """It takes effect once, and is not mistaken for another owner's."""
    cuts = Cuts(stack.valkey.port)
    url = Secret(f"redis://127.0.0.1:{cuts.port}/0")
    store = open_store(StateConfig(url=url, prefix=unique))
    other = open_store(StateConfig(url=Secret(stack.valkey.url), prefix=unique))
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "0", "y": "0"})
    acts: dict[str, tuple[Callable[[], object], object]] = {
        "acquire": (lambda: acquired(store, "a").fields, {"x": "0", "y": "0"}),
        "renew": (lambda: store.renew(lease, TTL_S), None),
        "write": (lambda: store.write(lease, {"x": "1"}, ["y"]), None),
        "release": (lambda: store.release(lease), None),
        "write_shared": (lambda: store.write_shared("d", 1, "text"), True),
        "forget": (lambda: store.forget(["s"]), None),
    }
    call, answer = acts[act]
    for count in (1, 2):
        cuts.left = 1
        with pytest.raises(TransientError):
            call()
        assert cuts.kept == count
    assert call() == answer
    if act == "write_shared":
        assert other.read_shared("d") == (1, "text")
    elif act == "forget":
        assert other.read_all() == {}
    else:
        fields = {"x": "1"} if act == "write" else {"x": "0", "y": "0"}
        assert other.read_all()["s"] == (fields, "" if act == "release" else "a")
    if act in ("renew", "write"):
        store.write(lease, {"z": "1"})
        assert other.read_all()["s"][0]["z"] == "1"
    cuts.close()
    store.close()
    other.close()


@pytest.mark.parametrize("by", ["acquire", "renew", "read_all"])
def test_redis_rebuilds_a_lost_list_of_streams(stack: LocalStack, unique: str, by: str) -> None:
    """The list says what earlier streams have covered; it is rebuilt from the records."""
    prefix = f"{unique}[*]"
    store = open_store(StateConfig(url=Secret(stack.valkey.url), prefix=prefix))
    other = open_store(StateConfig(url=Secret(stack.valkey.url), prefix=f"{unique}[*]b"))
    acquired(other, "a")
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "1"})
    assert isinstance(store.acquire("t", "b", TTL_S), Acquired)
    with closing(redis.Redis(port=stack.valkey.port)) as client:
        assert client.delete(f"{prefix}:streams") == 1
        {
            "acquire": lambda: store.acquire("s", "a", TTL_S),
            "renew": lambda: store.renew(lease, TTL_S),
            "read_all": store.read_all,
        }[by]()
        assert client.smembers(f"{prefix}:streams") == {b"s", b"t"}
    assert store.read_all().keys() == {"s", "t"}
    store.close()
    other.close()


def test_redis_expires_streams_that_nobody_runs(stack: LocalStack, unique: str) -> None:
    store = open_store(StateConfig(url=Secret(stack.valkey.url), prefix=unique))
    store.write(acquired(store, "a").lease, {"x": "1"})
    with closing(redis.Redis(port=stack.valkey.port)) as client:
        left_s = client.pttl(f"{unique}:{{s}}:record") / 1000  # type: ignore[operator]
    assert 13 * 86400 < left_s <= 14 * 86400
    store.close()


def test_redis_keeps_a_split_until_its_backfill_is_over(stack: LocalStack, unique: str) -> None:
    store = open_store(StateConfig(url=Secret(stack.valkey.url), prefix=unique))
    split = split_id("shop", "orders", "1f3a5c7e", 12)
    found = store.acquire(split, "a", TTL_S)
    assert isinstance(found, Acquired)
    store.write(found.lease, {"x": "1"})
    with closing(redis.Redis(port=stack.valkey.port)) as client:
        assert client.pttl(f"{unique}:{{{split}}}:record") > 365 * 86_400_000  # type: ignore[operator]
    store.close()


def test_redis_waits_for_its_replicas(stack: LocalStack, tmp_path: Path, unique: str) -> None:
    replica = Valkey(tmp_path, name="replica", options=["--replicaof", "127.0.0.1", str(stack.valkey.port)])
    replica.start()
    store = open_store(StateConfig(url=Secret(stack.valkey.url), prefix=unique, replicas=1))
    try:
        with closing(redis.Redis(port=replica.port, decode_responses=True)) as client:
            wait_until(lambda: client.info("replication")["master_link_status"] == "up", "the replica")  # type: ignore[index]
            store.write(acquired(store, "a").lease, {"x": "1"})
            assert client.hget(f"{unique}:{{s}}:record", "x") == "1"
        replica.process.kill()
        with pytest.raises(TransientError, match="0 of 1 replicas"):
            store.write(acquired(store, "a").lease, {"x": "2"})
    finally:
        store.close()
        replica.process.kill()


@pytest.mark.parametrize(("condition", "remedy"), CONDITIONS, ids=[each.__name__ for each, _ in CONDITIONS])
def test_temporary_conditions_of_redis_are_transient_errors(
    server: Valkey, condition: Callable[[Valkey], AbstractContextManager[None]], remedy: str
) -> None:
    store = open_store(StateConfig(url=Secret(server.url)))
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "1"})
    store.close()  # the next operation reconnects
    with condition(server):
        for act in (
            lambda: store.write(lease, {"x": "2"}),
            lambda: store.renew(lease, TTL_S),
            lambda: store.acquire("s", "a", TTL_S),
            lambda: store.write_shared("d", 1, "text"),
        ):
            with pytest.raises(TransientError, match=remedy):
                act()
    store.write(lease, {"x": "3"})
    assert store.write_shared("d", 1, "text")
    assert store.read_all()["s"] == ({"x": "3"}, "a")
    store.close()


def test_a_closed_store_has_no_connection_to_sentinel_either(stack: LocalStack, tmp_path: Path) -> None:
    def connections() -> int:
        return sum(bool(each.raddr) and each.raddr.port == port for each in psutil.Process().net_connections())

    with sentinel_before(stack.valkey, tmp_path) as port:
        store = open_store(StateConfig(url=Secret(f"redis+sentinel://127.0.0.1:{port}/main/0")))
        store.read_all()
        assert connections() == 1
        store.close()
        assert connections() == 0


def test_a_cluster_of_one_node(tmp_path: Path) -> None:
    """A cluster refuses commands with keys of several slots."""
    server = Valkey(tmp_path, options=["--cluster-enabled", "yes"])
    server.start()
    try:
        with closing(redis.Redis(port=server.port, decode_responses=True)) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_until(lambda: client.cluster("info")["cluster_state"] == "ok", "the cluster")
        store = open_store(StateConfig(url=Secret(server.url)))
        for name in ("s", "t", "u"):
            found = store.acquire(name, "a", TTL_S)
            assert isinstance(found, Acquired)
            store.write(found.lease, {"x": name})
        assert store.write_shared("d", 1, "text")
        assert {name: fields for name, (fields, _) in store.read_all().items()} == {n: {"x": n} for n in "stu"}
        store.forget(["s", "t"])
        assert store.read_all().keys() == {"u"}
        store.close()
    finally:
        server.process.kill()


def test_a_sentinel_failover_keeps_what_replicas_have(tmp_path: Path) -> None:
    first = Valkey(tmp_path, name="first")
    first.start()
    second = Valkey(tmp_path, name="second", options=["--replicaof", "127.0.0.1", str(first.port)])
    second.start()
    (port,) = free_ports(1)
    config = tmp_path / "sentinel.conf"
    lines = [f"port {port}", "bind 127.0.0.1", f"sentinel monitor main 127.0.0.1 {first.port} 1"]
    lines += ["sentinel down-after-milliseconds main 500", "sentinel failover-timeout main 2000"]
    config.write_text("\n".join(lines) + "\n")
    sentinel = Process("sentinel", [valkey_path(), str(config), "--sentinel"], tmp_path)
    sentinel.start()
    url = Secret(f"redis+sentinel://127.0.0.1:{port}/main/0")
    store = open_store(StateConfig(url=url, replicas=1))

    def until_it_works(act: Callable[[], object]) -> None:
        def works() -> bool:
            try:
                act()
            except TransientError:
                return False
            return True

        wait_until(works, "the failover")

    try:
        found: list[Acquired] = []
        until_it_works(lambda: found.append(acquired(store, "a")))
        lease = found[-1].lease
        store.write(lease, {"x": "1"})
        with closing(redis.Redis(port=port)) as client:
            wait_until(lambda: len(client.sentinel_slaves("main")) == 1, "the sentinel to know the replica")  # type: ignore[arg-type]
        first.process.kill()
        after = open_store(StateConfig(url=url))
        until_it_works(lambda: after.write(lease, {"y": "2"}))
        assert after.read_all()["s"] == ({"x": "1", "y": "2"}, "a")
        after.close()
    finally:
        store.close()
        for process in (sentinel, first.process, second.process):
            process.kill()


@pytest.mark.parametrize(
    ("condition", "remedy"),
    [each for each in CONDITIONS if each[0].__name__ not in ("full_of_clients", "with_another_password")],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_checking_reports_what_keeps_a_server_from_writing(server: Valkey, condition: Any, remedy: str) -> None:
    """Reads work under most of these conditions."""
    store = RedisStore(StateConfig(Secret(server.url)), read_only=True)
    with condition(server), closing(store), pytest.raises(TransientError, match=remedy):
        store.check()
    with closing(redis.Redis(port=server.port)) as client:
        assert client.keys("headrace:*") == []
    with closing(RedisStore(StateConfig(Secret(server.url)))) as well:
        assert well.check() == []


@pytest.mark.parametrize("command", ["set", "eval", "sadd", "del", "hset"])
def test_checking_reports_a_missing_right(server: Valkey, command: str) -> None:
    with closing(redis.Redis(port=server.port)) as client:
        client.execute_command("ACL", "SETUSER", "poor", "on", ">p", "~headrace:*", "+@all", f"-{command}")
    url = server.url.replace("redis://", "redis://poor:p@")
    with (
        closing(RedisStore(StateConfig(Secret(url)))) as store,
        pytest.raises(HeadraceError, match=r"NOPERM|ACL|permission") as caught,
    ):
        store.check()
    assert "rights" in caught.value.remedy


@pytest.mark.parametrize(
    ("settings", "doubt"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, "maxmemory-policy is allkeys-lru"),
        ({"maxmemory_policy": "volatile-ttl"}, "maxmemory-policy is volatile-ttl"),
        ({"appendonly": "no"}, "appendonly"),
    ],
)
def test_checking_warns_of_servers_that_may_lose_writes(
    server: Valkey, settings: dict[str, object], doubt: str
) -> None:
    with (
        client_of(server) as client,
        set_to(client, **settings),
        closing(RedisStore(StateConfig(Secret(server.url)))) as store,
    ):
        (found,) = store.check()
    assert doubt in found


def test_checking_a_server_that_hides_how_it_persists_data(server: Valkey) -> None:
    with closing(redis.Redis(port=server.port)) as client:
        client.execute_command("ACL", "SETUSER", "some", "on", ">p", "~headrace:*", "+@all", "-info")
    with closing(RedisStore(StateConfig(Secret(server.url.replace("//", "//some:p@"))))) as store:
        (found,) = store.check()
    assert "its settings cannot be read" in found


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("redis://127.0.0.1:1/0", "Is the state store up"),
        ("redis://nowhere.invalid:6379/0", "cannot be resolved"),
        ("redis://127.0.0.1:{tls}/0", "does it require TLS"),
    ],
)
def test_a_server_that_cannot_be_reached(server: Valkey, url: str, remedy: str) -> None:
    with tls_in_front_of(server.port, trustme.CA()) as port:
        store = RedisStore(StateConfig(Secret(url.replace("{tls}", str(port)))))
        with closing(store), pytest.raises(TransientError, match=remedy):
            store.read_all()
