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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil
from msgspec import Struct

from engine.supervisor.snapshot import proportional_size

# Tools to compare the engine with, built or installed once for all runs.
PEERS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace-bench"


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

    State: the largest size and number of processes seen, all of their numbers, and every sample of the size, in
    bytes.
    """

    def __init__(self, pid: int, every_s: float = 0.2) -> None:
        self._root = psutil.Process(pid)
        self._every_s = every_s
        self._stopped = threading.Event()
        self.peak = 0
        self.processes = 1
        self.pids: set[int] = set()
        self.sizes: list[int] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            size, count = tree_size(self._root, self.pids)
            self.peak, self.processes = max(self.peak, size), max(self.processes, count)
            self.sizes.append(size)


def tree_size(root: psutil.Process, pids: set[int] | None = None) -> tuple[int, int]:
    """The proportional set size of a process and all its descendants, in bytes, and their number.

    Args:
        pids: gets those of the descendants.
    """
    total = count = 0
    try:
        tree = (root, *root.children(recursive=True))
    except psutil.NoSuchProcess:
        return 0, 0
    if pids is not None:
        pids.update(each.pid for each in tree[1:])
    for process in tree:
        size = proportional_size(process)
        total, count = total + size, count + bool(size)
    return total, count


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
    _adopt_orphans()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    served = _cpu_s(server)
    started = time.perf_counter()
    with open(log, "ab") as output:  # noqa: PTH123 - os.devnull is not a Path
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | dict(environment or {}))
        with PeakMemory(process.pid) as memory:
            code = process.wait()
        for pid in memory.pids:
            with contextlib.suppress(ChildProcessError):  # its parent has waited for it
                os.waitpid(pid, 0)
    seconds = time.perf_counter() - started
    if code:
        with open(log, errors="replace") as output:  # noqa: PTH123
            last = "".join(output.readlines()[-3:])
        raise RuntimeError(f"{' '.join(command)} ended with {code}: {last}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(seconds, cpu_s, memory.peak, memory.processes, memory.sizes, _cpu_s(server) - served)


def _adopt_orphans() -> None:
    """Become the parent of the descendants whose own parent ends before it has waited for them.

    Otherwise the system forgets how much CPU they have taken: in one run of three, that of a whole writer.
    """
    pr_set_child_subreaper = 36
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot become a subreaper")


def _cpu_s(pid: int | None) -> float:
    """The CPU time of a process so far."""
    if pid is None:
        return 0.0
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def python(*arguments: str) -> list[str]:
    """A command that runs this interpreter."""
    return [sys.executable, *arguments]
