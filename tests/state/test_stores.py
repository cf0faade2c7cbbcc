"""One conformance suite for every state store, each on a real server."""

from __future__ import annotations

import socket
import sqlite3
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import trustme
from redis._parsers.base import BaseParser
from redis.client import Pipeline

from bench.local import LocalStack
from bench.local.servers import Process, Valkey, free_ports, valkey_path, wait_until
from engine.config import Secret
from engine.config.tree import StateConfig
from engine.core.naming import split_id
from engine.errors import ConfigError, HeadraceError, LeaseLostError, StateLostError, TransientError
from engine.state.opening import open_store
from engine.state.redis import RedisStore
from engine.state.replies import translated
from engine.state.seam import Acquired, HeldElsewhere, Lease, StateStore
from engine.state.sqlite import SqliteStore
from tests.conditions import CONDITIONS, client_of, set_to
from tests.disks import mounted
from tests.integration.proxy import Cuts

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
        def open_it(*, read_only: bool = False, **changes: object) -> StateStore:
            settings = {"url": Secret(url), "prefix": unique} | changes
            store = open_store(StateConfig(**settings), read_only=read_only)  # type: ignore[arg-type]
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


class Tables:
    """What is behind a store, to be broken by hand: each stream's record, and the shared documents."""

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
        """Keeps the record as it is; what puts it back."""
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


def every_act(store: StateStore, lease: Lease) -> list[Callable[[], object]]:
    """All that can be done under a lease, and to get it again."""
    return [
        lambda: store.write(lease, {"x": "2"}),
        lambda: store.renew(lease, TTL_S),
        lambda: store.release(lease),
        lambda: store.acquire("s", "a", TTL_S),
    ]


def test_a_record_that_is_gone_is_lost_and_not_made_again(tables: Tables) -> None:
    store = tables.open()
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "1"})
    tables.remove_record()
    for act in every_act(store, lease):
        with pytest.raises(StateLostError, match="has lost its record of the stream s"):
            act()
    assert tables.open().read_all() == {}


def test_a_record_that_is_gone_alone_is_lost_too(tables: Tables) -> None:
    """The lease may still be there."""
    store = tables.open()
    lease = acquired(store, "a").lease
    tables.remove_record(with_lease=False)
    for act in every_act(store, lease):
        with pytest.raises(StateLostError):
            act()


def test_an_older_record_is_lost_state_and_not_another_owner(tables: Tables) -> None:
    store = tables.open()
    acquired(store, "a")
    restore = tables.copy_record()
    lease = acquired(store, "a").lease
    restore()
    for act in every_act(store, lease):
        with pytest.raises(StateLostError, match="has gone back to an older record of the stream s"):
            act()


def test_another_owner_of_our_epoch_goes_on_from_an_older_record(tables: Tables) -> None:
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


def test_who_stands_by_does_not_begin_anew_what_was_lost(tables: Tables) -> None:
    first, second = tables.open(), tables.open()
    acquired(first, "a")
    assert isinstance(second.acquire("s", "b", TTL_S), HeldElsewhere)
    tables.remove_record()
    with pytest.raises(StateLostError):
        second.acquire("s", "b", TTL_S)


@pytest.mark.parametrize("by", ["write", "renew"])
def test_last_writes_that_were_lost_are_put_back(tables: Tables, by: str) -> None:
    """A failover loses what was not replicated yet. Nobody else wrote: we know all that was there."""
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


def test_a_lease_that_another_took_is_lost_and_the_state_is_not(tables: Tables) -> None:
    store = tables.open()
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "1"})
    acquired(tables.open(), "b", replacing="a")
    for act in every_act(store, lease)[:2]:
        with pytest.raises(LeaseLostError, match="b has it"):
            act()
    store.release(lease)
    assert isinstance(store.acquire("s", "a", TTL_S), HeldElsewhere)


def test_a_document_can_be_written_again_when_no_answer_came(tables: Tables) -> None:
    store = tables.open()
    assert store.write_shared("d", 1, "one")
    assert store.write_shared("d", 1, "one")
    assert not store.write_shared("d", 1, "another's")
    assert store.read_shared("d") == (1, "one")


def test_a_record_of_before_revisions_were_counted(tables: Tables) -> None:
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


