"""Reads the next reply while the last one is decoded.

State: one thread, a queue of one reply, and the stop flag. The thread owns the stream; the reader's loop owns the
rest. While the reader takes no reply, the thread blocks on the queue and sends no getMore: this is the
back-pressure.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import threading
import time
from typing import Protocol

from engine.config.tree import RetryConfig
from engine.core.position import Position
from engine.core.restarts import Failures
from engine.errors import FatalError, HeadraceError, TransientError
from engine.retries import log_retry, policy_of
from engine.source.failures import has_answered
from engine.source.reply import Reply

_PUT_TIMEOUT_S = 0.25
_BEAT_S = 1.0
# More than is requested: a few very large documents. The next reply is not read until this one has been processed,
# because each is in memory twice while it arrives, and once more as columns while it is decoded.
_LARGE_REPLY = 12 * 2**20


class Stream(Protocol):
    """What is prefetched from."""

    def next(self) -> Reply:
        """The next reply."""

    @property
    def unanswered_s(self) -> float:
        """How long the current request has been unanswered. Thread-safe."""

    def close(self) -> None:
        """Free its resources on the server."""


class Prefetcher:
    """Reads a stream in a thread; ``fileno`` becomes readable when ``take`` has something.

    Args:
        retry: for ``TransientError``; attempts count from the last reply that made progress.
    """

    def __init__(self, stream: Stream, retry: RetryConfig) -> None:
        self._stream = stream
        self._replies: queue.Queue[Reply | HeadraceError] = queue.Queue(maxsize=1)
        self._stopped = threading.Event()
        self._has_taken = False
        self._wake_read, self._wake_write = os.pipe()
        self.progress = 0  # attempts, and the seconds between them: waiting for a retry is not hanging
        self.last_error: str | None = None
        self._retries = 0
        self._retries_taken = 0
        self._failures = Failures(policy_of(retry), random.Random())
        self._reached: Position | None = None
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    @property
    def unanswered_s(self) -> float:
        """How long the current request to MongoDB has been unanswered."""
        return self._stream.unanswered_s

    def take_retries(self) -> int:
        """How many attempts have failed and are followed by another, since the last call."""
        retries = self._retries
        found, self._retries_taken = retries - self._retries_taken, retries
        return found

    def fileno(self) -> int:
        """For ``multiprocessing.connection.wait``."""
        return self._wake_read

    def take(self) -> Reply | None:
        """The next reply if there is one. The caller has finished with the previous one.

        Raises:
            HeadraceError: the error that ended the stream.
        """
        if self._has_taken:
            self._replies.task_done()
        try:
            reply = self._replies.get_nowait()
        except queue.Empty:
            self._has_taken = False
            return None
        self._has_taken = True
        os.read(self._wake_read, 1)
        if isinstance(reply, HeadraceError):
            raise reply
        return reply

    def stop(self) -> None:
        """Tell the thread to end, which it does after its current call; does not wait for it."""
        self._stopped.set()
        os.close(self._wake_read)

    def _run(self) -> None:
        try:
            is_last = False
            while not is_last and not self._stopped.is_set():
                reply = self._fetch()
                is_last = reply.is_last
                is_large = len(reply.data) > _LARGE_REPLY
                self._hand_over(reply)
                del reply
                if is_large:
                    self._await_done()
        except HeadraceError as error:
            self._hand_over(error)
        except Exception as error:  # our own bug: report it to the reader's loop, which must crash
            self._hand_over(FatalError("read from MongoDB", f"{type(error).__name__}: {error}"))
        finally:
            self._stream.close()
            os.close(self._wake_write)

    def _fetch(self) -> Reply:
        """The next reply, with as many attempts as the retry budget allows."""
        while True:
            try:
                reply = self._attempt()
            except TransientError as error:
                self._await_next_attempt(error)
                continue
            # Without progress, a cursor that can be opened but not read would be reopened for ever.
            if len(reply) or reply.is_last or reply.position != self._reached:
                self._failures.succeeded()
                self._reached = reply.position
            return reply

    def _attempt(self) -> Reply:
        self.progress += 1
        try:
            reply = self._stream.next()
        except HeadraceError as error:
            self.last_error = str(error)
            raise
        self.last_error = None
        return reply

    def _await_done(self) -> None:
        """Wait until the queue is empty and the last reply taken has been processed."""
        with self._replies.all_tasks_done:
            while self._replies.unfinished_tasks and not self._stopped.is_set():
                self._replies.all_tasks_done.wait(_PUT_TIMEOUT_S)

    def _await_next_attempt(self, error: TransientError) -> None:
        now = time.monotonic()
        if not self._failures.failed(now):
            remedy = "This lasted longer than the [retry] budget. Start again when it is over: nothing is lost."
            raise FatalError(error.operation, error.cause, f"{error.remedy} {remedy}".lstrip()) from error
        self._retries += 1
        wait_s = self._failures.retry_at - now
        log_retry("MongoDB", error, self._failures.count, wait_s, has_answered=has_answered(error))
        while (left_s := self._failures.retry_at - time.monotonic()) > 0:
            if self._stopped.wait(min(left_s, _BEAT_S)):
                raise error
            self.progress += 1

    def _hand_over(self, reply: Reply | HeadraceError) -> None:
        while not self._stopped.is_set():
            try:
                self._replies.put(reply, timeout=_PUT_TIMEOUT_S)
            except queue.Full:
                continue
            with contextlib.suppress(BrokenPipeError):  # stopped just now
                os.write(self._wake_write, b"x")
            return
