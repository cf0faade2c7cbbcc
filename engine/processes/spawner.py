"""Starts child processes in a thread.

So the supervisor does not wait for the template, which may be dead or stopped.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from engine.core.actions import Child
from engine.processes.child import DEATH_S, ChildProcess
from engine.processes.forks import kill_template

log = logging.getLogger("headrace")


class Spawner:
    """Starts children in a thread, because a start blocks until the template answers, which it may never do.

    State: the children waiting to be started, in order, and the one being started; guarded by the lock.

    Args:
        start: starts a child.
        report: called with each child and its process, or None if the start failed; from the thread or from
            ``give_up``.
    """

    def __init__(
        self, start: Callable[[Child], ChildProcess], report: Callable[[Child, ChildProcess | None], None]
    ) -> None:
        self._start = start
        self._report = report
        self._waiting: deque[Child] = deque()
        self._starting: Child | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="spawner", daemon=True)
        self._thread.start()

    def start(self, child: Child) -> None:
        """Start this child after those queued before it."""
        with self._changed:
            self._waiting.append(child)
            self._changed.notify()

    def give_up(self, child: Child) -> None:
        """The child has taken too long to start: kill the template that should have forked it."""
        with self._changed:
            if child == self._starting:
                kill_template()
            elif child in self._waiting:
                self._waiting.remove(child)
                self._report(child, None)

    def close(self) -> None:
        """Start no more children; one that is being started is killed as soon as it exists."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(DEATH_S)
        if self._thread.is_alive():
            kill_template()
            self._thread.join(DEATH_S)

    def _run(self) -> None:
        while (child := self._next()) is not None:
            process: ChildProcess | None = None
            try:
                process = self._start(child)
            except Exception as error:  # treated like a child that has died: it is started again
                fields = {"child": str(child), "cause": repr(error)}
                log.warning("process not started", extra={"fields": fields})
            with self._changed:
                self._starting = None
                if not self._closed:
                    self._report(child, process)
                elif process is not None:
                    process.kill()
                    process.close()

    def _next(self) -> Child | None:
        """The next child to start; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            self._starting = None if self._closed else self._waiting.popleft()
            return self._starting
