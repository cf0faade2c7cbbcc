"""How ``memory.limit`` is divided: one term for each thing that holds memory.

Fixed terms are the measured sizes of idle processes; what remains is divided among the rest. A limit that cannot
hold the fixed terms and the minimum of each other term is refused, and the error shows the sum.

Sizes are proportional (PSS): memory that processes share is counted once.
"""

from __future__ import annotations

from msgspec import Struct, structs

from engine.core.arena import GRAIN
from engine.errors import ConfigError
from engine.quantities import format_size

MIB = 2**20

# Measured with CPython 3.11 and pyarrow 26 on Linux x86-64, after the first batch, rounded up. What children share
# with the template that they are forked from is in SHARED. A writer's term includes an upload part in flight, of
# which the libraries below hold about three copies (18 MiB), besides some 50 MiB of its own. The encoder holds one
# value of 16 MiB as a page, compressed, as a page again, and as output: 136 MiB in total, 20 MiB more than the
# term and the pending rows, which the supervisor's, the template's and the shared libraries' terms had to spare.
SUPERVISOR = 52 * MIB
# What the supervisor needs more when it keeps the state on S3: the client library, with its description of S3.
STATE_ON_S3 = 32 * MIB
TEMPLATE = 32 * MIB
SHARED = 64 * MIB
READER = 48 * MIB
WRITER = 92 * MIB
# With the libraries of the table formats, after some hundred commits; and while it merges.
COMMITTER = 192 * MIB
MERGE = 224 * MIB

# One event of 16 MiB must always fit: as a raw reply, as columns, and in a slab. When replies are that large, a
# reader holds only one: it asks for the next when it is done with it (``source.prefetch``), and a writer encodes
# it in place in its slab. With a slow store, 15 such documents used 347 MiB of a limit of 396 MiB.
MIN_REPLY = 4 * MIB
MAX_REPLY = 8 * MIB
MIN_ARENA = 64 * MIB
MAX_ARENA = 512 * MIB
MIN_PENDING = 24 * MIB
MAX_PENDING = 512 * MIB
# Parts of an upload, as S3 wants them (5 MiB at least, but for the last), and how many of them a writer holds: the
# copies of the one in flight, and those that the objects of other segments are filling.
MIN_PART = 6 * MIB
MAX_PART = 16 * MIB
PARTS_PER_WRITER = 8
# A reader holds a reply that is being decoded, one that waits, one that is being inspected, one that is arriving,
# and the columns of some rows of one.
REPLIES_PER_READER = 5


class Budget(Struct, frozen=True):
    """The division, in bytes.

    Attributes:
        arena: shared memory for slabs.
        reply: how much a reader asks the server for at once.
        writer_pending: rows buffered for row groups, compressed parts, and the encoder's own buffers, per writer.
        part: of an upload. Up to this size an object is one request, and all requests of a writer at one time have
            no more than this together.
    """

    limit: int
    arena: int
    reply: int
    writer_pending: int
    readers: int
    writers: int
    state_on_s3: bool = False
    part: int = MIN_PART
    tables: bool = False
    mirrors: bool = False

    def terms(self) -> list[tuple[str, int]]:
        """The terms of the limit, with a description of each."""
        readers, writers = self.readers, self.writers
        return [
            ("supervisor", SUPERVISOR),
            *([("its client for the state on S3", STATE_ON_S3)] if self.state_on_s3 else []),
            *([("committer of tables", COMMITTER)] if self.tables else []),
            *([("merge of a mirror", MERGE)] if self.mirrors else []),
            ("template process", TEMPLATE),
            ("shared libraries", SHARED),
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
            *self._larger_parts(),
        ]

    def _larger_parts(self) -> list[tuple[str, int]]:
        """What parts above the minimum, which is in a writer's own term, take."""
        if not (more := self.part - MIN_PART):
            return []
        count = self.writers * PARTS_PER_WRITER
        name = (
            f"parts of {format_size(self.part)} instead of {format_size(MIN_PART)}: {count} x {format_size(more)}"
        )
        return [(name, count * more)]


def divide(
    limit: int,
    readers: int,
    writers: int,
    *,
    state_on_s3: bool = False,
    tables: bool = False,
    mirrors: bool = False,
) -> Budget:
    """Divide a limit.

    Args:
        state_on_s3: whether the supervisor keeps the state there itself.
        tables, mirrors: whether there are any.

    Raises:
        ConfigError: it is below the minimum that these processes need; the sum is in the message.
    """
    limit = int(limit)
    minimum = Budget(
        limit, MIN_ARENA, MIN_REPLY, MIN_PENDING, readers, writers, state_on_s3, tables=tables, mirrors=mirrors
    )
    needed = sum(size for _, size in minimum.terms())
    if needed > limit:
        cause = f"{format_size(limit)} cannot hold this configuration, which needs at least:{_sum(minimum)}"
        remedy = "Raise memory.limit, or lower source.max_readers, backfill.readers or writers.processes."
        raise ConfigError("divide memory.limit", cause, remedy)
    spare = limit - needed
    reply = min(MAX_REPLY, MIN_REPLY + spare * 4 // 10 // (REPLIES_PER_READER * readers))
    arena = min(MAX_ARENA, MIN_ARENA + spare * 2 // 10) // GRAIN * GRAIN
    pending = min(MAX_PENDING, MIN_PENDING + spare * 4 // 10 // writers)
    found = structs.replace(minimum, arena=arena, reply=reply, writer_pending=pending)
    left = limit - sum(size for _, size in found.terms())
    larger = left // (PARTS_PER_WRITER * writers) // MIB * MIB
    return structs.replace(found, part=min(MAX_PART, MIN_PART + larger))


def refuse_above(max_limit: int, budget: Budget) -> None:
    """Refuse a ``memory.limit`` above the container's limit: the kernel would keep killing children.

    Args:
        max_limit: the container's limit, in bytes.

    Raises:
        ConfigError: it is above; the sum is in the message.
    """
    if budget.limit <= max_limit:
        return
    cause = (
        f"memory.limit is {format_size(budget.limit)}, but this container (control group) is limited to "
        f"{format_size(max_limit)}:{_sum(budget)}"
    )
    try:
        divide(
            max_limit,
            budget.readers,
            budget.writers,
            state_on_s3=budget.state_on_s3,
            tables=budget.tables,
            mirrors=budget.mirrors,
        )
        remedy = f"Set memory.limit to at most {format_size(max_limit)}, or give the container more memory."
    except ConfigError as error:
        remedy = (
            f"Give the container at least {format_size(budget.limit)}. It has too little for any limit: "
            f"{error.cause}\n{error.remedy}"
        )
    raise ConfigError("divide memory.limit", cause, remedy)


def _sum(budget: Budget) -> str:
    """The terms and their sum, one per line."""
    terms = [*budget.terms(), ("total", sum(size for _, size in budget.terms()))]
    return "".join(f"\n  {size / MIB:6.0f} MiB  {name}" for name, size in terms)
