"""The table of phases: the legal steps, the effects of each, and that all others are refused."""

from __future__ import annotations

import pytest

from engine.core.ledger import Ledger, PublishSegment, WriteCommit, WriteIntent
from engine.core.messages import Intent, ObjectName
from engine.core.position import Position


def at(number: int) -> Position:
    return Position(f"82{number:016x}", number)


def intent(seq: int, *keys: str) -> Intent:
    return Intent(seq, "", at(seq), tuple(map(ObjectName, keys)), rows=10)


def advanced(ledger: Ledger, seq: int, steps: int, writer: int = 0) -> list[object]:
    """Take a segment through its first ``steps`` steps; the effects of the last one."""
    effects: list[object] = []
    for number in range(steps):
        match number:
            case 0:
                ledger.segment(seq, writer)
            case 1:
                ledger.cut(intent(seq))
            case 2:
                effects = list(ledger.sealed(seq, (ObjectName(f"key-{seq}"),)))
            case 3:
                effects = list(ledger.intent_durable(seq))
            case 4:
                effects = list(ledger.published(seq))
    return effects


def test_one_segment_from_batch_to_commit() -> None:
    ledger = Ledger()
    ledger.segment(1, 0)
    ledger.cut(intent(1))
    (recorded,) = ledger.sealed(1, (ObjectName("key"),))
    assert recorded == WriteIntent(Intent(1, "", at(1), (ObjectName("key"),), 10))
    (publish,) = ledger.intent_durable(1)
    assert isinstance(publish, PublishSegment)
    assert publish.segment.seq == 1
    assert ledger.published(1) == [WriteCommit(1, at(1), (1,), 10)]
    assert (ledger.committed, ledger.committed_seq, ledger.in_flight) == (at(1), 1, 0)


def test_intents_leave_in_order() -> None:
    ledger = Ledger()
    ledger.segment(1, 0)
    ledger.segment(2, 1)
    ledger.cut(intent(1))
    ledger.cut(intent(2))
    assert ledger.sealed(2, (ObjectName("b"),)) == []
    effects = ledger.sealed(1, (ObjectName("a"),))
    assert [effect.intent.seq for effect in effects if isinstance(effect, WriteIntent)] == [1, 2]


def test_commits_leave_in_order_and_together() -> None:
    ledger = Ledger()
    for seq in (1, 2, 3):
        ledger.segment(seq, 0)
        ledger.cut(intent(seq))
    for seq in (1, 2, 3):
        ledger.sealed(seq, ())
        ledger.intent_durable(seq)
    assert ledger.published(2) == []
    assert ledger.published(1) == [WriteCommit(2, at(2), (1, 2), 20)]
    assert ledger.published(3) == [WriteCommit(3, at(3), (3,), 10)]


def test_a_restart_replays_every_intent_that_may_be_durable() -> None:
    ledger = Ledger()
    advanced(ledger, 1, 5)
    advanced(ledger, 2, 4)
    advanced(ledger, 3, 3)
    ledger.segment(4, 0)
    replay = ledger.restart()
    assert [(each.seq, each.objects[0].key) for each in replay] == [(2, "key-2"), (3, "key-3")]
    assert ledger.in_flight == 0
    assert ledger.segment(2, 1).writer == 1


def test_a_replay_keeps_the_objects_of_its_intent() -> None:
    ledger = Ledger(at(1), 1, [intent(2, "old")])
    ledger.restart()
    ledger.segment(2, 0)
    ledger.cut(intent(2, "old"))
    with pytest.raises(AssertionError, match="at least the objects"):
        ledger.sealed(2, (ObjectName("new"),))
    (effect,) = ledger.sealed(2, (ObjectName("new"), ObjectName("old")))
    assert isinstance(effect, WriteIntent)
    assert {name.key for name in effect.intent.objects} == {"new", "old"}


def test_an_idle_stream_moves_forward_only() -> None:
    ledger = Ledger(at(5), 1)
    assert ledger.idle(at(5)) == []
    assert ledger.idle(at(4)) == []
    assert ledger.idle(at(6)) == [WriteCommit(1, at(6))]


def test_a_stream_with_work_is_not_idle() -> None:
    ledger = Ledger(at(5), 1)
    ledger.segment(2, 0)
    assert ledger.idle(at(9)) == []
    assert Ledger(at(5), 1, [intent(2)]).idle(at(9)) == []


def test_intents_with_a_gap_are_refused() -> None:
    with pytest.raises(AssertionError, match="without a gap"):
        Ledger(at(1), 1, [intent(3)])


def test_numbers_have_no_gap() -> None:
    ledger = Ledger()
    ledger.segment(1, 0)
    with pytest.raises(AssertionError, match="segment 3 after 1"):
        ledger.segment(3, 0)


STEPS = {
    "cut": lambda ledger: ledger.cut(intent(1)),
    "sealed": lambda ledger: ledger.sealed(1, ()),
    "intent_durable": lambda ledger: ledger.intent_durable(1),
    "published": lambda ledger: ledger.published(1),
}


@pytest.mark.parametrize("steps", range(1, 5))
@pytest.mark.parametrize("name", STEPS)
def test_every_other_transition_is_illegal(steps: int, name: str) -> None:
    legal = list(STEPS)[steps - 1]
    ledger = Ledger()
    advanced(ledger, 1, steps)
    if name == legal:
        STEPS[name](ledger)
    else:
        with pytest.raises(AssertionError, match="segment 1 is"):
            STEPS[name](ledger)


def test_the_repr_shows_what_is_in_flight() -> None:
    ledger = Ledger()
    advanced(ledger, 1, 3, writer=1)
    assert repr(ledger) == "<Ledger committed=0 intents=[1] [1:recorded@1]>"
