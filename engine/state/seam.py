"""Where tokens, intents, leases and schemas are kept: Redis or SQLite, behind one seam.

A store keeps, for each stream, a small table of text fields and a lease. A lease has an epoch that grows with
every change of owner; a write that carries an older epoch, or another owner, is refused. What the fields mean
is ``core.records``' business. Beside that it keeps shared documents with a version (the schemas).

A store knows what it was told is durable, and says so when it finds less (``known``); it never makes a record
again that is gone. Any call can be made again after a ``TransientError``: whether the first one had come through
does not matter.

Both stores pass the same conformance suite (``tests/state/test_stores.py``); a third one needs these ten methods.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from msgspec import Struct


class Lease(Struct, frozen=True):
    """The right to write a stream's record, until somebody with a higher epoch has it."""

    stream: str
    owner: str
    epoch: int


class Acquired(Struct, frozen=True):
    """The lease is ours; ``fields`` is the record as it stood at that moment."""

    lease: Lease
    fields: dict[str, str]


class HeldElsewhere(Struct, frozen=True):
    """Another owner has the lease, for at least ``expires_in_s`` more seconds."""

    holder: str
    expires_in_s: float


class StateStore(Protocol):
    """The seam. Any method may raise ``TransientError`` (worth a retry), ``StateLostError`` or ``ConfigError``."""

    def acquire(self, stream: str, owner: str, ttl_s: float, *, replacing: str = "") -> Acquired | HeldElsewhere:
        """Take the lease if it is free, expired, already ours, or held by ``replacing``."""

    def renew(self, lease: Lease, ttl_s: float) -> None:
        """Keep the lease for ``ttl_s`` more seconds. Raises ``LeaseLostError``."""

    def release(self, lease: Lease) -> None:
        """Give the lease back; nothing happens when it is no longer ours."""

    def write(self, lease: Lease, put: Mapping[str, str], remove: Sequence[str] = ()) -> None:
        """Set and remove fields in one atomic, durable step. Raises ``LeaseLostError``."""

    def read_all(self) -> dict[str, tuple[dict[str, str], str]]:
        """Every stream's fields and the present holder of its lease (``""`` for none)."""

    def forget(self, streams: Collection[str]) -> None:
        """Remove the records and leases of these streams, where there are any: they will not be run again."""

    def read_shared(self, name: str) -> tuple[int, str]:
        """A shared document's version and text; ``(0, "")`` when there is none."""

    def write_shared(self, name: str, version: int, text: str) -> bool:
        """Store ``text`` as ``version``, if the present version is the one before; whether that is so now."""

    def check(self) -> list[str]:
        """Prove that a run can use the store, and leave nothing behind; what is doubtful about it."""

    def close(self) -> None:
        """Drop the connection."""
