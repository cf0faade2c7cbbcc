"""Requests that may take long, made so that the caller's loop can keep sending heartbeats."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, TypeVar

BEAT_S = 1.0
_T = TypeVar("_T")


class Calls:
    """Requests to a store, and how long they have been in flight.

    State: when each of them started, and the one that was begun and not waited for, if any. With ``beat``,
    requests of the thread that created this object run in another one, one at a time, so that it can send
    heartbeats or do something else meanwhile; other threads make their requests directly.

    Args:
        beat: called every second while that thread waits.
    """

    def __init__(self, beat: Callable[[], None] | None) -> None:
        self._beat = beat
        self._owner = threading.get_ident()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sink")
        self._begun: Future[Any] | None = None
        self._started: dict[object, float] = {}

    @property
    def unanswered_s(self) -> float:
        """How long the oldest of them has been in flight; 0 if there is none."""
        started = list(self._started.values())
        return time.monotonic() - min(started) if started else 0.0

    def __call__(self, request: Callable[[], _T]) -> _T:
        """Make a request."""
        return self.begin(request)()

    def begin(self, request: Callable[[], _T]) -> Callable[[], _T]:
        """Begin a request, once the one before has been answered; what is returned waits for the answer.

        So one of them is in flight, and what it sends in memory, besides what is made meanwhile. Where there are
        no heartbeats to send, it has been answered when this returns.
        """
        if self._beat is None or threading.get_ident() != self._owner:
            answer: Future[_T] = Future()
            answer.set_result(self._timed(request))
            return answer.result
        if self._begun is not None:
            self._await(self._begun, self._beat)
        self._begun = begun = self._thread.submit(self._timed, request)
        return partial(self._answer, begun, self._beat)

    def _timed(self, request: Callable[[], _T]) -> _T:
        key = object()
        self._started[key] = time.monotonic()
        try:
            return request()
        finally:
            del self._started[key]

    def _answer(self, begun: Future[_T], beat: Callable[[], None]) -> _T:
        self._await(begun, beat)
        if self._begun is begun:
            self._begun = None  # it would keep its answer in memory, or what its error refers to
        return begun.result()

    @staticmethod
    def _await(begun: Future[Any], beat: Callable[[], None]) -> None:
        while not wait([begun], BEAT_S).done:
            beat()
