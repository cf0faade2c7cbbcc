"""The entry point of every child process, and how it exits."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from engine.core.actions import Child
from engine.errors import HeadraceError
from engine.logs import configure_logging
from engine.processes.forks import end_with_parent
from engine.processes.link import ChildSettings, send_failure

if TYPE_CHECKING:
    from engine.processes.committer import Committer
    from engine.processes.reader import Reader
    from engine.processes.writer import Writer

# glibc's M_MMAP_THRESHOLD, and its value in a writer, whose rows are larger and live longer than a reader's data;
# a reader with this threshold was a tenth slower.
_M_MMAP_THRESHOLD = -3
_WRITER_MMAP_THRESHOLD = 2 * 2**20
log = logging.getLogger("headrace")


def main(child: Child, settings: ChildSettings, connection: Connection, arena_fd: int, arena_size: int) -> None:
    """Run a child process; does not return."""
    end_with_parent()
    configure_logging(settings.config, process=str(child))
    from engine.shared.arena import Arena

    arena = Arena(arena_fd, arena_size)
    try:
        loop: Reader | Writer | Committer
        if child.role == "reader":
            from engine.processes import reader

            loop = reader.Reader(settings, connection, arena)
        elif child.role == "committer":
            from engine.processes import committer

            loop = committer.Committer(settings, connection)
        else:
            from engine.processes import writer

            _map_from(_WRITER_MMAP_THRESHOLD)
            loop = writer.Writer(settings, connection, arena)
        loop.run()
        os._exit(0)  # everything is closed; tearing down the interpreter would only take time
    except HeadraceError as error:
        send_failure(connection, error)
        os._exit(1)  # without waiting for threads that wait for a server
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the supervisor is gone; there is no one to report to
    except Exception:
        log.exception("process failed")  # our own bug: crash, and be restarted
        os._exit(1)


def _map_from(size: int) -> None:
    """Have blocks from this size on mapped, if the C library is glibc and the user has set no threshold."""
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, size)
