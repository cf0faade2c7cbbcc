"""The thread between the supervisor and a real store."""

from __future__ import annotations

from pathlib import Path

from engine.config.tree import RetryConfig, StateConfig
from engine.core import records
from engine.core.actions import Acquire, Write
from engine.core.messages import StreamSpec
from engine.core.position import Position
from engine.state.opening import open_store
from engine.state.thread import StateWorker


def begin(path: Path, *specs: StreamSpec) -> list[StateWorker]:
    """Engines that all have found an empty store, and now begin one stream each."""
    config = StateConfig(url=f"sqlite:///{path}")  # type: ignore[arg-type]
    retry = RetryConfig()
    workers = [
        StateWorker(open_store(config), f"host/{n}", 30.0, retry, 100, lambda _: None) for n in range(len(specs))
    ]
    for worker, spec in zip(workers, specs, strict=True):
        worker.do(Acquire(spec.stream))
    for worker, spec in zip(workers, specs, strict=True):
        worker.do(Write(spec.stream, 1, records.begin(spec, "", "rs0", Position("", 5))))
    return workers


def test_of_two_engines_that_begin_at_once_one_finds_that_they_capture_the_same(tmp_path: Path) -> None:
    left = StreamSpec("shop~1", "database", "shop", ("p", "q"))
    right = StreamSpec("shop~2", "database", "shop", ("q", "r"))
    workers = begin(tmp_path / "state.db", left, right)
    ended = [worker.close(30) for worker in workers]
    assert not all(ended)
    errors = [str(worker.error) for worker in workers if worker.error]
    assert all("captures some of it, too" in error for error in errors)


def test_engines_with_collections_of_their_own_do_not_meet(tmp_path: Path) -> None:
    specs = [StreamSpec(f"shop~{n}", "database", "shop", (name,)) for n, name in enumerate("pqr")]
    parts = [StreamSpec(f"shop.s~{n}of2", "collection", "shop", ("s",), n, 2) for n in range(2)]
    assert all(worker.close(30) for worker in begin(tmp_path / "state.db", *specs, *parts))
