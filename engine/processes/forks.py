"""Where child processes come from: one process that has loaded what they need, and forks itself for each.

That process, the template, is multiprocessing's fork server with ``engine.processes.template`` loaded. It starts
by itself with the first child; started before, it loads while others still work. It has no thread, no client and
no connection, so that forking it is safe, and what it has loaded is in memory once for all children.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any

from engine.errors import ConfigError, FatalError

CONTEXT = multiprocessing.get_context("forkserver")

# How children allocate, read by their C library and by Arrow at the template's start: large blocks are mapped, and
# so given back when they are freed. Without it they kept up to 100 MiB of freed memory, at the same speed.
ALLOCATION = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "16777216",
    "MALLOC_MMAP_THRESHOLD_": "4194304",
    "OPENBLAS_NUM_THREADS": "1",  # numpy's library would begin threads, and is not used
}
FORMER = "_HEADRACE_FORMER_ENVIRONMENT"
END_TIMEOUT_S = 5.0
STOPPING: Set[signal.Signals] = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
_TEMPORARY = (
    "Set TMPDIR to a directory that this user can write and whose path is short, or make /tmp writable (a tmpfs "
    "will do): a socket is all that is kept there."
)
# A start changes this process's environment for a moment.
_starting = threading.Lock()


def start_template() -> None:
    """Start the template, unless it runs; it loads while this process goes on.

    ``STOPPING`` is blocked in it and in its children: terminals and service managers send these signals to every
    process, and what children do then is the supervisor's to say.
    """
    with _starting:
        forkserver.set_forkserver_preload(["engine.processes.template"])
        # By itself it would come between, and unblock them. It ignores all but SIGHUP.
        with _blocked({signal.SIGHUP}):
            resource_tracker.ensure_running()
        # It is to load what this process would, whatever lies in the working directory.
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)  # noqa: PTH100 - "" is where we are
        changes = ALLOCATION | {name: value for name, value in os.environ.items() if name in ALLOCATION}
        changes |= {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
        former = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes | {FORMER: json.dumps(former)})
        try:
            with _blocked(STOPPING):
                forkserver.ensure_running()
        finally:
            restore_environment()


@contextmanager
def _blocked(signals: Set[signal.Signals]) -> Iterator[None]:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def stop_signals() -> Set[signal.Signals]:
    """The signals that end this process in good order: SIGHUP only where it is not ignored, as by ``nohup``."""
    return STOPPING - ({signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set())


def raise_open_files() -> None:
    """Let this process and its children open as many files as they may.

    The usual soft limit of 1,024 is there for programs that call ``select``, which nothing here does; the sockets,
    pipes and files of an engine with many collections come near it. The hard limit is the administrator's.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # not everywhere may it be raised so far
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def kill_template() -> None:
    """SIGKILL the template, which does not do its work; the next child starts another one."""
    server: Any = forkserver._forkserver
    with server._lock:  # nobody takes its end meanwhile, so the number is its own
        if server._forkserver_pid is not None:
            _kill(server._forkserver_pid)


@contextmanager
def template() -> Iterator[None]:
    """The template loads from the beginning on; at the end it is gone, and all children with it.

    Raises:
        ConfigError: there is no place for its socket.
    """
    raise_open_files()
    _start_template_first()
    try:
        yield
    finally:
        for child in multiprocessing.active_children():  # none, unless it ends by an exception
            child.kill()
        # Interrupted in the midst of a start there may be a child that nobody knows: it ends a moment after this
        # process. Else all can be waited for; CPython has no public way.
        if isinstance(sys.exception(), KeyboardInterrupt):
            kill_template()
        else:
            _end_template()


def _start_template_first() -> None:
    """The socket's directory is chosen by the first start, and used by all that follow."""
    operation = "start the process that the others are forked from"
    try:
        tempfile.gettempdir()
    except OSError as error:
        cause = f"its socket has no place: {(error.strerror or str(error)).lower()}"
        raise ConfigError(operation, cause, _TEMPORARY) from error
    try:
        start_template()
    except OSError as error:
        if error.errno is None:  # the socket module's own complaint of a path beyond 107 bytes
            cause = f"its socket's path in {tempfile.gettempdir()} is too long"
            raise ConfigError(operation, cause, _TEMPORARY) from error
        raise FatalError(operation, str(error), "Is there enough memory, and may more files be open?") from error


def _end_template() -> None:
    server: Any = forkserver._forkserver
    if (pid := server._forkserver_pid) is None:
        return
    # One that is stopped does not hear that it is to end.
    killer = threading.Timer(END_TIMEOUT_S, lambda: _kill(pid))
    killer.start()
    try:
        server._stop()
    finally:
        killer.cancel()


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def end_with_parent() -> None:
    """In a child: from now on, end at once when the process that wanted it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def restore_environment() -> None:
    """Take back what only the start of the template was to see."""
    for name, value in json.loads(os.environ.pop(FORMER)).items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
