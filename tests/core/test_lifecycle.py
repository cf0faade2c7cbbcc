"""The tables of a stream's life: what they allow, and what they refuse."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path
from typing import get_args

import pytest

import engine
from engine.core.lifecycle import OPEN, TRANSITIONS, Event, Lease, Lifecycle, Stage


def lived(*events: Event) -> Lifecycle:
    life = Lifecycle()
    for event in events:
        life.on(event)
    return life


TO_READING: tuple[Event, ...] = (
    "lease asked for",
    "lease taken",
    "survey started",
    "survey clear",
    "assigned",
    "opened",
)


def test_a_stream_from_its_lease_to_its_end() -> None:
    stages = [lived(*TO_READING[:count]).stage for count in range(len(TO_READING) + 1)]
    assert stages == [
        Stage.WAITING,
        Stage.WAITING,
        Stage.ACQUIRED,
        Stage.SURVEYING,
        Stage.READY,
        Stage.ASSIGNED,
        Stage.READING,
    ]
    life = lived(*TO_READING, "read out", "finished")
    assert (life.lease, life.stage) == (Lease.HELD, Stage.FINISHED)


def test_a_stream_that_is_interrupted_is_surveyed_once() -> None:
    life = lived(*TO_READING, "interrupted")
    assert (life.lease, life.stage) == (Lease.HELD, Stage.READY)
    life = lived(*TO_READING[:3], "interrupted")
    assert (life.lease, life.stage) == (Lease.HELD, Stage.ACQUIRED)
    life = lived(*TO_READING, "lease lost")
    assert (life.lease, life.stage) == (Lease.FREE, Stage.WAITING)


def test_a_stream_in_doubt_acquires_its_lease_again() -> None:
    life = lived(*TO_READING[:3], "survey doubted", "lease taken")
    assert (life.lease, life.stage) == (Lease.HELD, Stage.ACQUIRED)


def test_a_lease_that_comes_after_the_end_is_released() -> None:
    life = lived("lease asked for", "failed", "lease taken", "lease released")
    assert (life.lease, life.stage) == (Lease.FREE, Stage.FAILED)


@pytest.mark.parametrize(
    ("events", "illegal"),
    [
        ((), "lease taken"),
        ((), "assigned"),
        (("lease asked for",), "lease asked for"),
        (("lease asked for", "lease taken"), "assigned"),
        (TO_READING[:4], "opened"),
        (TO_READING[:5], "read out"),
        (TO_READING, "assigned"),
        (TO_READING, "finished"),
        (TO_READING, "lease released"),
        ((*TO_READING, "failed"), "interrupted"),
        ((*TO_READING, "failed"), "failed"),
        ((*TO_READING, "read out", "finished"), "opened"),
    ],
)
def test_transitions_outside_the_tables_are_bugs(events: tuple[Event, ...], illegal: Event) -> None:
    life = lived(*events)
    before = life.lease, life.stage
    with pytest.raises(AssertionError, match=illegal):
        life.on(illegal)
    assert (life.lease, life.stage) == before


def test_the_tables_are_complete() -> None:
    assert set(TRANSITIONS) == set(get_args(Event))
    targets = {target for _, stages in TRANSITIONS.values() for target in stages.values()}
    assert targets == set(Stage)
    for event, (leases, stages) in TRANSITIONS.items():
        assert leases, event
        assert stages, event
        leaves_the_end = {stage for stage in stages if stage not in OPEN and stages[stage] is not stage}
        assert not leaves_the_end, f"{event} leaves {leaves_the_end}"


def test_no_stream_is_read_without_its_lease() -> None:
    """In every state that any sequence of events can reach."""
    reached = {(Lease.FREE, Stage.WAITING)}
    left = list(reached)
    while left:
        lease, stage = left.pop()
        for leases, stages in TRANSITIONS.values():
            if lease in leases and stage in stages and (after := (leases[lease], stages[stage])) not in reached:
                reached.add(after)
                left.append(after)
    held = set(Stage) - {Stage.WAITING, Stage.FINISHED, Stage.FAILED}
    assert {stage for lease, stage in reached if lease is not Lease.HELD}.isdisjoint(held)
    everywhere = set(itertools.product([Lease.HELD], held))
    assert everywhere < reached


def test_no_other_module_writes_a_lease_or_a_stage() -> None:
    for path in Path(engine.__path__[0], "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            names = {each.attr for each in targets if isinstance(each, ast.Attribute)}
            if path.name != "lifecycle.py":
                assert names.isdisjoint({"_lease", "_stage", "lease", "stage", "life"}), path
