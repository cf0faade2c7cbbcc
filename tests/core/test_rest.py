"""Positions, records, schemas, restarts, children, budget: the small pure pieces."""

from __future__ import annotations

import random

import pytest

from engine.core import records
from engine.core.actions import Child, Kill, Log, Spawn
from engine.core.budget import MIB, divide
from engine.core.children import Children
from engine.core.ledger import WriteCommit
from engine.core.messages import (
    Assign,
    Batch,
    FromChild,
    Grant,
    Heartbeat,
    Intent,
    ObjectName,
    Sealed,
    SegmentCut,
    ToChild,
    decode_from_child,
    decode_to_child,
    encode,
)
from engine.core.position import Position, make_time, split_time, token_time
from engine.core.restarts import Failures, RetryPolicy
from engine.core.schema import CollectionSchema, DataType, Field, grow
from engine.core.specs import StreamSpec
from engine.errors import ConfigError, TransientError, error_of_kind

REAL_TOKEN = "826B03B182000003E92B022C0100296E5A1004ED21B6581DEF41E5B19A2FCC3CBF1B8D46645F6964002B020004"


class TestPosition:
    def test_a_token_begins_with_its_cluster_time(self) -> None:
        assert token_time(REAL_TOKEN) == make_time(0x6B03B182, 0x3E9)
        assert split_time(make_time(7, 8)) == (7, 8)

    @pytest.mark.parametrize("token", ["", "82", "81" + "0" * 20, "82zz" + "0" * 20])
    def test_other_makers_tokens_have_no_time(self, token: str) -> None:
        assert token_time(token) is None

    def test_order(self) -> None:
        start, later = Position(time=5), Position(time=6)
        first, second = Position("82a", 5), Position("82b", 5)
        assert start.precedes(later)
        assert start.precedes(first)
        assert first.precedes(second)
        assert not first.precedes(first)
        assert not first.precedes(later)
        assert not second.precedes(first)


class TestRecords:
    SPEC = StreamSpec("shop.orders", "collection", "shop", ("orders",))

    def test_a_stream_from_begin_to_commit(self) -> None:
        fields: dict[str, str] = {}
        intent = Intent(1, "a", Position("82b", 2), (ObjectName("k", "shop", "orders"),), 3)
        for change in (
            records.begin(self.SPEC, "s3://x", "rs0", Position(time=1)),
            records.intended(intent, {}),
            records.intended(Intent(2, "c", Position("82d", 4)), {}),
            records.committed(WriteCommit(1, intent.end, (1,), 3), 3),
        ):
            fields.update(change.put)
            for name in change.remove:
                fields.pop(name, None)
        record = records.read_record(fields)
        assert (record.spec, record.sink, record.deployment) == (self.SPEC, "s3://x", "rs0")
        assert (record.position, record.seq, record.rows) == (intent.end, 1, 3)
        assert [each.seq for each in record.intents] == [2]

    def test_no_record(self) -> None:
        assert records.read_record({}) == records.StreamRecord()

    def test_a_closed_stream_opens_again(self) -> None:
        fields = records.close("h").put
        assert records.read_record(fields).closed
        begin = records.begin(self.SPEC, "", "", None)
        assert not records.read_record({k: v for k, v in fields.items() if k not in begin.remove}).closed


class TestSchema:
    def test_new_fields_join_and_known_ones_stay(self) -> None:
        first = grow(CollectionSchema(), (Field("a", DataType("int64")),), 10)
        second = grow(first, (Field("a", DataType("string")), Field("b", DataType("bool"))), 10)
        assert second == CollectionSchema(2, (Field("a", DataType("int64"), 1), Field("b", DataType("bool"), 2)))
        assert grow(second, (Field("b", DataType("json")),), 10) is second

    def test_structs_and_lists_grow_inside(self) -> None:
        def nested(*names: str) -> tuple[Field, ...]:
            struct = DataType("struct", tuple(Field(name, DataType("string")) for name in names))
            return (Field("s", struct), Field("l", DataType("list", item=struct)))

        grown = grow(grow(CollectionSchema(), nested("x"), 10), nested("y"), 10)
        for field in grown.fields:
            struct = field.type if field.name == "s" else field.type.item
            assert struct is not None
            assert [(each.name, each.since) for each in struct.fields] == [("x", 1), ("y", 2)]
            assert field.since == 1


