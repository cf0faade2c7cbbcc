"""Who holds a lease, so that a restart need not wait for the lease of its own dead predecessor.

An owner is ``<host>/<where>/<pid>/<start>``. *where* names this boot of this machine and this pid namespace,
and *start* the clock tick since boot at which the process began: an owner from here whose process is gone,
or has become another one, is dead beyond doubt. Where ``/proc`` cannot tell, nobody is.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path


def this_owner() -> str:
    """The owner that this process is."""
    pid, tick = os.getpid(), None
    with suppress(OSError):
        tick = _start_tick(pid)
    return f"{socket.gethostname()}/{_where()}/{pid}/{tick}"


def is_certainly_dead(owner: str) -> bool:
    """Whether the owner was a process on this machine that has ended; False in any doubt."""
    _, _, rest = owner.partition("/")
    where, _, process = rest.partition("/")
    pid, _, tick = process.partition("/")
    if not where or where != _where() or not pid.isdigit() or not tick.isdigit():
        return False
    try:
        return _start_tick(int(pid)) != int(tick)
    except OSError:  # too many open files, for one
        return False


def _start_tick(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; None when there is no such process.

    Raises:
        OSError: that cannot be told at present.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # from field 3 of proc(5) on: the name in parentheses may hold blanks
    return None if fields[0] in "ZX" else int(fields[19])  # a zombie has ended; field 22 is its start


def _where() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""
