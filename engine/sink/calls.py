"""Requests that may take long, made so that their loop goes on to give signs of life."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

BEAT_S = 1.0
_T = TypeVar("_T")


class Calls:
    """Requests to a store, and how long they have been under way.

    State: when each of them began. With ``beat``, those of the thread that made this object are carried out by
    another one, so that it can say meanwhile that it waits; those of other threads are made as they are.

    Args:
        beat: is called every second while the thread waits.
    """

    def __init__(self, beat: Callable[[], None] | None) -> None:
        self._beat = beat
        self._owner = threading.get_ident()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sink")
        self._begun: dict[object, float] = {}

    @property
    def unanswered_s(self) -> float:
        """How long the longest of them has been under way; 0 when there is none."""
        begun = list(self._begun.values())
        return time.monotonic() - min(begun) if begun else 0.0

    def __call__(self, request: Callable[[], _T]) -> _T:
        """Make a request."""
        key = object()
        self._begun[key] = time.monotonic()
        try:
            if self._beat is None or threading.get_ident() != self._owner:
                return request()
            return self._awaited(request, self._beat)
        finally:
            del self._begun[key]

    def _awaited(self, request: Callable[[], _T], beat: Callable[[], None]) -> _T:
        answer = self._thread.submit(request)
        while not wait([answer], BEAT_S).done:
            beat()
        return answer.result()
