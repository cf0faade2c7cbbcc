"""A process for what needs MongoDB's driver, to keep the supervisor's process small."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TypeVar

from engine.config import RetryConfig
from engine.errors import TransientError
from engine.processes.forks import CONTEXT, end_with_parent, kill_template, start_template
from engine.retries import retrying

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

_T = TypeVar("_T")


class PlannerEnded(TransientError):
    """The process could not be started, or died."""

    who = "the process that plans"


class Planner:
    """Calls functions that need MongoDB's driver in a separate process, so that this one stays small.

    State: the process, from the first call on; the context's exit ends it.

    Args:
        retry: for ``TransientError``, and for a process that dies.
        hang_timeout_s: how long starting the process may take.
    """

    def __init__(self, retry: RetryConfig, hang_timeout_s: float) -> None:
        self._retry = retry
        self._hang_timeout_s = hang_timeout_s
        self._pool: Executor | None = None

    def call(self, function: Callable[..., _T], *arguments: object, of: str = "MongoDB") -> _T:
        """Call the function there; returns or raises what it does.

        Args:
            of: who is asked, for the log.
        """
        return retrying(self._retry, what=of)(lambda: self._attempt(function, *arguments))

    def _attempt(self, function: Callable[..., _T], *arguments: object) -> _T:
        from concurrent.futures import BrokenExecutor

        operation = function.__name__.replace("_", " ")
        try:
            result = self._submit(function, *arguments)
        except (BrokenExecutor, EOFError, OSError) as error:
            self._pool = None
            remedy = "Is there enough memory, and is /dev/shm writable?"
            raise PlannerEnded(operation, f"the process for it could not be started: {error!r}", remedy) from error
        try:
            return result.result()
        except BrokenExecutor as error:
            self._pool = None
            cause = "the process that does this has died"
            raise PlannerEnded(operation, cause, "Is there enough memory?") from error

    def _submit(self, function: Callable[..., _T], *arguments: object) -> Future[_T]:
        """Submit the call; the first one starts the process, from a template that may never answer."""
        from concurrent.futures import ProcessPoolExecutor

        killer = threading.Timer(self._hang_timeout_s, kill_template)
        killer.start()
        try:
            if self._pool is None:
                start_template()
                self._pool = ProcessPoolExecutor(1, CONTEXT, end_with_parent)
            return self._pool.submit(function, *arguments)
        finally:
            killer.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=error is None, cancel_futures=True)
