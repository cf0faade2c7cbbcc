"""One conformance suite for every state store, each on a real server."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
import redis
import trustme

from engine.config import Secret
from engine.config.tree import StateConfig
from engine.core.naming import split_id
from engine.errors import ConfigError, LeaseLostError, TransientError
from engine.local import LocalStack
from engine.local.servers import Process, Valkey, free_ports, valkey_path, wait_until
from engine.state import Acquired, HeldElsewhere, StateStore, open_store

TTL_S = 30.0
SHORT_TTL_S = 0.2
Open = Callable[..., StateStore]


@contextmanager
def tls_in_front_of(port: int, authority: trustme.CA) -> Iterator[int]:
    """Terminate TLS before a server that has none; the port to connect to."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        for each in (source, target):
            with closing(each):
                pass

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
                outside = context.wrap_socket(plain, server_side=True)
            except OSError:
                return
            inside = socket.create_connection(("127.0.0.1", port))
            for pair in ((outside, inside), (inside, outside)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


@contextmanager
def sentinel_before(valkey: Valkey, directory: Path) -> Iterator[int]:
    """A Sentinel that watches one server under the name ``main``; its port."""
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


@pytest.fixture(params=["sqlite", "redis", "redis-acl", "rediss", "sentinel"])
def open_state(request: pytest.FixtureRequest, stack: LocalStack, tmp_path: Path, unique: str) -> Iterator[Open]:
    """Opens the same store as often as wanted."""
    opened: list[StateStore] = []

    def opener(url: str) -> Open:
        def open_it(**changes: object) -> StateStore:
            settings = {"url": Secret(url), "prefix": unique} | changes
            store = open_store(StateConfig(**settings))  # type: ignore[arg-type]
            opened.append(store)
            return store

        return open_it

    port = stack.valkey.port
    match request.param:
        case "sqlite":
            yield opener(f"sqlite:///{tmp_path}/state.db")
        case "redis":
            yield opener(stack.valkey.url)
        case "redis-acl":
            with closing(redis.Redis(port=port)) as client:
                rules = (f"~{unique}:*", "+@all", "-@admin", "-@dangerous", ">pass word")
                client.execute_command("ACL", "SETUSER", unique, "reset", "on", *rules)
            yield opener(f"redis://{unique}:pass%20word@127.0.0.1:{port}/0")
        case "rediss":
            authority = trustme.CA()
            certificate = tmp_path / "ca.pem"
            authority.cert_pem.write_to_path(str(certificate))
            with tls_in_front_of(port, authority) as tls_port:
                yield opener(f"rediss://127.0.0.1:{tls_port}/0?ssl_ca_certs={certificate}")
                for store in opened:
                    store.close()
        case "sentinel":
            with sentinel_before(stack.valkey, tmp_path) as sentinel_port:
                yield opener(f"redis+sentinel://127.0.0.1:{sentinel_port}/main/0")
    for store in opened:
        store.close()


def acquired(store: StateStore, owner: str, ttl_s: float = TTL_S, **options: str) -> Acquired:
    found = store.acquire("s", owner, ttl_s, **options)
    assert isinstance(found, Acquired), found
    return found


def test_a_new_stream_has_no_fields(open_state: Open) -> None:
    found = acquired(open_state(), "a")
    assert found.fields == {}
    assert found.lease.epoch == 1


def test_what_was_written_is_there_for_the_next_owner(open_state: Open) -> None:
    store = open_state()
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "1", "y": "é\n\0"})
    store.write(lease, {"x": "2", "z": ""}, ["y", "never was"])
    store.release(lease)
    assert acquired(open_state(), "b").fields == {"x": "2", "z": ""}


def test_a_forgotten_stream_is_new(open_state: Open) -> None:
    store = open_state()
    store.write(acquired(store, "a").lease, {"x": "1"})
    store.forget(["s", "never was"])
    store.forget([])
    assert store.read_all() == {}
    assert acquired(store, "b").fields == {}


def test_a_held_lease_is_refused_to_others(open_state: Open) -> None:
    acquired(open_state(), "a")
    found = open_state().acquire("s", "b", TTL_S)
    assert isinstance(found, HeldElsewhere)
    assert found.holder == "a"
    assert 0 < found.expires_in_s <= TTL_S


def test_streams_have_leases_of_their_own(open_state: Open) -> None:
    store = open_state()
    acquired(store, "a")
    assert isinstance(store.acquire("other", "b", TTL_S), Acquired)


def test_the_owner_may_acquire_again(open_state: Open) -> None:
    store = open_state()
    first = acquired(store, "a").lease
    assert acquired(store, "a").lease.epoch > first.epoch


def test_an_expired_lease_is_free_and_the_epoch_grows(open_state: Open) -> None:
    store = open_state()
    first = acquired(store, "a", SHORT_TTL_S).lease
    time.sleep(2 * SHORT_TTL_S)
    assert acquired(store, "b").lease.epoch > first.epoch


