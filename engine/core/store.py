"""The state store's answers, as data: every answer can be recorded, and replayed to another coordinator.

The store's thread performs requests in order, and answers in that order. It makes no decisions: what an answer
means is up to the coordinator (``Coordinator.from_store``).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from engine.core.actions import Child, WriteKind
from engine.errors import FailureKind

# For each stream: the fields of its record, and who holds its lease ("" for no one).
Records = Mapping[str, tuple[dict[str, str], str]]


class LeaseTaken(Struct, frozen=True, tag=True):
    """The lease is ours.

    Attributes:
        fields: the stream's record as of that moment; empty for a stream that has never run.
        document: the shared document requested with it, read after that; None if there is none.
        epoch: the lease's, for the log.
    """

    stream: str
    fields: dict[str, str]
    document: str | None = None
    epoch: int = 0


class LeaseDenied(Struct, frozen=True, tag=True):
    """Another engine has the lease, for at least this many more seconds."""

    stream: str
    holder: str
    expires_in_s: float


class LeaseLost(Struct, frozen=True, tag=True):
    """A write or a renewal was refused: another engine owns the stream now."""

    stream: str


class RecordLost(Struct, frozen=True, tag=True):
    """The store no longer has a stream's record that it once had. The lease is not ours, or no longer ours.

    Attributes:
        operation, cause, remedy: the error, see ``HeadraceError``.
        document: as in ``LeaseTaken``.
    """

    stream: str
    operation: str
    cause: str
    remedy: str
    document: str | None = None


class Written(Struct, frozen=True, tag=True):
    """A write to a stream's record is durable. The attributes are those of the ``Write``.

    Attributes:
        requested_at, written_at: by the monotonic clock.
    """

    stream: str
    generation: int
    kind: WriteKind
    seq: int | None = None
    requested_at: float = 0.0
    written_at: float = 0.0


class SchemaRead(Struct, frozen=True, tag=True):
    """A collection's schema, with the requested fields added.

    Attributes:
        text: the shared document; None if there is none and it was not to be created.
    """

    reader: Child
    database: str
    collection: str
    text: str | None


class StateRead(Struct, frozen=True, tag=True):
    """All records, as requested by ``ReadState``, and a shared document (None if there is none)."""

    about: str
    records: Records
    document: str | None = None


class FleetSeen(Struct, frozen=True, tag=True):
    """The living engines, as requested by ``Announce``.

    Attributes:
        owner: this engine.
        members: what each has announced (see ``core.sharing.Member``), by owner.
        document: the shared document that was asked for; None if there is none.
    """

    owner: str
    members: Mapping[str, str]
    document: str | None = None


class StoreSeen(Struct, frozen=True, tag=True):
    """The store's health: how long an answer has been outstanding, and why the latest attempt failed, if so.

    Attributes:
        retries: how many attempts have failed and were followed by another, so far.
        renewals: how many leases have been renewed, so far.
    """

    unanswered_s: float
    error: str | None = None
    retries: int = 0
    renewals: int = 0


class StoreFailed(Struct, frozen=True, tag=True):
    """The store has been unreachable for longer than the retry budget, refuses access, or has lost data."""

    kind: FailureKind
    operation: str
    cause: str
    remedy: str


FromStore = (
    LeaseTaken
    | LeaseDenied
    | LeaseLost
    | RecordLost
    | Written
    | SchemaRead
    | StateRead
    | FleetSeen
    | StoreSeen
    | StoreFailed
)
