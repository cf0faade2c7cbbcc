"""The conformance suite for state stores, on real servers."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis
import trustme

from bench.local import LocalStack
from engine.config import Secret
from engine.config.tree import LAKE, SinkConfig, StateConfig
from engine.errors import ConfigError, LeaseLostError, StateLostError, TransientError
from engine.state.opening import open_store
from engine.state.seam import Acquired, HeldElsewhere, StateStore
from tests.state.stores import TTL_S, Open, acquired, acquired_after, s3_sink, sentinel_before
from tests.tls import tls_in_front_of

SHORT_TTL_S = 0.2


@pytest.fixture(params=["lake", "lake-file", "sqlite", "redis", "redis-acl", "rediss", "sentinel"])
def open_state(request: pytest.FixtureRequest, stack: LocalStack, tmp_path: Path, unique: str) -> Iterator[Open]:
    """Opens the same store any number of times."""
    opened: list[StateStore] = []

    def opener(url: str, sink: SinkConfig | None = None) -> Open:
        def open_it(*, read_only: bool = False, **changes: object) -> StateStore:
            settings = {"url": Secret(url), "prefix": unique} | changes
            store = open_store(StateConfig(**settings), sink, read_only=read_only)  # type: ignore[arg-type]
            opened.append(store)
            return store

        return open_it

    port = stack.valkey.port
    match request.param:
        case "lake":
            yield opener(LAKE, s3_sink(stack, unique))
        case "lake-file":
            yield opener(LAKE, SinkConfig(f"file://{tmp_path}/la ke%20?#"))
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
    assert acquired_after(store, "b", SHORT_TTL_S).lease.epoch > first.epoch


def test_renewal_keeps_a_lease(open_state: Open) -> None:
    store = open_state()
    lease = acquired(store, "a", SHORT_TTL_S).lease
    store.renew(lease, TTL_S)
    time.sleep(2 * SHORT_TTL_S)
    assert isinstance(store.acquire("s", "b", TTL_S), HeldElsewhere)


def test_the_named_holder_is_replaced_at_once(open_state: Open) -> None:
    store = open_state()
    lost = acquired(store, "a").lease
    acquired(store, "b", replacing="a")
    with pytest.raises(LeaseLostError):
        store.write(lost, {"x": "1"})


def test_a_holder_other_than_the_named_one_is_not_replaced(open_state: Open) -> None:
    store = open_state()
    acquired(store, "a")
    assert isinstance(store.acquire("s", "b", TTL_S, replacing="c"), HeldElsewhere)


def test_the_loser_of_a_lease_can_do_nothing(open_state: Open) -> None:
    store = open_state()
    lost = acquired(store, "a", SHORT_TTL_S).lease
    kept = acquired_after(open_state(), "b", SHORT_TTL_S).lease
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


def test_prefixes_isolate_engines(open_state: Open, unique: str) -> None:
    store, other = open_state(), open_state(prefix=f"{unique}:b")
    store.write(acquired(store, "a").lease, {"x": "1"})
    assert acquired(other, "b").fields == {}
    assert store.read_all() == {"s": ({"x": "1"}, "a")}


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

    open_state().read_shared("d")  # the file is there: of several that create it at once, some must try again
    threads = [threading.Thread(target=compete, args=(n,)) for n in range(len(stores))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert open_state().read_shared("d")[0] == sum(won)


def test_all_shared_documents_are_read_with_their_names(open_state: Open, unique: str) -> None:
    store, other = open_state(), open_state(prefix=f"{unique}:b")
    assert store.read_all_shared() == {}
    names = ["schema:shop.a:b/c é*{}[x]", "backfills", "a" * 200, "schema:Shop.orders", "schema:shop.orders"]
    for name in names:
        assert store.write_shared(name, 1, f"of {name}")
    assert store.write_shared("backfills", 2, "")
    assert other.write_shared("of another prefix", 1, "x")
    store.write(acquired(store, "a").lease, {"x": "1"})
    wanted = {name: (1, f"of {name}") for name in names} | {"backfills": (2, "")}
    assert open_state().read_all_shared() == wanted
    assert list(open_state().read_all_shared()) == sorted(wanted)


def test_a_shared_document_is_put_in_place_or_removed(open_state: Open) -> None:
    store = open_state()
    store.put_shared("d", 7, "seven")
    assert open_state().read_shared("d") == (7, "seven")
    assert not store.write_shared("d", 7, "other")
    assert store.write_shared("d", 8, "eight")
    store.put_shared("d", 3, "three")
    assert store.read_all_shared() == {"d": (3, "three")}
    store.put_shared("d", 0, "")
    store.put_shared("never was", 0, "")
    assert open_state().read_shared("d") == (0, "")
    assert store.read_all_shared() == {}
    assert store.write_shared("d", 1, "one")


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


def test_checking_leaves_nothing_behind(open_state: Open) -> None:
    made = open_state()
    lease = acquired(made, "a").lease
    made.write(lease, {"x": "1"})
    before = made.read_all()
    doubts = open_state(read_only=True).check()
    assert all("settings cannot be read" in each for each in doubts)  # a user without the right to read them
    assert made.read_all() == before
    made.write(lease, {"x": "2"})


def test_a_process_without_descriptors_may_try_again(open_state: Open) -> None:
    """Whatever the library of the store wants to open first."""
    open_state().read_shared("d")  # what is imported then stays
    store = open_state()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(TransientError) as caught:
            store.write_shared("d", 1, "text")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert store.write_shared("d", 1, "text")
    assert "ulimit -n" in caught.value.remedy, caught.value


def test_engines_see_what_each_other_says(open_state: Open) -> None:
    first, second = open_state(), open_state()
    assert first.announced() == {}
    first.announce("a", "é {1}", TTL_S)
    second.announce("b", "2", TTL_S)
    assert first.announced() == second.announced() == {"a": "é {1}", "b": "2"}
    first.announce("a", "3", TTL_S)
    assert second.announced() == {"a": "3", "b": "2"}
    assert open_state(read_only=True).announced() == {"a": "3", "b": "2"}
    first.announce("a", "", TTL_S)
    assert second.announced() == {"b": "2"}


def test_an_engine_that_is_silent_is_no_longer_seen(open_state: Open) -> None:
    store = open_state()
    store.announce("a", "1", SHORT_TTL_S)
    store.announce("b", "2", TTL_S)
    deadline = time.monotonic() + 10  # an S3 server tells ages in whole seconds
    while "a" in store.announced() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert store.announced() == {"b": "2"}
    store.announce("a", "3", TTL_S)
    assert store.announced() == {"a": "3", "b": "2"}


def test_what_engines_say_is_neither_a_record_nor_a_document(open_state: Open) -> None:
    store = open_state()
    store.announce("a", "1", TTL_S)
    assert store.read_all() == {}
    assert store.read_all_shared() == {}
    lease = acquired(store, "a").lease
    store.announce("a", "2", TTL_S)
    store.renew(lease, TTL_S)
    assert store.announced() == {"a": "2"}
    assert isinstance(open_state().acquire("s", "b", TTL_S), HeldElsewhere)


def test_a_record_that_is_known_to_have_been_there_is_not_made_anew(open_state: Open) -> None:
    store = open_state()
    with pytest.raises(StateLostError):
        store.acquire("s", "a", TTL_S, at_least=1)
    assert isinstance(store.acquire("s", "a", TTL_S), Acquired)
    store = open_state()
    assert isinstance(store.acquire("s", "a", TTL_S, at_least=1), Acquired)
    with pytest.raises(StateLostError):
        open_state().acquire("s", "a", TTL_S, at_least=3)