def test_renewal_keeps_a_lease(open_state: Open) -> None:
    store = open_state()
    lease = acquired(store, "a", SHORT_TTL_S).lease
    store.renew(lease, TTL_S)
    time.sleep(2 * SHORT_TTL_S)
    assert isinstance(store.acquire("s", "b", TTL_S), HeldElsewhere)


def test_a_named_holder_is_replaced_at_once(open_state: Open) -> None:
    store = open_state()
    lost = acquired(store, "a").lease
    acquired(store, "b", replacing="a")
    with pytest.raises(LeaseLostError):
        store.write(lost, {"x": "1"})


def test_another_holder_than_the_named_one_is_not_replaced(open_state: Open) -> None:
    store = open_state()
    acquired(store, "a")
    assert isinstance(store.acquire("s", "b", TTL_S, replacing="c"), HeldElsewhere)


def test_the_loser_of_a_lease_can_do_nothing(open_state: Open) -> None:
    store = open_state()
    lost = acquired(store, "a", SHORT_TTL_S).lease
    time.sleep(2 * SHORT_TTL_S)
    kept = acquired(open_state(), "b").lease
    store.write(kept, {"x": "kept"})
    for act in (lambda: store.write(lost, {"x": "lost"}, ["x"]), lambda: store.renew(lost, TTL_S)):
        with pytest.raises(LeaseLostError):
            act()
    store.release(lost)
    assert store.read_all()["s"] == ({"x": "kept"}, "b")


def test_an_expired_lease_that_nobody_took_still_writes(open_state: Open) -> None:
    store = open_state()
    lease = acquired(store, "a", SHORT_TTL_S).lease
    time.sleep(2 * SHORT_TTL_S)
    store.write(lease, {"x": "1"})
    store.renew(lease, TTL_S)
    assert store.read_all()["s"] == ({"x": "1"}, "a")


def test_released_leases_are_free(open_state: Open) -> None:
    store = open_state()
    store.release(acquired(store, "a").lease)
    assert isinstance(store.acquire("s", "b", TTL_S), Acquired)


def test_prefixes_keep_engines_apart(open_state: Open, unique: str) -> None:
    store, other = open_state(), open_state(prefix=f"{unique}:b")
    store.write(acquired(store, "a").lease, {"x": "1"})
    assert acquired(other, "b").fields == {}
    assert store.read_all()["s"] == ({"x": "1"}, "a")


def test_shared_documents_grow_by_one_version(open_state: Open) -> None:
    store = open_state()
    assert store.read_shared("d") == (0, "")
    assert store.write_shared("d", 1, "one")
    assert not store.write_shared("d", 1, "again")
    assert not store.write_shared("d", 3, "too far")
    assert store.write_shared("d", 2, "two")
    assert open_state().read_shared("d") == (2, "two")


def test_only_one_of_many_writers_wins_a_version(open_state: Open) -> None:
    stores = [open_state() for _ in range(4)]
    won = [0] * len(stores)

    def compete(number: int) -> None:
        for _ in range(20):
            version, _ = stores[number].read_shared("d")
            won[number] += stores[number].write_shared("d", version + 1, str(number))

    threads = [threading.Thread(target=compete, args=(n,)) for n in range(len(stores))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert open_state().read_shared("d")[0] == sum(won)


def test_redis_forgets_a_stream_that_nobody_runs(stack: LocalStack, unique: str) -> None:
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


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("redis://127.0.0.1:1/0", TransientError, "Is the state store up"),
        ("redis://nobody:s3cret@{host}/0", ConfigError, "Check the user and the password"),
        ("redis+sentinel://127.0.0.1:x/main", ConfigError, "Write redis"),
        ("sqlite:////nowhere/at/all.db", ConfigError, "a file that this user can create"),
    ],
)
def test_errors_name_the_remedy_and_hide_the_password(
    stack: LocalStack, url: str, kind: type[Exception], words: str
) -> None:
    store = open_store(StateConfig(url=Secret(url.format(host=f"127.0.0.1:{stack.valkey.port}"))))
    with pytest.raises(kind, match=words) as caught:
        store.read_all()
    assert "s3cret" not in str(caught.value)


def test_sqlite_says_when_the_file_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_text("this is no database, but long enough to look at" * 10)
    store = open_store(StateConfig(url=Secret(f"sqlite:///{tmp_path}/state.db")))
    with pytest.raises(ConfigError, match="Is it a SQLite file"):
        store.read_all()


def test_a_closed_store_has_no_connection_to_a_sentinel_either(stack: LocalStack, tmp_path: Path) -> None:
    def connections() -> int:
        return sum(bool(each.raddr) and each.raddr.port == port for each in psutil.Process().net_connections())

    with sentinel_before(stack.valkey, tmp_path) as port:
        store = open_store(StateConfig(url=Secret(f"redis+sentinel://127.0.0.1:{port}/main/0")))
        store.read_all()
        assert connections() == 1
        store.close()
        assert connections() == 0


def test_a_cluster_of_one_node(tmp_path: Path) -> None:
    """It refuses commands with keys of several slots."""
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
