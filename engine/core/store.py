"""What the state store answers, as data: every answer can be recorded, and given to another coordinator.

The store's thread performs what it is asked in order, and answers in that order. It decides nothing: what an
answer means is the coordinator's business (``Coordinator.from_store``).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from engine.core.actions import Child, WriteKind
from engine.errors import FailureKind

# Of each stream: the fields of its record, and who holds its lease ("" for nobody).
Records = Mapping[str, tuple[dict[str, str], str]]


class LeaseTaken(Struct, frozen=True, tag=True):
    """The lease is ours.

    Attributes:
        fields: the stream's record as it stood at that moment; none for a stream that has never run.
        document: the shared document that was asked for with it, read after that; None when there is none.
    """

    stream: str
    fields: dict[str, str]
    document: str | None = None


class LeaseDenied(Struct, frozen=True, tag=True):
    """Another engine has the lease, for at least so many seconds more."""

    stream: str
    holder: str
    expires_in_s: float


class LeaseLost(Struct, frozen=True, tag=True):
    """A write or a renewal was refused: another engine owns the stream now."""

    stream: str


class RecordLost(Struct, frozen=True, tag=True):
    """The store no longer has a stream's record that it has had. The lease is not ours, or no longer.

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
    """A write to a stream's record is durable. The attributes are those of the ``Write``."""

    stream: str
    generation: int
    kind: WriteKind
    seq: int | None = None


class SchemaRead(Struct, frozen=True, tag=True):
    """A collection's schema, with the fields that were to be added.

    Attributes:
        text: the shared document; None when there is none, and it was not to be made.
    """

    reader: Child
    database: str
    collection: str
    text: str | None


class StateRead(Struct, frozen=True, tag=True):
    """All records, as asked for by ``ReadState``, and a shared document (None when there is none)."""

    about: str
    records: Records
    document: str | None = None


class StoreSeen(Struct, frozen=True, tag=True):
    """How the store is doing: for how long it has owed an answer, and why the latest attempt failed, if it did."""

    unanswered_s: float
    error: str | None = None


class StoreFailed(Struct, frozen=True, tag=True):
    """The store has been out of reach for longer than the retry budget, refuses us, or has lost data."""

    kind: FailureKind
    operation: str
    cause: str
    remedy: str


FromStore = (
    LeaseTaken | LeaseDenied | LeaseLost | RecordLost | Written | SchemaRead | StateRead | StoreSeen | StoreFailed
)
