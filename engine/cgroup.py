"""The limits of this process's control groups (its container): memory and CPU, and their count of OOM kills.

Both kinds of hierarchy are read: version 1 has a separate memory controller, version 2 has a single tree; a
machine may have either or both. A process's group is in ``/proc/self/cgroup``, but a container that sees only its
own part of the tree does not have that path: then the mounted directory is its own group.

See https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from engine.config import Config
from engine.config.tree import LAKE
from engine.core.budget import Budget, divide, refuse_above

# Version 1 expresses "no limit" as the largest number of pages that it can count.
_NO_LIMIT = 2**60


def divide_within(config: Config, readers: int) -> Budget:
    """Divide ``memory.limit``, which must not exceed the container's limit.

    Raises:
        ConfigError: it exceeds it, or is too small for this many readers.
    """
    state_on_s3 = config.state.url == LAKE and not config.sink.url.startswith("file:")
    budget = divide(
        config.memory.limit,
        readers,
        config.writers.processes,
        state_on_s3=state_on_s3,
        tables=config.table.format != "none",
        mirrors=config.mirror.enabled,
    )
    if (limit := memory_limit()) is not None:
        refuse_above(limit, budget)
    return budget


def memory_limit(root: Path = Path("/")) -> int | None:
    """The lowest limit of this process's group and its ancestors, in bytes; None if there is none."""
    found = []
    for group in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # does not exist, or is "max"
                found.append(int((group / name).read_text()))
    return min((limit for limit in found if limit < _NO_LIMIT), default=None)


def cpu_limit(root: Path = Path("/")) -> float | None:
    """The lowest limit of this process's group and its ancestors, in cores; None if there is none."""
    found = []
    for group in _groups(root, "cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # does not exist, or is "max"
            if (group / "cpu.max").exists():
                quota, period = map(int, (group / "cpu.max").read_text().split())
            else:
                quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            found.append(quota / period)
    return min((limit for limit in found if limit > 0), default=None)  # version 1 has -1 for none


def oom_kills(root: Path = Path("/")) -> int | None:
    """The number of OOM kills in this group, or else on this machine; None if unknown."""
    for group in _groups(root, "memory"):
        for name in ("memory.events", "memory.oom_control"):
            if (count := _counter(group / name)) is not None:
                return count
    return _counter(root / "proc/vmstat")


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's group and its ancestors, in each hierarchy that may have the controller."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            yield from _upwards(mounted / controller, path)
        elif number == "0" and not controllers:
            top = mounted if (mounted / "cgroup.controllers").exists() else mounted / "unified"
            yield from _upwards(top, path)


def _upwards(top: Path, path: str) -> Iterator[Path]:
    parts = [part for part in path.split("/") if part]
    if ".." in parts or not top.joinpath(*parts).is_dir():
        parts = []
    for depth in range(len(parts), -1, -1):
        yield top.joinpath(*parts[:depth])


def _counter(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill" and count.strip().isdigit():
                return int(count)
    return None
