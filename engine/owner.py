"""Identifies the owner of a lease, so that a restart need not wait for the lease of its own dead predecessor.

An owner is ``<host>/<where>/<pid>/<start>``. *where* identifies this boot of this machine and this PID namespace,
and *start* is the clock tick since boot at which the process started: a local owner whose process is gone, or
whose PID has been reused, is certainly dead. If ``/proc`` cannot tell, no owner is considered dead.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

_STALE_AFTER_S = 24 * 3600


def this_owner() -> str:
    """This process as an owner."""
    pid, tick = os.getpid(), None
    with suppress(OSError):
        tick = _start_tick(pid)
    return f"{socket.gethostname()}/{_where()}/{pid}/{tick}"


def name_of(owner: str) -> str:
    """The owner in short, as it is shown: host and process; empty for no owner."""
    host, _, rest = owner.partition("/")
    process = rest.rpartition("/")[0].rpartition("/")[2]
    return f"{host}:{process}" if process else host


def is_certainly_dead(owner: str) -> bool:
    """Whether the owner was a process on this machine that has ended; False if in doubt."""
    _, _, rest = owner.partition("/")
    where, _, process = rest.partition("/")
    pid, _, tick = process.partition("/")
    if not where or where != _where() or not pid.isdigit() or not tick.isdigit():
        return False
    try:
        return _start_tick(int(pid)) != int(tick)
    except OSError:  # too many open files, for one
        return False


def has_left(owner: str, path: Path) -> bool:
    """Whether a file or directory of an owner was left behind.

    It was if the owner is certainly dead. An owner on another machine, or in another container, cannot be checked:
    it may still be writing, but would not leave everything untouched for a day.
    """
    if is_certainly_dead(owner):
        return True
    with suppress(OSError):  # another process has removed it, or it is another user's
        parts = [path, *(path.iterdir() if path.is_dir() else ())]
        untouched_s: float = time.time() - max(each.stat().st_mtime for each in parts)
        return untouched_s > _STALE_AFTER_S
    return False


def _start_tick(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if there is no such process.

    Raises:
        OSError: it cannot be determined at present.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # from field 3 of proc(5) on; the name in parentheses may have spaces
    return None if fields[0] in "ZX" else int(fields[19])  # a zombie has ended; field 22 is its start


def _where() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""
