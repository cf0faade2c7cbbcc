"""Child processes: how they are started, and what happens first in each of them.

Children are forked from a template (``forks``), never from this process. A child gets its settings and its end of
a pipe as arguments, and ends at once when its supervisor is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import queue
import signal
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any

import psutil
from msgspec import Struct

from engine.config import Config
from engine.core import messages as msg
from engine.core.actions import Child
from engine.core.budget import Budget
from engine.errors import HeadraceError
from engine.forks import CONTEXT, end_with_parent, start_template
from engine.logs import configure_logging

if TYPE_CHECKING:
    from engine.reader import Reader
    from engine.writer import Writer

# glibc's M_MMAP_THRESHOLD, and what it is in a writer: a writer's rows are larger and live longer than what a
# reader has at a time, of which mapping more cost it a tenth.
_M_MMAP_THRESHOLD = -3
_WRITER_MMAP_THRESHOLD = 2 * 2**20
# What multiprocessing says when it does not know the exit code.
_UNKNOWN = 255
_DEATH_S = 5.0
log = logging.getLogger("headrace")


class ChildSettings(Struct, frozen=True):
    """What every child is told at its start."""

    config: Config
    budget: Budget
    version: str


class ChildProcess:
    """The supervisor's end of one child.

    State: what the child has still to be told. A pipe holds some hundred messages; a child that has stopped
    listening must not stop the supervisor, so a thread does the waiting. How much can wait is bounded by the
    protocol: a few messages for each segment in flight.
    """

    def __init__(self, child: Child, settings: ChildSettings, arena_fd: int, arena_size: int) -> None:
        start_template()
        ours, theirs = CONTEXT.Pipe()
        # DupFd works only while a process is being started, which start() does.
        self.process: BaseProcess = CONTEXT.Process(
            target=_main, args=(child, settings, theirs, _Fd(arena_fd), arena_size), name=str(child), daemon=True
        )
        self.process.start()
        theirs.close()
        self.connection: Connection = ours
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._postman = threading.Thread(target=self._deliver, name=f"to {child}", daemon=True)
        self._postman.start()

    def send(self, message: msg.ToChild) -> None:
        """Send a message; a child that is gone hears nothing, and its exit is noticed elsewhere."""
        self._outbox.put(msg.encode(message))

    def _deliver(self) -> None:
        try:
            while (message := self._outbox.get()) is not None:
                self.connection.send_bytes(message)
        except OSError:
            pass  # the child is gone

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def close(self) -> int | None:
        """After its end: take its exit code and drop the pipe."""
        self.process.join()
        code = self.process.exitcode
        if code == _UNKNOWN:
            self._make_sure_of_its_end()
            code = -signal.SIGKILL
        self._outbox.put(None)
        self._postman.join()
        self.connection.close()
        self.process.close()
        return code

    def _make_sure_of_its_end(self) -> None:
        """The template died, which says nothing of its children: this one may still write where another will."""
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan = psutil.Process(self.process.pid)
            orphan.kill()
            deadline = time.monotonic() + _DEATH_S
            # Whoever inherits it may leave it a zombie.
            while orphan.status() != psutil.STATUS_ZOMBIE:
                if time.monotonic() > deadline:
                    fields = {"pid": orphan.pid, "waited_s": _DEATH_S}
                    log.error("a killed process does not end", extra={"fields": fields})
                    break
                time.sleep(0.01)


class _Fd:
    """A file descriptor that is inherited by the process whose argument it is."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _detach, (DupFd(self.fd),)


def _detach(duplicate: Any) -> int:
    return int(duplicate.detach())


def _main(child: Child, settings: ChildSettings, connection: Connection, arena_fd: int, arena_size: int) -> None:
    """The first thing that runs in a child."""
    end_with_parent()
    configure_logging(settings.config, process=str(child))
    from engine.memory import Arena

    arena = Arena(arena_fd, arena_size)
    try:
        loop: Reader | Writer
        if child.role == "reader":
            from engine import reader

            loop = reader.Reader(settings, connection, arena)
        else:
            from engine import writer

            _map_from(_WRITER_MMAP_THRESHOLD)
            loop = writer.Writer(settings, connection, arena)
        loop.run()
        os._exit(0)  # everything is closed; taking the interpreter apart would only take time
    except HeadraceError as error:
        send_failure(connection, error)
        os._exit(1)  # no waiting for threads that wait for a server
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the supervisor is gone; nobody is left to tell
    except Exception:
        log.exception("process failed")  # our own bug: crash, and be started again
        os._exit(1)


def _map_from(size: int) -> None:
    """Have blocks of this size be mapped, where the C library is glibc and the user has not said otherwise."""
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, size)


def send_failure(connection: Connection, error: HeadraceError, stream: str = "", generation: int = -1) -> None:
    """Report an error to the supervisor."""
    failed = msg.Failed(error.kind, error.operation, error.cause, error.remedy, stream, generation)
    connection.send_bytes(msg.encode(failed))
