"""Time, CPU and memory of processes, as accounted by the operating system."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil
from msgspec import Struct

from engine.supervisor.snapshot import proportional_size

# Tools to compare the engine with, built or installed once for all runs.
PEERS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace-bench"

# How long descendants may take to end after the command.
_ORPHANS_END_S = 5.0


class Cost(Struct):
    """The cost of a process tree.

    Attributes:
        seconds: from its start to its end.
        cpu_s: user and system time of all processes that were waited for.
        pss_peak: largest sum of proportional set sizes seen, in bytes; sampled.
        processes: largest number of them seen at one time; sampled.
        sizes: every sample of that sum, in bytes, in order.
        server_cpu_s: user and system time of the server meanwhile.
    """

    seconds: float
    cpu_s: float
    pss_peak: int = 0
    processes: int = 1
    sizes: list[int] = []
    server_cpu_s: float = 0.0


class PeakMemory:
    """Samples the size of a process tree in a thread.

    State: the largest size and number of processes seen, these processes, and every sample of the size, in bytes.
    """

    def __init__(self, pid: int, every_s: float = 0.5) -> None:
        self._root = psutil.Process(pid)
        self._every_s = every_s
        self._stopped = threading.Event()
        self.peak = 0
        self.processes = 1
        self.seen: set[psutil.Process] = set()
        self.sizes: list[int] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        # At once too: the fastest of commands end before the first interval does.
        ended = False
        while not ended:
            tree = tree_of(self._root)
            size, count = size_of(tree)
            self.seen.update(tree)
            self.peak, self.processes = max(self.peak, size), max(self.processes, count)
            self.sizes.append(size)
            ended = self._stopped.wait(self._every_s)


def tree_of(root: psutil.Process) -> list[psutil.Process]:
    """A process and all its descendants; none if it is gone."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def size_of(processes: Sequence[psutil.Process]) -> tuple[int, int]:
    """The proportional set size of these processes, in bytes, and how many of them have any."""
    sizes = [proportional_size(each) for each in processes]
    return sum(sizes), sum(map(bool, sizes))


def run(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    log: str = os.devnull,
    server: int | None = None,
) -> Cost:
    """Run a command to its end and return its cost.

    Args:
        server: a process whose CPU time is measured too.

    Raises:
        RuntimeError: its exit code was not 0; with the last lines of its output.
    """
    served = _server_cpu_s(server)
    with _adopting_orphans(), open(log, "ab") as output:  # noqa: PTH123 - os.devnull is not a Path
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | dict(environment or {}))
        with PeakMemory(process.pid) as memory:
            code = process.wait()
        seconds = time.perf_counter() - started
        psutil.wait_procs(memory.seen & set(psutil.Process().children()), timeout=_ORPHANS_END_S)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        with open(log, errors="replace") as output:  # noqa: PTH123
            last = "".join(output.readlines()[-3:])
        raise RuntimeError(f"{' '.join(command)} ended with {code}: {last}")
    taken_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    served = _server_cpu_s(server) - served
    return Cost(seconds, taken_s, memory.peak, memory.processes, memory.sizes, served)


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Be the parent meanwhile of descendants whose own parent ends before it has waited for them.

    Otherwise the system forgets how much CPU they have taken: in one run of three, that of a whole writer.
    """
    prctl, pr_set_child_subreaper = ctypes.CDLL(None, use_errno=True).prctl, 36
    if prctl(pr_set_child_subreaper, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot become a subreaper")
    try:
        yield
    finally:
        prctl(pr_set_child_subreaper, 0, 0, 0, 0)


def cpu_s(*processes: psutil.Process) -> float:
    """The CPU time of these processes so far."""
    return sum(times.user + times.system for times in (each.cpu_times() for each in processes))


def _server_cpu_s(pid: int | None) -> float:
    return 0.0 if pid is None else cpu_s(psutil.Process(pid))


def python(*arguments: str) -> list[str]:
    """A command that runs this interpreter."""
    return [sys.executable, *arguments]
