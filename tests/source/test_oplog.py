"""The oplog's window goes on being asked for, whatever the answer was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from engine.core.messages import OplogSeen
from engine.errors import ConfigError, FatalError, HeadraceError, StreamLostError, TransientError
from engine.source import oplog
from engine.source.oplog import OplogWatch


def answers() -> Iterator[tuple[int, int] | HeadraceError]:
    yield TransientError("read", "no server")
    yield StreamLostError("read", "CappedPositionLost")
    yield FatalError("read", "not on this server")
    yield (1, 2)
    yield ConfigError("read", "not authorized")
    yield (3, 4)


def test_no_answer_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given, exhausted = answers(), threading.Event()

    def window(*_: object) -> tuple[int, int]:
        answer = next(given, None)
        if answer is None:
            exhausted.set()
            threading.Event().wait()  # the thread never ends by itself
        assert answer is not None
        if isinstance(answer, HeadraceError):
            raise answer
        return answer

    monkeypatch.setattr(oplog, "oplog_window", window)
    monkeypatch.setattr(oplog, "ASK_EVERY_S", 0.02)
    client: Any = None
    watch, seen = OplogWatch(lambda: client), list[OplogSeen]()
    while not exhausted.wait(0.001):
        if (each := watch.take()) is not None:
            seen.append(each)
    seen += filter(None, [watch.take()])
    assert seen[-1] == OplogSeen(3, 4)
    assert all(each.error is None or "read" in each.error for each in seen)