def test_a_write_that_comes_late_changes_nothing(
    stack: LocalStack, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer was not awaited, it was made again, and others followed: the network may deliver it still."""
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
def test_what_was_done_and_not_answered_can_be_done_again(stack: LocalStack, unique: str, act: str) -> None:
    """Nobody else is taken to have done it, and it is done once."""
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
def test_redis_makes_a_lost_list_of_streams_anew(stack: LocalStack, unique: str, by: str) -> None:
    """Without it nobody knows what earlier streams have covered; the records are there."""
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


@pytest.mark.parametrize(("condition", "remedy"), CONDITIONS, ids=[each.__name__ for each, _ in CONDITIONS])
def test_what_passes_in_a_redis_is_worth_a_retry(
    server: Valkey, condition: Callable[[Valkey], AbstractContextManager[None]], remedy: str
) -> None:
    store = open_store(StateConfig(url=Secret(server.url)))
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "1"})
    store.close()  # the next use connects
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


@pytest.mark.parametrize(
    ("reply", "kind", "remedy"),
    [
        (
            "ERR Error running script (call to f_1): @user_script:9: -OOM command not allowed",
            TransientError,
            "maxmem",
        ),
        ("TRYAGAIN Multiple keys request during rehashing of slot", TransientError, "this passes"),
        ("CLUSTERDOWN Hash slot not served", TransientError, "CLUSTER INFO"),
        ("LOADING Redis is loading the dataset in memory", TransientError, "loading"),
        ("UNBLOCKED force unblock from blocking operation", TransientError, "own log"),
        ("EXECABORT Transaction discarded because of previous errors.", TransientError, "own log"),
        ("ERR something that nobody has thought of", TransientError, "own log"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", ConfigError, "another one"),
        ("ERR unknown command 'EVAL', with args beginning with:", ConfigError, "allows Lua"),
        ("ERR DB index is out of range", ConfigError, "database's number"),
        ("MOVED 3999 127.0.0.1:6381", ConfigError, "one that has all slots"),
        ("NOPERM this user has no permissions to run the 'eval' command", ConfigError, "rights"),
        ("DENIED Redis is running in protected mode", ConfigError, "protected mode"),
    ],
)
def test_a_reply_that_is_not_known_to_be_configuration_may_pass(
    reply: str, kind: type[Exception], remedy: str
) -> None:
    """What no server here can be brought to say, in the words of those that do."""
    error = BaseParser.parse_error(reply)
    found = translated("write", "redis://host/0", error, worked=False)
    assert type(found) is kind
    assert remedy in found.remedy
    assert reply.removeprefix("ERR ").split(" ")[0] in found.cause


def sqlite_store(path: Path) -> StateStore:
    return open_store(StateConfig(url=Secret(f"sqlite:///{path}")))


@pytest.mark.parametrize("name", ["state.db", "state.db-wal"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_another_sqlite_file_than_the_opened_one_is_lost_state(tmp_path: Path, how: str, name: str) -> None:
    """Who opens it then finds nothing of what is written here."""
    store = sqlite_store(tmp_path / "state.db")
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "1"})
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if how == "replaced":
        (tmp_path / "other").write_bytes(content)
        (tmp_path / "other").rename(tmp_path / name)
    acts = [*every_act(store, lease), store.read_all, lambda: store.read_shared("d")]
    for act in (*acts, lambda: store.write_shared("d", 1, "text")):
        with pytest.raises(StateLostError, match=f"{how}.*while it was in use"):
            act()
    store.close()
    if name == "state.db":
        with pytest.raises(StateLostError):
            store.read_all()
        assert how == "replaced" or not (tmp_path / name).exists()
    store.close()


def test_a_sqlite_file_that_was_closed_is_not_another(tmp_path: Path) -> None:
    store = sqlite_store(tmp_path / "state.db")
    lease = acquired(store, "a").lease
    store.close()
    assert not (tmp_path / "state.db-wal").exists()
    store.write(lease, {"x": "1"})
    assert store.read_all()["s"] == ({"x": "1"}, "a")
    store.close()


@pytest.mark.parametrize("read", [True, False])
def test_a_sqlite_file_on_a_disk_that_is_read_only_for_a_while(tmp_path: Path, read: bool) -> None:
    directory = tmp_path / "disk"
    directory.mkdir()
    store = sqlite_store(directory / "state.db")
    lease = acquired(store, "a").lease
    store.close()
    mounted = subprocess.run(
        ["mount", "--bind", "-o", "ro", str(directory), str(directory)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.decode().strip()}")
    try:
        for act in (store.read_all,) if read else every_act(store, lease):
            with pytest.raises(TransientError, match="can write the file and its directory"):
                act()
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
    store.write(lease, {"x": "1"})
    assert store.read_all()["s"] == ({"x": "1"}, "a")
    store.close()


@pytest.mark.parametrize("size", [0, 4096, 5000])
def test_a_truncated_sqlite_file_is_lost_state(tmp_path: Path, size: int) -> None:
    store = sqlite_store(tmp_path / "state.db")
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "1" * 100_000})
    store.close()
    store.renew(lease, TTL_S)
    with (tmp_path / "state.db").open("r+b") as file:
        file.truncate(size)

    def use() -> None:
        store.write(lease, {"x": "2"})
        store.read_all()

    with pytest.raises(StateLostError):
        use()
    store.close()


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


# --- check ----------------------------------------------------------------------------------------------


def test_checking_proves_and_leaves_nothing(open_state: Open) -> None:
    made = open_state()
    lease = acquired(made, "a").lease
    made.write(lease, {"x": "1"})
    before = made.read_all()
    doubts = open_state(read_only=True).check()
    assert all("does not say how" in each for each in doubts)  # one without the right to ask
    assert made.read_all() == before
    made.write(lease, {"x": "2"})


@pytest.mark.parametrize(
    ("condition", "remedy"),
    [each for each in CONDITIONS if each[0].__name__ not in ("full_of_clients", "with_another_password")],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_checking_tells_what_keeps_a_server_from_writing(server: Valkey, condition: Any, remedy: str) -> None:
    """Reading works in most of these states."""
    store = RedisStore(StateConfig(Secret(server.url)), read_only=True)
    with condition(server), closing(store), pytest.raises(TransientError, match=remedy):
        store.check()
    with closing(redis.Redis(port=server.port)) as client:
        assert client.keys("headrace:*") == []
    with closing(RedisStore(StateConfig(Secret(server.url)))) as well:
        assert well.check() == []


@pytest.mark.parametrize("command", ["set", "eval", "sadd", "del", "hset"])
def test_checking_tells_of_a_right_that_is_missing(server: Valkey, command: str) -> None:
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
def test_checking_doubts_servers_that_may_lose_writes(
    server: Valkey, settings: dict[str, object], doubt: str
) -> None:
    with (
        client_of(server) as client,
        set_to(client, **settings),
        closing(RedisStore(StateConfig(Secret(server.url)))) as store,
    ):
        (found,) = store.check()
    assert doubt in found


def test_checking_a_server_that_does_not_say_how_it_keeps_its_data(server: Valkey) -> None:
    with closing(redis.Redis(port=server.port)) as client:
        client.execute_command("ACL", "SETUSER", "some", "on", ">p", "~headrace:*", "+@all", "-info")
    with closing(RedisStore(StateConfig(Secret(server.url.replace("//", "//some:p@"))))) as store:
        (found,) = store.check()
    assert "does not say how it keeps its data" in found


def test_checking_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """A disk that is mounted for reading, which binds root as well."""
    with mounted(tmp_path / "disk", "4m") as disk:
        config = StateConfig(Secret(f"sqlite:///{disk}/s.db"))
        for exists in (False, True):
            if exists:
                with closing(SqliteStore(config)) as store:
                    store.read_all()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            with closing(SqliteStore(config, read_only=True)) as store, pytest.raises(HeadraceError):
                store.check()
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("redis://127.0.0.1:1/0", "Is the state store up"),
        ("redis://nowhere.invalid:6379/0", "cannot be resolved"),
        ("redis://127.0.0.1:{tls}/0", "does it want TLS"),
        ("rediss://127.0.0.1:{tls}/0", "certificate is not trusted"),
    ],
)
def test_a_server_that_cannot_be_reached(server: Valkey, url: str, remedy: str) -> None:
    with tls_in_front_of(server.port, trustme.CA()) as port:
        store = RedisStore(StateConfig(Secret(url.replace("{tls}", str(port)))))
        with closing(store), pytest.raises(TransientError, match=remedy):
            store.read_all()
