"""How ``memory.limit`` is divided: one term for each thing that holds memory.

Fixed terms are measured sizes of idle processes, what is left is shared out. A limit that cannot hold the
fixed terms and the least that each part needs is refused, with the sum shown.

Sizes are proportional (PSS): what processes share is counted once.
"""

from __future__ import annotations

from msgspec import Struct

from engine.core.arena import GRAIN
from engine.errors import ConfigError
from engine.quantities import format_size

MIB = 2**20

# Measured with CPython 3.11 and pyarrow 26 on Linux x86-64, after the first batch, rounded up. What children share
# with the template that they are forked from is in SHARED. A writer's includes a part on its way, which the
# libraries below hold about three times (18 MiB), beside some 50 MiB of its own. The encoder holds one value of
# 16 MiB as a page, compressed, as a page again, and as what is written: 136 MiB in all, 20 more than the term and
# the pending rows, which the supervisor's, the template's and the shared libraries' terms had to spare.
SUPERVISOR = 52 * MIB
TEMPLATE = 32 * MIB
SHARED = 64 * MIB
READER = 48 * MIB
WRITER = 92 * MIB

# One event of 16 MiB must always fit: as raw reply, as columns, and in a slab. Where replies are as large as that,
# a reader holds one: it asks for the next when it is done with it (``source.prefetch``), and a writer encodes it
# where it lies in its slab. With a slow store 15 such documents came to 347 MiB of a limit of 396.
LEAST_REPLY = 4 * MIB
MOST_REPLY = 8 * MIB
LEAST_ARENA = 64 * MIB
MOST_ARENA = 512 * MIB
LEAST_PENDING = 24 * MIB
MOST_PENDING = 512 * MIB
# A reader holds a reply that is decoded, one that waits, one that is looked at, one that arrives; and the columns
# of a part of one.
REPLIES_PER_READER = 5


class Budget(Struct, frozen=True):
    """The division, in bytes.

    Attributes:
        arena: shared memory for slabs.
        reply: what a reader asks the server for at once.
        writer_pending: rows collected for row groups, compressed parts, and the encoder's own, per writer.
    """

    limit: int
    arena: int
    reply: int
    writer_pending: int
    readers: int
    writers: int

    def terms(self) -> list[tuple[str, int]]:
        """What the limit is made of, for people."""
        readers, writers = self.readers, self.writers
        return [
            ("supervisor", SUPERVISOR),
            ("what children are forked from", TEMPLATE),
            ("libraries, shared by all", SHARED),
            (f"{readers} reader(s) x {format_size(READER)}", readers * READER),
            (f"{writers} writer(s) x {format_size(WRITER)}", writers * WRITER),
            (
                f"replies: {readers} reader(s) x {REPLIES_PER_READER} x {format_size(self.reply)}",
                readers * REPLIES_PER_READER * self.reply,
            ),
            (f"slabs: {format_size(self.arena)}", self.arena),
            (
                f"row groups and parts: {writers} writer(s) x {format_size(self.writer_pending)}",
                writers * self.writer_pending,
            ),
        ]


def divide(limit: int, readers: int, writers: int) -> Budget:
    """Share out a limit.

    Raises:
        ConfigError: it cannot hold what these processes need at least; the sum is in the message.
    """
    limit = int(limit)
    least = Budget(limit, LEAST_ARENA, LEAST_REPLY, LEAST_PENDING, readers, writers)
    needed = sum(size for _, size in least.terms())
    if needed > limit:
        cause = f"{format_size(limit)} cannot hold this configuration, which needs at least:{_sum(least)}"
        remedy = "Raise memory.limit, or lower source.max_readers, backfill.readers or writers.processes."
        raise ConfigError("divide memory.limit", cause, remedy)
    spare = limit - needed
    reply = min(MOST_REPLY, LEAST_REPLY + spare * 4 // 10 // (REPLIES_PER_READER * readers))
    arena = min(MOST_ARENA, LEAST_ARENA + spare * 2 // 10) // GRAIN * GRAIN
    pending = min(MOST_PENDING, LEAST_PENDING + spare * 4 // 10 // writers)
    return Budget(limit, arena, reply, pending, readers, writers)


def refuse_beyond(most: int, budget: Budget) -> None:
    """Refuse a limit above what the process may have: the kernel would kill children again and again.

    Args:
        most: what the container may have, in bytes.

    Raises:
        ConfigError: it is above; the sum is in the message.
    """
    if budget.limit <= most:
        return
    cause = (
        f"memory.limit is {format_size(budget.limit)}, and this container (control group) may have "
        f"{format_size(most)}:{_sum(budget)}"
    )
    try:
        divide(most, budget.readers, budget.writers)
        remedy = f"Set memory.limit to at most {format_size(most)}, or give the container more."
    except ConfigError as error:
        remedy = (
            f"Give the container at least {format_size(budget.limit)}. It has too little for any limit: "
            f"{error.cause}\n{error.remedy}"
        )
    raise ConfigError("divide memory.limit", cause, remedy)


def _sum(budget: Budget) -> str:
    """The terms and their sum, each on a line."""
    terms = [*budget.terms(), ("in all", sum(size for _, size in budget.terms()))]
    return "".join(f"\n  {size / MIB:6.0f} MiB  {name}" for name, size in terms)
