"""Requests that may take long, made so that the caller's loop can keep sending heartbeats."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

BEAT_S = 1.0
_T = TypeVar("_T")


class Calls:
    """Requests to a store, and how long they have been in flight.

    State: when each of them started. With ``beat``, requests of the thread that created this object run in another
    thread, so that it can send heartbeats meanwhile; other threads make their requests directly.

    Args:
        beat: called every second while that thread waits.
    """

    def __init__(self, beat: Callable[[], None] | None) -> None:
        self._beat = beat
        self._owner = threading.get_ident()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sink")
        self._started: dict[object, float] = {}

    @property
    def unanswered_s(self) -> float:
        """How long the oldest of them has been in flight; 0 if there is none."""
        started = list(self._started.values())
        return time.monotonic() - min(started) if started else 0.0

    def __call__(self, request: Callable[[], _T]) -> _T:
        """Make a request."""
        key = object()
        self._started[key] = time.monotonic()
        try:
            if self._beat is None or threading.get_ident() != self._owner:
                return request()
            return self._awaited(request, self._beat)
        finally:
            del self._started[key]

    def _awaited(self, request: Callable[[], _T], beat: Callable[[], None]) -> _T:
        answer = self._thread.submit(request)
        while not wait([answer], BEAT_S).done:
            beat()
        return answer.result()
