"""Coordinators on one real store, each with a state thread and simulated children."""

from __future__ import annotations

import queue
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec

from engine.config.tree import RetryConfig, StateConfig
from engine.core.actions import Acquire, Action, Child, Exit, GrowSchema, ReadState, Release, Renew, Send, Write
from engine.core.coordinator import Coordinator
from engine.core.messages import Assign, ReaderReady, Started, Survey, Surveyed, WriterReady
from engine.core.position import Position
from engine.core.specs import StreamSpec
from engine.core.store import FromStore, Written
from engine.state.opening import open_store
from engine.state.thread import StateThread
from tests.core.test_coordinator import SETTINGS

READER, WRITER = Child("reader", 0), Child("writer", 0)


class Engine:
    """An engine with one stream, up to its first position."""

    def __init__(self, path: Path, number: int, spec: StreamSpec) -> None:
        config = StateConfig(url=f"sqlite:///{path}")  # type: ignore[arg-type]
        self._answers: queue.SimpleQueue[FromStore] = queue.SimpleQueue()
        self._thread = StateThread(open_store(config), f"host{number}/1", 30.0, RetryConfig(), self._answers.put)
        self._coordinator = Coordinator(msgspec.structs.replace(SETTINGS), [spec], random.Random(number))
        self.exit: Exit | None = None
        self.begun = False
        self._owed = 0

    def acquire(self) -> None:
        """Start, and request the lease; nothing is stored yet."""
        self._perform(self._coordinator.start(0.0))
        self._perform(self._coordinator.from_child(READER, ReaderReady("rs0", "7", 1), 0.1))
        self._perform(self._coordinator.from_child(WRITER, WriterReady(), 0.1))
        self._perform(self._coordinator.tick(0.2))

    def begin(self) -> None:
        """Continue until the store has answered all requests."""
        while self._owed:
            answer = self._answers.get(timeout=30)
            self._owed -= 1
            self.begun |= isinstance(answer, Written) and answer.kind == "begin"
            self._perform(self._coordinator.from_store(answer, 1.0))

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Acquire() | Renew() | Release() | Write() | GrowSchema() | ReadState():
                    self._owed += isinstance(action, Acquire | Write | ReadState)
                    self._thread.do(action)
                case Send(_, Survey(spec, generation)):
                    answer = Surveyed(spec.stream, generation, None)
                    self._perform(self._coordinator.from_child(WRITER, answer, 0.5))
                case Send(_, Assign() as assign):
                    started = Started(assign.generation, Position(time=5))
                    self._perform(self._coordinator.from_child(READER, started, 0.5))
                case Exit():
                    self.exit = action

    def await_lease(self) -> None:
        """Wait until the lease is acquired, without reading the answer."""
        answer = self._answers.get(timeout=30)
        self._answers.put(answer)

    def close(self) -> None:
        """Stop the thread."""
        assert self._thread.close(30)


def begin(path: Path, *specs: StreamSpec) -> list[Engine]:
    """Engines that have all seen an empty store, and now start one stream each."""
    engines = [Engine(path, number, spec) for number, spec in enumerate(specs)]
    for engine in engines:
        engine.acquire()
        engine.await_lease()
    for engine in engines:
        engine.begin()
        engine.close()
    return engines


def test_two_engines_that_start_at_once_notice_that_they_capture_the_same(tmp_path: Path) -> None:
    left = StreamSpec("shop~1", "database", "shop", ("p", "q"))
    right = StreamSpec("shop~2", "database", "shop", ("q", "r"))
    exits = [engine.exit for engine in begin(tmp_path / "state.db", left, right) if engine.exit]
    assert exits
    assert all(each.code == 2 and "also captures some of it" in str(each.error) for each in exits)


def test_engines_with_different_collections_do_not_conflict(tmp_path: Path) -> None:
    specs = [StreamSpec(f"shop~{n}", "database", "shop", (name,)) for n, name in enumerate("pqr")]
    parts = [StreamSpec(f"shop.s~{n}of2", "collection", "shop", ("s",), n, 2) for n in range(2)]
    engines = begin(tmp_path / "state.db", *specs, *parts)
    assert all(engine.begun for engine in engines)
    assert not any(engine.exit for engine in engines)
