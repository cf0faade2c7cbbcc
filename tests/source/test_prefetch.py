"""The thread that reads ahead: its retries, and what stops it."""

from __future__ import annotations

import threading
import time
from multiprocessing.connection import wait

import bson
import pytest

from bench.local.servers import wait_until
from engine.config import RetryConfig
from engine.errors import FatalError, HeadraceError, StreamLostError, TransientError
from engine.rawbson.offsets import document_offsets
from engine.source.prefetch import Prefetcher
from engine.source.reply import Reply
from tests.source.replies import event, reply_of

QUICK = RetryConfig(max_attempts=5, initial_delay=0.01, max_delay=0.05)  # type: ignore[arg-type]


class Scripted:
    """A stream that follows a script."""

    def __init__(self, script: list[Reply | HeadraceError]) -> None:
        self.script = script
        self.closed = threading.Event()
        self.calls = 0
        self.unanswered_s = 0.0

    def next(self) -> Reply:
        self.calls += 1
        step = self.script.pop(0) if self.script else reply_of([])
        if isinstance(step, HeadraceError):
            raise step
        return step

    def close(self) -> None:
        self.closed.set()


def taken(prefetcher: Prefetcher) -> Reply:
    while (reply := prefetcher.take()) is None:  # as the reader does it
        assert wait([prefetcher.fileno()], 10)
    return reply


def test_transient_errors_are_retried() -> None:
    away = TransientError("read", "away")
    stream = Scripted([away, away, reply_of([event("a")])])
    prefetcher = Prefetcher(stream, QUICK)
    assert len(taken(prefetcher)) == 1
    prefetcher.stop()
    assert stream.closed.wait(10)


def test_retries_are_limited() -> None:
    stream = Scripted([TransientError("read", "away")] * 99)
    prefetcher = Prefetcher(stream, QUICK)
    with pytest.raises(FatalError, match=r"longer than the \[retry\] budget"):
        taken(prefetcher)
    assert stream.calls == 5
    assert stream.closed.wait(10)
    prefetcher.stop()


def test_a_cursor_that_opens_but_cannot_be_read_is_given_up() -> None:
    away = TransientError("read", "killed")
    script: list[Reply | HeadraceError] = [reply_of([], "t"), away]
    stream = Scripted(script * 99)
    prefetcher = Prefetcher(stream, QUICK)
    for _ in range(5):
        taken(prefetcher)
    with pytest.raises(FatalError, match=r"longer than the \[retry\] budget"):
        taken(prefetcher)
    assert stream.calls == 10
    prefetcher.stop()


def test_waiting_for_the_next_attempt_counts_as_progress() -> None:
    """An attempt and its delay may take longer than ``supervision.hang_timeout``."""
    stream = Scripted([TransientError("read", "away")])
    patient = RetryConfig(max_attempts=2, initial_delay=600, max_delay=600)  # type: ignore[arg-type]
    prefetcher = Prefetcher(stream, patient)
    wait_until(lambda: prefetcher.progress > 2, "progress")
    assert stream.calls == 1
    prefetcher.stop()
    assert stream.closed.wait(10)


def test_after_a_large_reply_the_next_is_read_only_once_it_is_released() -> None:
    large = [Reply(bytes(13 << 20), document_offsets(bson.encode({}), 0), token) for token in "ab"]
    stream = Scripted([*large, reply_of([event("c")], "c")])
    prefetcher = Prefetcher(stream, QUICK)
    for calls, token in enumerate("ab", start=1):
        assert taken(prefetcher).token == token
        time.sleep(0.3)  # long enough for another call
        assert stream.calls == calls
    assert taken(prefetcher).token == "c"
    prefetcher.stop()
    assert stream.closed.wait(10)


def test_stopped_while_a_large_reply_is_in_use() -> None:
    stream = Scripted([Reply(bytes(13 << 20), document_offsets(bson.encode({}), 0), "a")])
    prefetcher = Prefetcher(stream, QUICK)
    taken(prefetcher)
    prefetcher.stop()
    assert stream.closed.wait(10)
    assert stream.calls == 1


def test_other_errors_are_raised_at_once() -> None:
    stream = Scripted([StreamLostError("read", "gone")])
    prefetcher = Prefetcher(stream, QUICK)
    with pytest.raises(StreamLostError):
        taken(prefetcher)
    prefetcher.stop()


def test_nothing_is_read_ahead_while_replies_are_not_taken() -> None:
    stream = Scripted([reply_of([event("a")]) for _ in range(9)])
    prefetcher = Prefetcher(stream, QUICK)
    threading.Event().wait(0.3)
    assert stream.calls == 2  # one in the queue, and one waiting for it
    taken(prefetcher)
    threading.Event().wait(0.3)
    assert stream.calls == 3
    prefetcher.stop()
    assert stream.closed.wait(10)
