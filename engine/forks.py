"""Where child processes come from: one process that has loaded what they need, and forks itself for each.

That process, the template, is multiprocessing's fork server with ``engine.template`` loaded. It starts by itself
with the first child; started before, it loads while others still work. It has no thread, no client and no
connection, so that forking it is safe, and what it has loaded is in memory once for all children.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any

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
# A start changes this process's environment for a moment.
_starting = threading.Lock()


def start_template() -> None:
    """Start the template, unless it runs; it loads while this process goes on.

    SIGINT and SIGTERM are blocked in it and in its children: terminals and service managers send them to every
    process, and what children do then is the supervisor's to say.
    """
    with _starting:
        forkserver.set_forkserver_preload(["engine.template"])
        resource_tracker.ensure_running()  # by itself it would come between, and unblock them
        # It is to load what this process would, whatever lies in the working directory.
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)  # noqa: PTH100 - "" is where we are
        changes = ALLOCATION | {name: value for name, value in os.environ.items() if name in ALLOCATION}
        changes |= {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
        former = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes | {FORMER: json.dumps(former)})
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            restore_environment()


def kill_template() -> None:
    """SIGKILL the template, which does not do its work; the next child starts another one."""
    server: Any = forkserver._forkserver
    with server._lock:  # nobody takes its end meanwhile, so the number is its own
        if server._forkserver_pid is not None:
            _kill(server._forkserver_pid)


@contextmanager
def template() -> Iterator[None]:
    """The template loads from the beginning on; at the end it is gone, and all children with it."""
    start_template()
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
