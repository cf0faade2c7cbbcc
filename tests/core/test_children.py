"""Child processes that die, hang, or never become ready."""

from __future__ import annotations

import random

import pytest

from engine.core.actions import Child, Kill, Log, Spawn
from engine.core.children import Children
from engine.core.messages import (
    Heartbeat,
)
from engine.core.restarts import RetryPolicy
from engine.errors import TransientError

CHILD = Child("writer", 0)


@pytest.fixture
def children() -> Children:
    children = Children([CHILD], RetryPolicy(3, 1.0, 8.0), 60.0, random.Random(1))
    assert children.start_due(0.0) == []
    children.want(CHILD)
    return children


def test_a_dead_child_is_started_again_after_a_delay(children: Children) -> None:
    assert children.start_due(0.0) == [Spawn(CHILD)]
    (log,) = children.exited(CHILD, -9, 1.0)
    assert isinstance(log, Log)
    assert log.fields["ended"] == "signal 9"
    assert children.start_due(1.1) == []
    assert children.start_due(3.0) == [Spawn(CHILD)]


def test_a_child_killed_for_lack_of_memory_is_reported_as_such(children: Children) -> None:
    for _ in range(3):
        children.start_due(100.0)
        (log,) = children.exited(CHILD, -9, 0.0, out_of_memory=True)
        assert isinstance(log, Log)
        assert log.fields["ended"] == "killed by the kernel: out of memory"
        assert "more memory" in str(log.fields["remedy"])
    last = children.terminal_error(CHILD)
    assert "3 times in a row, most recently killed by the kernel: out of memory. Give the" in str(last)


@pytest.mark.parametrize(("code", "ended"), [(1, "exit code 1"), (-11, "signal 11"), (None, "a failed start")])
def test_other_exits_are_not_reported_as_out_of_memory(children: Children, code: int | None, ended: str) -> None:
    children.start_due(0.0)
    (log,) = children.exited(CHILD, code, 1.0, out_of_memory=True)
    assert isinstance(log, Log)
    assert log.fields["ended"] == ended


def test_our_own_kill_is_not_reported_as_out_of_memory(children: Children) -> None:
    children.start_due(0.0)
    assert Kill(CHILD) in children.hung(lambda _: True, 61.0)
    (log,) = children.exited(CHILD, -9, 62.0, out_of_memory=True)
    assert isinstance(log, Log)
    assert log.fields["ended"] == "signal 9"


def test_a_child_that_keeps_dying_is_given_up(children: Children) -> None:
    for times in range(3):
        assert children.terminal_error(CHILD) is None, times
        children.start_due(100.0)
        children.exited(CHILD, 1, 0.0)
    assert "3 times in a row, most recently by exit code 1" in str(children.terminal_error(CHILD))


def test_the_error_that_a_child_reported_is_passed_on(children: Children) -> None:
    error = TransientError("connect", "refused")
    for _ in range(3):
        children.start_due(100.0)
        children[CHILD].error = error
        children.exited(CHILD, 1, 0.0)
    assert children.terminal_error(CHILD) is error
    children.became_ready(CHILD, 101.0)
    assert children[CHILD].error is None


def test_progress_resets_the_count_of_failures(children: Children) -> None:
    for now in (0.0, 1000.0, 2000.0, 3000.0):
        children.start_due(now)
        children.became_ready(CHILD, now)
        children.made_progress(CHILD)
        children.exited(CHILD, 1, now + 1)
        assert children.terminal_error(CHILD) is None


def test_time_alone_does_not_reset_the_count_of_failures(children: Children) -> None:
    for now in (0.0, 1000.0, 2000.0):
        children.start_due(now)
        children.exited(CHILD, None, now + 900)
    assert children.terminal_error(CHILD) is not None


def test_busy_and_without_progress_is_hung(children: Children) -> None:
    children.start_due(0.0)
    children.became_ready(CHILD, 0.0)
    children.beat(CHILD, Heartbeat(1, "publishing", 0.0), 10.0)
    children.beat(CHILD, Heartbeat(1, "publishing", 0.0), 70.0)
    assert children.hung(lambda _: True, 69.0) == []
    log, kill = children.hung(lambda _: True, 71.0)
    assert isinstance(log, Log)
    assert log.fields["doing"] == "publishing"
    assert kill == Kill(CHILD)
    assert children.hung(lambda _: True, 72.0) == []


def test_a_kill_without_effect_is_repeated(children: Children) -> None:
    """A child that was given up while it was being started may start after the kill."""
    children.start_due(0.0)
    assert Kill(CHILD) in children.hung(lambda _: True, 61.0)
    children.became_ready(CHILD, 62.0)
    assert children.hung(lambda _: True, 121.0) == []
    assert Kill(CHILD) in children.hung(lambda _: True, 123.0)


def test_progress_or_idleness_is_not_hung(children: Children) -> None:
    children.start_due(0.0)
    children.became_ready(CHILD, 0.0)
    for now in range(0, 600, 50):
        children.beat(CHILD, Heartbeat(now, "", 0.0), now)
        assert children.hung(lambda _: True, now) == []
    assert children.hung(lambda _: False, 5000.0) == []
    assert children.hung(lambda _: True, 5010.0) == []


def test_a_child_that_never_becomes_ready_is_hung(children: Children) -> None:
    children.start_due(0.0)
    assert Kill(CHILD) in children.hung(lambda _: False, 61.0)


def test_our_own_pause_is_not_held_against_children(children: Children) -> None:
    children.start_due(0.0)
    children.forgive_silence(1000.0)
    assert children.hung(lambda _: True, 1001.0) == []
