"""The state store in the lake: what only it can meet. ``test_stores`` has what all stores have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from bench.local import LocalStack
from engine.config.tree import LAKE, StateConfig
from engine.errors import ConfigError, LeaseLostError, StateLostError, TransientError
from engine.objects.conditional import S3Objects, Stored
from engine.quantities import Secret
from engine.state.lake import LakeStore
from engine.state.opening import open_store
from engine.state.seam import Acquired, HeldElsewhere
from tests.state.stores import TTL_S, acquired, s3_sink


class Objects(S3Objects):
    """Real objects, with faults that the real server cannot be made to have.

    Attributes:
        before, after: called before and after the next write, once.
        written: how many writes there were.
    """

    before: Callable[[], object] | None = None
    after: Callable[[], object] | None = None
    conditions = True
    written = 0

    def _put(self, key: str, body: bytes, condition: object) -> str:
        self.written += 1
        if (before := self.before) is not None:
            self.before = None
            before()
        answer = super()._put(key, body, condition if self.conditions else {})  # type: ignore[arg-type]
        if (after := self.after) is not None:
            self.after = None
            after()
        return answer


def no_answer() -> None:
    raise TransientError("write", "no answer")


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def make(stack: LocalStack, unique: str) -> Iterator[Callable[..., tuple[LakeStore, Objects]]]:
    made: list[LakeStore] = []

    def one(clock: Callable[[], float] | None = None) -> tuple[LakeStore, Objects]:
        objects = Objects(s3_sink(stack, unique), "_headrace/test/")
        made.append(LakeStore(objects, objects.url, clock=clock or Clock(), prove=False))
        return made[-1], objects

    yield one
    for each in made:
        each.close()


Make = Callable[..., tuple[LakeStore, Objects]]


def test_a_write_whose_answer_was_lost_is_made_once(make: Make) -> None:
    store, objects = make()
    lease = acquired(store, "a").lease
    objects.after = no_answer
    with pytest.raises(TransientError):
        store.write(lease, {"x": "1"})
    store.write(lease, {"x": "1"})
    store.write(lease, {"x": "2"})
    assert store.read_all() == {"s": ({"x": "2"}, "a")}


def test_a_write_given_up_is_followed_by_another(make: Make) -> None:
    """Whether the first one took place or not, the second one comes on top of it."""
    store, objects = make()
    lease = acquired(store, "a").lease
    objects.after = no_answer
    with pytest.raises(TransientError):
        store.write(lease, {"x": "1"})
    store.write(lease, {"y": "2"})
    assert store.read_all()["s"][0] == {"x": "1", "y": "2"}
    objects.before = no_answer
    with pytest.raises(TransientError):
        store.write(lease, {"x": "3"})
    store.write(lease, {"y": "4"})
    assert store.read_all()["s"][0] == {"x": "1", "y": "4"}


def test_an_acquisition_whose_answer_was_lost_is_made_again(make: Make) -> None:
    store, objects = make()
    store.acquire("other", "a", TTL_S)
    objects.after = no_answer
    with pytest.raises(TransientError):
        store.acquire("s", "a", TTL_S)
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "1"})
    assert lease.epoch == 2


def test_a_request_that_arrives_late_changes_nothing(make: Make) -> None:
    store, objects = make()
    lease = acquired(store, "a").lease
    late: list[Callable[[], object]] = []

    def hold_back() -> None:
        key, body, tag = "streams/s.json", b"", store._held[lease].etag
        body = next(iter(store._held[lease].attempts.values())).nonce.encode()
        late.append(lambda: objects.put(key, body, tag))
        no_answer()

    objects.before = hold_back
    with pytest.raises(TransientError):
        store.write(lease, {"x": "1"})
    store.write(lease, {"x": "1"})
    (send,) = late
    assert send() is None
    assert store.read_all()["s"][0] == {"x": "1"}


def test_whoever_was_taken_over_can_write_no_more(make: Make) -> None:
    """Even if the write was on its way when that happened."""
    clock = Clock()
    store, objects = make()
    other, _ = make(clock)
    lease = acquired(store, "a").lease

    def take_over() -> None:
        assert isinstance(other.acquire("s", "b", TTL_S), HeldElsewhere)
        clock.now_s += TTL_S + 0.1
        other.write(acquired(other, "b").lease, {"x": "theirs"})

    objects.before = take_over
    with pytest.raises(LeaseLostError, match="b has held it since epoch 2"):
        store.write(lease, {"x": "ours"})
    assert other.read_all()["s"][0] == {"x": "theirs"}


def test_an_owner_is_gone_only_after_it_was_seen_unchanged(make: Make) -> None:
    clock = Clock()
    watcher, _ = make(clock)
    owner, _ = make(own := Clock())
    lease = acquired(owner, "a", 10.0).lease
    clock.now_s = 1000.0  # whatever happened before it looked
    found = watcher.acquire("s", "b", 10.0)
    assert found == HeldElsewhere("a", 10.0)
    clock.now_s += 9.0
    assert isinstance(watcher.acquire("s", "b", 10.0), HeldElsewhere)
    own.now_s += 5.0
    owner.renew(lease, 10.0)
    clock.now_s += 9.0
    assert watcher.acquire("s", "b", 10.0) == HeldElsewhere("a", 10.0)
    clock.now_s += 500.0  # the watcher was paused: it looks again before it takes anything
    own.now_s += 5.0
    owner.renew(lease, 10.0)
    assert watcher.acquire("s", "b", 10.0) == HeldElsewhere("a", 10.0)
    clock.now_s += 10.0
    assert isinstance(watcher.acquire("s", "b", 10.0), Acquired)


def test_renewals_of_many_leases_are_one_write(make: Make) -> None:
    clock = Clock()
    store, objects = make(clock)
    leases = []
    for number in range(20):
        found = store.acquire(f"s{number}", "a", 30.0)
        assert isinstance(found, Acquired)
        leases.append(found.lease)
    clock.now_s += 10.0
    objects.written = 0
    for lease in leases:
        store.renew(lease, 30.0)
    assert objects.written == 1


@pytest.mark.parametrize("how", ["deleted", "older epoch"])
def test_a_lost_record_is_never_made_again(make: Make, how: str) -> None:
    store, objects = make()
    first = acquired(store, "a").lease
    older = objects.get("streams/s.json")
    assert older is not None
    store.release(first)
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "1"})
    if how == "deleted":
        objects.delete("streams/s.json")
    else:
        objects.put_always("streams/s.json", older.body)
    for act in (
        lambda: store.write(lease, {"x": "2"}),
        lambda: store.renew(lease, TTL_S),
        lambda: store.acquire("s", "a", TTL_S),
    ):
        with pytest.raises(StateLostError):
            act()
    found = objects.get("streams/s.json")
    assert (found and found.body) == (None if how == "deleted" else older.body)


def test_writes_that_the_store_has_lost_are_restored(make: Make) -> None:
    store, objects = make()
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "1"})
    earlier = objects.get("streams/s.json")
    assert earlier is not None
    store.write(lease, {"x": "2", "y": "2"})
    objects.put_always("streams/s.json", earlier.body)
    store.write(lease, {"z": "3"})
    assert store.read_all()["s"][0] == {"x": "2", "y": "2", "z": "3"}


def test_a_store_that_ignores_conditions_is_refused(stack: LocalStack, unique: str) -> None:
    objects = Objects(s3_sink(stack, unique), "_headrace/test/")
    objects.conditions = False
    with closing(LakeStore(objects, objects.url)) as store:
        for use in (store.check, lambda: store.acquire("s", "a", TTL_S), lambda: store.write_shared("d", 1, "")):
            with pytest.raises(ConfigError, match=r"must not exist yet.*Set state.url to a Redis server"):
                use()
    assert objects.listed("") == {}


def test_a_store_that_honours_only_creation_is_refused(stack: LocalStack, unique: str) -> None:
    class Half(Objects):
        def put(self, key: str, body: bytes, replacing: str | None) -> str | None:
            if replacing is not None:
                return self._put(key, body, {})
            return super().put(key, body, replacing)

    objects = Half(s3_sink(stack, unique), "_headrace/test/")
    with closing(LakeStore(objects, objects.url)) as store, pytest.raises(ConfigError, match="no longer has"):
        store.check()
    assert objects.listed("") == {}


@pytest.mark.parametrize("name", ["schema:shop.a/b ü%", "x" * 400, "..", "schema:" + "é" * 120])
def test_any_name_has_an_object_of_its_own(make: Make, name: str) -> None:
    store, _ = make()
    assert store.write_shared(name, 1, "text")
    assert not store.write_shared(f"{name}b", 2, "")
    assert store.read_shared(name) == (1, "text")
    assert isinstance(store.acquire(name, "a", TTL_S), Acquired)
    assert list(store.read_all()) == [name]


@pytest.mark.parametrize(
    ("body", "error"), [(b'{"format": 99}', ConfigError), (b"{}", StateLostError), (b"\xff", StateLostError)]
)
def test_what_it_cannot_have_written_is_refused(make: Make, body: bytes, error: type[Exception]) -> None:
    store, objects = make()
    objects.put_always("streams/s.json", body)
    objects.put_always("shared/d.json", body)
    for read in (store.read_all, lambda: store.acquire("s", "a", TTL_S), lambda: store.read_shared("d")):
        with pytest.raises(error):
            read()


def test_an_object_is_replaced_by_its_tag_alone(make: Make) -> None:
    _, objects = make()
    tag = objects.put("k", b"1", None)
    assert tag is not None
    assert objects.put("k", b"2", None) is None
    assert objects.put("k", b"2", '"0123"') is None
    assert objects.put("absent", b"2", tag) is None
    assert objects.get("k") == Stored(b"1", tag)
    assert objects.listed("k")["k"].etag == tag
    assert objects.get("absent") is None


def test_only_an_object_store_or_a_directory_can_hold_the_state(stack: LocalStack) -> None:
    from engine.config.tree import SinkConfig

    with pytest.raises(ConfigError, match="only s3:// and file:// sinks"):
        open_store(StateConfig(Secret(LAKE)), SinkConfig("memory://x"))


def test_nothing_is_kept_of_engines_that_have_left(make: Make) -> None:
    """However many there were: neither an object, nor what was seen of it."""
    (watching, objects), (other, _) = make(), make()
    for number in range(3):
        other.announce(f"engine{number}", "1", TTL_S)
        assert f"engine{number}" in watching.announced()
        other.announce(f"engine{number}", "", TTL_S)
        assert f"engine{number}" not in watching.announced()
    assert objects.listed("engines/") == {}
    assert watching._watched == {}
    # Whoever comes back is alive, and keeps its leases.
    other.announce("engine0", "2", TTL_S)
    lease = acquired(other, "engine0").lease
    assert isinstance(watching.acquire("s", "b", TTL_S), HeldElsewhere)
    other.renew(lease, TTL_S)
