"""What this process's control groups (its container) allow it: how much memory, and who was killed for more.

Both kinds of hierarchy are read: version 1 has its memory controller apart, version 2 has everything in one tree;
a machine may have either or both. A process finds its group in ``/proc/self/cgroup``, but a container that is
shown only its own part of the tree does not have that path: then what is mounted is its own group.

See https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from engine.config import Config
from engine.core.budget import Budget, divide, refuse_beyond

# Version 1 says "no limit" by the largest number of pages that it can count.
_NO_LIMIT = 2**60


def divide_within(config: Config, readers: int) -> Budget:
    """The division of ``memory.limit``, which must not be more than the container may have.

    Raises:
        ConfigError: it is more, or cannot hold what so many readers need.
    """
    budget = divide(config.memory.limit, readers, config.writers.processes)
    if (most := memory_limit()) is not None:
        refuse_beyond(most, budget)
    return budget


def memory_limit(root: Path = Path("/")) -> int | None:
    """The least limit of this process's group and those above it, in bytes; None where there is none."""
    found = []
    for group, limit_file, _ in _groups(root):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            found.append(int((group / limit_file).read_text()))
    return min((limit for limit in found if limit < _NO_LIMIT), default=None)


def oom_kills(root: Path = Path("/")) -> int | None:
    """How many processes of this group, or else of this machine, have been killed for want of memory."""
    for group, _, events_file in _groups(root):
        if (count := _counter(group / events_file)) is not None:
            return count
    return _counter(root / "proc/vmstat")


def _groups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Each group of this process from its own upwards, with the names of its files of limit and of events."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            yield from _upwards(mounted / "memory", path, "memory.limit_in_bytes", "memory.oom_control")
        elif number == "0" and not controllers:
            top = mounted if (mounted / "cgroup.controllers").exists() else mounted / "unified"
            yield from _upwards(top, path, "memory.max", "memory.events")


def _upwards(top: Path, path: str, limit_file: str, events_file: str) -> Iterator[tuple[Path, str, str]]:
    parts = [part for part in path.split("/") if part]
    if ".." in parts or not top.joinpath(*parts).is_dir():
        parts = []
    for depth in range(len(parts), -1, -1):
        yield top.joinpath(*parts[:depth]), limit_file, events_file


def _counter(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill" and count.strip().isdigit():
                return int(count)
    return None