class TestMessages:
    TO_CHILD: tuple[ToChild, ...] = (
        Assign(StreamSpec("s", "collection"), 1, Position("t", 5), "now", 3, (Intent(3, "", Position("u")),)),
        Batch("s", 1, 2, 4096, 100),
        Grant(1, 2, 3),
    )
    FROM_CHILD: tuple[FromChild, ...] = (
        SegmentCut(1, Intent(3, "a", Position("u"), (ObjectName("k"),), 7), "full"),
        Sealed("s", 1, 2, (ObjectName("k", "d", "c", True),), 6, 7),
        Heartbeat(1, "x", 0.5),
    )

    def test_they_come_out_as_they_went_in(self) -> None:
        for to_child in self.TO_CHILD:
            assert decode_to_child(encode(to_child)) == to_child
        for from_child in self.FROM_CHILD:
            assert decode_from_child(encode(from_child)) == from_child


class TestRestarts:
    POLICY = RetryPolicy(4, 1.0, 5.0)

    def test_delays_double_with_jitter_up_to_a_cap(self) -> None:
        rng = random.Random(1)
        for failures, full in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (99, 5.0)):
            delays = {self.POLICY.delay_s(failures, rng) for _ in range(50)}
            assert full / 2 <= min(delays) < max(delays) <= full

    def test_failures_are_counted_until_something_moves(self) -> None:
        failures = Failures(self.POLICY, random.Random(1))
        assert [failures.failed(10.0) for _ in range(4)] == [True, True, True, False]
        assert failures.retry_at > 10.0
        failures.succeeded()
        assert failures.retry_at == 0.0
        assert failures.failed(10.0)


