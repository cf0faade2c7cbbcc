"""The supervisor's end of a child process: starting it, hearing it, telling it, ending it.

Children are forked from a template (``forks``), never from this process. A child gets its settings and its end of
a pipe as arguments (``entry``), and ends at once when its supervisor is gone.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import struct
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.popen_forkserver import Popen
from multiprocessing.reduction import DupFd
from typing import Any

import psutil

from engine.core import messages as msg
from engine.core.actions import Child
from engine.processes.entry import main
from engine.processes.forks import CONTEXT, start_template
from engine.processes.link import ChildSettings

# What multiprocessing says when it does not know the exit code.
_UNKNOWN = 255
# How long the exit code of a child is waited for that has closed its pipe; and the end of one that was killed.
DEATH_S = 5.0
# Before each message in a pipe, as multiprocessing's connections write it: how many bytes it has.
_LENGTH = struct.Struct("!i")
_READ_SIZE = 16 * 2**10
log = logging.getLogger("headrace")


class Inbox:
    """Messages from the bytes of a pipe, as they come.

    Whoever was stopped in the middle of a word may never end it, and is not waited for: ``recv_bytes`` would be.

    State: the bytes of a message that has not come whole.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._begun = bytearray()

    def read(self) -> list[bytes]:
        """Take what is there, which must be something: the messages that are whole by now, some at a time.

        Raises:
            EOFError, OSError: nothing more will come.
        """
        data = os.read(self._fd, _READ_SIZE)
        if not data:
            raise EOFError
        self._begun += data
        messages: list[bytes] = []
        start = 0
        while (body := start + _LENGTH.size) <= len(self._begun):
            (size,) = _LENGTH.unpack_from(self._begun, start)
            assert size >= 0, "no message has 2 GiB"
            if body + size > len(self._begun):
                break
            messages.append(bytes(self._begun[body : body + size]))
            start = body + size
        del self._begun[:start]
        return messages


class ChildProcess:
    """The supervisor's end of one child.

    State: what the child has still to be told. A pipe holds some hundred messages; a child that has stopped
    listening must not stop the supervisor, so a thread does the waiting. How much can wait is bounded by the
    protocol: a few messages for each segment in flight.

    Nothing here waits but the start, which waits for the template: see ``Spawner``.

    Raises:
        EOFError, OSError: the template died meanwhile, or the system has no more.
    """

    def __init__(self, child: Child, settings: ChildSettings, arena_fd: int, arena_size: int) -> None:
        start_template()
        self.connection, theirs = CONTEXT.Pipe()
        # DupFd works only while a process is being started, which Popen does.
        arguments = (child, settings, theirs, _Fd(arena_fd), arena_size)
        process = CONTEXT.Process(target=main, args=arguments, name=str(child), daemon=True)
        try:
            # Not process.start(), which also takes the exit codes of other children.
            self._popen = Popen(process)
        except BaseException:
            self.connection.close()
            raise
        finally:
            theirs.close()
        self._inbox = Inbox(self.connection.fileno())
        self.pid = self._popen.pid
        self.code: int | None = None
        self._hung_up_at: float | None = None
        self._process: psutil.Process | None
        try:
            self._process = psutil.Process(self.pid)  # which will know whether the number is another's
        except psutil.NoSuchProcess:
            self._process = None
        except OSError:  # /proc cannot be read at present; without its pipe the child ends by itself
            self.connection.close()
            raise
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._deliver, name=f"to {child}", daemon=True).start()

    @property
    def awaited(self) -> list[Connection | int]:
        """What becomes readable when the child has said something, or has ended."""
        connection = [self.connection] if self._hung_up_at is None else []
        return [*connection, *([self._popen.sentinel] if self._popen.returncode is None else [])]

    @property
    def is_ending(self) -> bool:
        """Whether something tells that it has ended, or is about to."""
        return self._hung_up_at is not None or self._popen.returncode is not None

    @property
    def speaks(self) -> bool:
        """Whether there is something to hear, be it that there is nothing more."""
        return self._hung_up_at is None and self.connection.poll()

    def hear(self) -> Iterator[msg.FromChild]:
        """Some of what it has said; nothing when that is nothing yet, or half a message.

        Raises:
            EOFError, OSError: it says nothing more.
        """
        return map(msg.decode_from_child, self._inbox.read() if self.speaks else ())

    def send(self, message: msg.ToChild) -> None:
        """Send a message; a child that is gone hears nothing, and its exit is noticed elsewhere."""
        self._outbox.put(msg.encode(message))

    def _deliver(self) -> None:
        hears = True
        while (message := self._outbox.get()) is not None:
            try:
                if hears:
                    self.connection.send_bytes(message)
            except OSError:
                hears = False
        self.connection.close()

    def hang_up(self) -> None:
        """The child has closed its end of the pipe: there is nothing more to hear from it."""
        if self._hung_up_at is None:
            self._hung_up_at = time.monotonic()

    def kill(self) -> None:
        """SIGKILL."""
        try:
            if self._process is not None:
                self._process.kill()
        except psutil.NoSuchProcess:
            pass
        except OSError as error:  # /proc cannot be read: too many open files. Whoever wants it dead asks again.
            log.warning("a process cannot be killed now", extra={"fields": {"pid": self.pid, "cause": str(error)}})

    def has_ended(self) -> bool:
        """Whether it is certainly dead; its exit code is in ``code`` then.

        The template tells the exit code. When it is dead itself that says nothing of its children: this one may
        still write where another will. When it is stopped it tells nothing, and so does one that has died.
        """
        code = self._popen.poll()
        if code is not None and code != _UNKNOWN:
            self.code = code
            return True
        hung_up_for_s = 0.0 if self._hung_up_at is None else time.monotonic() - self._hung_up_at
        if code is None and hung_up_for_s < DEATH_S:
            return False
        self.kill()
        self.code = -signal.SIGKILL
        return self.is_gone()

    def is_gone(self) -> bool:
        """Whether the system says that it is dead, whoever may still have to hear of it."""
        try:
            return self._process is None or self._process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except (psutil.Error, OSError):  # /proc cannot be read at present
            return False

    def close(self) -> None:
        """After its end: drop the pipe."""
        self._outbox.put(None)
        self._popen.close()


class _Fd:
    """A file descriptor that is inherited by the process whose argument it is."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _detach, (DupFd(self.fd),)


def _detach(duplicate: Any) -> int:
    return int(duplicate.detach())
