"""The supervisor's end of a child process: starting it, exchanging messages with it, ending it.

Children are forked from a template (``forks``), never from this process. A child gets its settings and its end of
a pipe as arguments (``entry``), and exits at once when its supervisor is gone.
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

# The exit code that multiprocessing reports when it does not know the real one.
_UNKNOWN = 255
# How long to wait for the exit code of a child that has closed its pipe, and for a killed child to end.
DEATH_S = 5.0
# The length prefix of each message in a pipe, as multiprocessing's connections write it.
_LENGTH = struct.Struct("!i")
_READ_SIZE = 16 * 2**10
log = logging.getLogger("headrace")


class Inbox:
    """Assembles messages from the bytes of a pipe as they arrive.

    A sender stopped in the middle of a message may never finish it; ``recv_bytes`` would block on it, this does
    not.

    State: the bytes of an incomplete message.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._partial = bytearray()

    def read(self) -> list[bytes]:
        """Read what is available, which must not be nothing, and return the messages completed by it.

        Raises:
            EOFError, OSError: the pipe is closed or broken.
        """
        data = os.read(self._fd, _READ_SIZE)
        if not data:
            raise EOFError
        self._partial += data
        messages: list[bytes] = []
        start = 0
        while (body := start + _LENGTH.size) <= len(self._partial):
            (size,) = _LENGTH.unpack_from(self._partial, start)
            assert size >= 0, "no message is 2 GiB long"
            if body + size > len(self._partial):
                break
            messages.append(bytes(self._partial[body : body + size]))
            start = body + size
        del self._partial[:start]
        return messages


class ChildProcess:
    """The supervisor's end of one child.

    State: the messages not yet delivered. A pipe holds some hundred messages; a child that has stopped reading
    must not block the supervisor, so a thread does the sending. The protocol bounds the backlog: a few messages
    for each segment in flight.

    Nothing here blocks except the constructor, which waits for the template: see ``Spawner``.

    Raises:
        EOFError, OSError: the template died meanwhile, or the system is out of resources.
    """

    def __init__(self, child: Child, settings: ChildSettings, arena_fd: int, arena_size: int) -> None:
        start_template()
        self.connection, theirs = CONTEXT.Pipe()
        # DupFd works only while a process is being started, that is, inside Popen.
        arguments = (child, settings, theirs, _Fd(arena_fd), arena_size)
        process = CONTEXT.Process(target=main, args=arguments, name=str(child), daemon=True)
        try:
            # Not process.start(), which also reaps other children.
            self._popen = Popen(process)
        except BaseException:
            self.connection.close()
            raise
        finally:
            theirs.close()
        self._inbox = Inbox(self.connection.fileno())
        self.pid = self._popen.pid
        self.code: int | None = None
        self._disconnected_at: float | None = None
        self._process: psutil.Process | None
        try:
            self._process = psutil.Process(self.pid)  # recognises a PID that has been reused
        except psutil.NoSuchProcess:
            self._process = None
        except OSError:  # /proc cannot be read at present; without its pipe the child exits by itself
            self.connection.close()
            raise
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._deliver, name=f"to {child}", daemon=True).start()

    @property
    def awaited(self) -> list[Connection | int]:
        """What becomes readable when the child has sent something or has ended."""
        connection = [self.connection] if self._disconnected_at is None else []
        return [*connection, *([self._popen.sentinel] if self._popen.returncode is None else [])]

    @property
    def is_ending(self) -> bool:
        """Whether there is a sign that it has ended or is about to."""
        return self._disconnected_at is not None or self._popen.returncode is not None

    @property
    def has_input(self) -> bool:
        """Whether there is something to read, including the end of the pipe."""
        return self._disconnected_at is None and self.connection.poll()

    def receive(self) -> Iterator[msg.FromChild]:
        """Some of the messages it has sent; none if nothing or only part of a message has arrived.

        Raises:
            EOFError, OSError: the pipe is closed or broken.
        """
        return map(msg.decode_from_child, self._inbox.read() if self.has_input else ())

    def send(self, message: msg.ToChild) -> None:
        """Queue a message. If the child is gone it is dropped; the exit is noticed elsewhere."""
        self._outbox.put(msg.encode(message))

    def _deliver(self) -> None:
        connected = True
        while (message := self._outbox.get()) is not None:
            try:
                if connected:
                    self.connection.send_bytes(message)
            except OSError:
                connected = False
        self.connection.close()

    def mark_disconnected(self) -> None:
        """Note that the child has closed its end of the pipe: nothing more will arrive from it."""
        if self._disconnected_at is None:
            self._disconnected_at = time.monotonic()

    def kill(self) -> None:
        """SIGKILL."""
        try:
            if self._process is not None:
                self._process.kill()
        except psutil.NoSuchProcess:
            pass
        except OSError as error:  # /proc cannot be read (too many open files); the caller will try again
            log.warning("a process cannot be killed now", extra={"fields": {"pid": self.pid, "cause": str(error)}})

    def has_ended(self) -> bool:
        """Whether it is certainly dead; if so, its exit code is in ``code``.

        The template reports the exit code. A dead template says nothing about its children: this one may still be
        writing where its replacement will. Nor does a stopped template report anything.
        """
        code = self._popen.poll()
        if code is not None and code != _UNKNOWN:
            self.code = code
            return True
        disconnected_s = 0.0 if self._disconnected_at is None else time.monotonic() - self._disconnected_at
        if code is None and disconnected_s < DEATH_S:
            return False
        self.kill()
        self.code = -signal.SIGKILL
        return self.is_gone()

    def is_gone(self) -> bool:
        """Whether the operating system says that it is dead, even if it has not been reaped yet."""
        try:
            return self._process is None or self._process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except (psutil.Error, OSError):  # /proc cannot be read at present
            return False

    def close(self) -> None:
        """Close the pipe, after the child's end."""
        self._outbox.put(None)
        self._popen.close()


class _Fd:
    """A file descriptor inherited by the process that gets it as an argument."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _detach, (DupFd(self.fd),)


def _detach(duplicate: Any) -> int:
    return int(duplicate.detach())