class TestChildren:
    CHILD = Child("writer", 0)

    @pytest.fixture
    def children(self) -> Children:
        children = Children([self.CHILD], RetryPolicy(3, 1.0, 8.0), 60.0, random.Random(1))
        assert children.start_due(0.0) == []
        children.want(self.CHILD)
        return children

    def test_a_dead_child_is_started_again_after_a_delay(self, children: Children) -> None:
        assert children.start_due(0.0) == [Spawn(self.CHILD)]
        (log,) = children.exited(self.CHILD, -9, 1.0)
        assert isinstance(log, Log)
        assert log.fields["ended"] == "signal 9"
        assert children.start_due(1.1) == []
        assert children.start_due(3.0) == [Spawn(self.CHILD)]

    def test_a_kill_for_want_of_memory_is_called_one(self, children: Children) -> None:
        for _ in range(3):
            children.start_due(100.0)
            (log,) = children.exited(self.CHILD, -9, 0.0, out_of_memory=True)
            assert isinstance(log, Log)
            assert log.fields["ended"] == "killed by the kernel: out of memory"
            assert "more memory" in str(log.fields["remedy"])
        last = children.despair_of(self.CHILD)
        assert "3 times in a row, at last killed by the kernel: out of memory. Give the" in str(last)

    @pytest.mark.parametrize(("code", "ended"), [(1, "exit code 1"), (-11, "signal 11"), (None, "a failed start")])
    def test_another_end_is_no_want_of_memory(self, children: Children, code: int | None, ended: str) -> None:
        children.start_due(0.0)
        (log,) = children.exited(self.CHILD, code, 1.0, out_of_memory=True)
        assert isinstance(log, Log)
        assert log.fields["ended"] == ended

    def test_our_own_kill_is_no_want_of_memory(self, children: Children) -> None:
        children.start_due(0.0)
        assert Kill(self.CHILD) in children.hung(lambda _: True, 61.0)
        (log,) = children.exited(self.CHILD, -9, 62.0, out_of_memory=True)
        assert isinstance(log, Log)
        assert log.fields["ended"] == "signal 9"

    def test_a_child_that_dies_again_and_again_is_despaired_of(self, children: Children) -> None:
        for times in range(3):
            assert children.despair_of(self.CHILD) is None, times
            children.start_due(100.0)
            children.exited(self.CHILD, 1, 0.0)
        assert "3 times in a row, at last by exit code 1" in str(children.despair_of(self.CHILD))

    def test_what_it_said_of_its_end_is_told(self, children: Children) -> None:
        error = TransientError("connect", "refused")
        for _ in range(3):
            children.start_due(100.0)
            children[self.CHILD].error = error
            children.exited(self.CHILD, 1, 0.0)
        assert children.despair_of(self.CHILD) is error
        children.became_ready(self.CHILD, 101.0)
        assert children[self.CHILD].error is None

    def test_what_was_committed_since_forgives(self, children: Children) -> None:
        for now in (0.0, 1000.0, 2000.0, 3000.0):
            children.start_due(now)
            children.became_ready(self.CHILD, now)
            children.made_progress(self.CHILD)
            children.exited(self.CHILD, 1, now + 1)
            assert children.despair_of(self.CHILD) is None

    def test_time_alone_forgives_nothing(self, children: Children) -> None:
        for now in (0.0, 1000.0, 2000.0):
            children.start_due(now)
            children.exited(self.CHILD, None, now + 900)
        assert children.despair_of(self.CHILD) is not None

    def test_busy_and_without_progress_is_hung(self, children: Children) -> None:
        children.start_due(0.0)
        children.became_ready(self.CHILD, 0.0)
        children.beat(self.CHILD, Heartbeat(1, "publishing", 0.0), 10.0)
        children.beat(self.CHILD, Heartbeat(1, "publishing", 0.0), 70.0)
        assert children.hung(lambda _: True, 69.0) == []
        log, kill = children.hung(lambda _: True, 71.0)
        assert isinstance(log, Log)
        assert log.fields["doing"] == "publishing"
        assert kill == Kill(self.CHILD)
        assert children.hung(lambda _: True, 72.0) == []

    def test_a_kill_that_comes_to_nothing_is_repeated(self, children: Children) -> None:
        """It was given up while it waited for its start, and came just then."""
        children.start_due(0.0)
        assert Kill(self.CHILD) in children.hung(lambda _: True, 61.0)
        children.became_ready(self.CHILD, 62.0)
        assert children.hung(lambda _: True, 121.0) == []
        assert Kill(self.CHILD) in children.hung(lambda _: True, 123.0)

    def test_progress_or_idleness_is_not_hung(self, children: Children) -> None:
        children.start_due(0.0)
        children.became_ready(self.CHILD, 0.0)
        for now in range(0, 600, 50):
            children.beat(self.CHILD, Heartbeat(now, "", 0.0), now)
            assert children.hung(lambda _: True, now) == []
        assert children.hung(lambda _: False, 5000.0) == []
        assert children.hung(lambda _: True, 5010.0) == []

    def test_a_child_that_never_gets_ready_is_hung(self, children: Children) -> None:
        children.start_due(0.0)
        assert Kill(self.CHILD) in children.hung(lambda _: False, 61.0)

    def test_our_own_pause_is_nobodys_silence(self, children: Children) -> None:
        children.start_due(0.0)
        children.forgive_silence(1000.0)
        assert children.hung(lambda _: True, 1001.0) == []


class TestBudget:
    def test_the_terms_add_up_to_no_more_than_the_limit(self) -> None:
        for limit in (512, 1024, 2048, 16384):
            for readers, writers in ((1, 2), (4, 2)):
                budget = divide(limit * MIB, readers, writers) if limit >= 768 or readers == 1 else None
                if budget:
                    assert sum(size for _, size in budget.terms()) <= limit * MIB

    def test_more_memory_goes_to_everything_that_can_use_it(self) -> None:
        small, large = divide(512 * MIB, 1, 2), divide(2048 * MIB, 1, 2)
        assert small.arena < large.arena
        assert small.reply <= large.reply
        assert small.writer_pending < large.writer_pending

    def test_what_cannot_fit_is_refused_with_the_sum(self) -> None:
        with pytest.raises(ConfigError) as caught:
            divide(512 * MIB, 8, 2)
        text = str(caught.value)
        assert "8 reader(s) x 48MiB" in text
        assert "in all" in text
        assert caught.value.remedy


def test_errors_travel_by_their_fields() -> None:
    error = ConfigError("open", "no", "do this")
    assert str(error_of_kind(error.kind, error.operation, error.cause, error.remedy)) == "open: no. do this"
    assert isinstance(error_of_kind("config", "", "", ""), ConfigError)
