"""Where child processes come from: one process that has loaded what they need and forks itself for each.

That process, the template, is multiprocessing's fork server with ``engine.processes.template`` preloaded. The
first child starts it if nothing has before; started early, it loads while other work goes on. It has no threads,
clients or connections, so forking it is safe, and what it has loaded is in memory once for all children.
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

# How children allocate, read by their C library and by Arrow when the template starts: large blocks are mapped,
# and so returned to the system when freed. Without this they kept up to 100 MiB of freed memory and were no
# faster.
ALLOCATION = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "16777216",
    "MALLOC_MMAP_THRESHOLD_": "4194304",
    "OPENBLAS_NUM_THREADS": "1",  # numpy's library would start threads, and is not used
}
SAVED_ENVIRONMENT = "_HEADRACE_SAVED_ENVIRONMENT"
END_TIMEOUT_S = 5.0
STOPPING: Set[signal.Signals] = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
_TEMPORARY = (
    "Set TMPDIR to a directory with a short path that this user can write to, or make /tmp writable (a tmpfs "
    "will do): only a socket is kept there."
)
# Starting the template briefly changes this process's environment.
_starting = threading.Lock()


def start_template() -> None:
    """Start the template unless it is running; it loads in the background.

    ``STOPPING`` is blocked in it and in its children: terminals and service managers send these signals to every
    process, and the supervisor decides what the children do then.
    """
    with _starting:
        # Otherwise forkserver would start it, and that unblocks the signals. It ignores all of them but SIGHUP.
        with _blocked({signal.SIGHUP}):
            resource_tracker.ensure_running()
        # It must import from where this process does, whatever is in the working directory.
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)  # noqa: PTH100 - "" is the current one
        changes = ALLOCATION | {name: value for name, value in os.environ.items() if name in ALLOCATION}
        changes |= {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
        saved = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes | {SAVED_ENVIRONMENT: json.dumps(saved)})
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
    """The signals that stop this process gracefully: SIGHUP only if it is not ignored, as under ``nohup``."""
    return STOPPING - ({signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set())


def raise_open_files() -> None:
    """Raise the limit of open files for this process and its children to the hard limit.

    The usual soft limit of 1,024 protects programs that call ``select``, which nothing here does; an engine with
    many collections comes close to it with its sockets, pipes and files. The hard limit is up to the
    administrator.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # not every system allows that
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def kill_template() -> None:
    """SIGKILL a template that does not respond; the next child starts another one."""
    server: Any = forkserver._forkserver
    with server._lock:  # it is not reaped meanwhile, so the PID is still its own
        if server._forkserver_pid is not None:
            _kill(server._forkserver_pid)


@contextmanager
def template(library: str | None = None) -> Iterator[None]:
    """Start the template on entry; on exit, end it and all children.

    Args:
        library: a module that many children will need, which the template loads for all of them.

    Raises:
        ConfigError: there is no usable directory for its socket.
    """
    raise_open_files()
    # In this order, because the second one seals what is loaded. If the first is missing, who needs it says so.
    forkserver.set_forkserver_preload([*([library] if library else []), "engine.processes.template"])
    _start_template_first()
    try:
        yield
    finally:
        for child in multiprocessing.active_children():  # none, except after an exception
            child.kill()
        # If a start was interrupted there may be a child that we do not know of; it exits just after this process.
        # Otherwise all can be waited for, for which CPython has no public API.
        if isinstance(sys.exception(), KeyboardInterrupt):
            kill_template()
        else:
            _end_template()


def _start_template_first() -> None:
    """The first start chooses the socket's directory, and all later starts use it."""
    operation = "start the process that the others are forked from"
    try:
        tempfile.gettempdir()
    except OSError as error:
        cause = f"there is no directory for its socket: {(error.strerror or str(error)).lower()}"
        raise ConfigError(operation, cause, _TEMPORARY) from error
    try:
        start_template()
    except OSError as error:
        if error.errno is None:  # raised by the socket module itself for a path longer than 107 bytes
            cause = f"the path of its socket in {tempfile.gettempdir()} is too long"
            raise ConfigError(operation, cause, _TEMPORARY) from error
        raise FatalError(operation, str(error), "Check free memory and the limit of open files.") from error


def _end_template() -> None:
    server: Any = forkserver._forkserver
    if (pid := server._forkserver_pid) is None:
        return
    # A template that is stopped (SIGSTOP) does not react to being told to end.
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
    """In a child: from now on, exit at once when the process that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def restore_environment() -> None:
    """Undo the changes that were only meant for the start of the template."""
    for name, value in json.loads(os.environ.pop(SAVED_ENVIRONMENT)).items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
