"""The interface of a state store, which Redis and SQLite implement.

A store keeps, for each stream, a record (a small table of text fields) and a lease. A lease has an epoch, which
grows each time it is acquired; a write with an older epoch, or another owner, is refused. ``core.records`` defines
what the fields mean. A store also keeps versioned shared documents: schemas, plans of backfills, the handover.

A store remembers what its server has acknowledged, and raises an error when it finds less (``known``); it never
recreates a record that is gone. Any call can be repeated after a ``TransientError``, whether or not the failed
attempt took effect.

All stores pass the same conformance suite (``tests/state/test_stores.py``); another one needs these methods.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from msgspec import Struct


class Lease(Struct, frozen=True):
    """The right to write a stream's record, until it is acquired with a higher epoch."""

    stream: str
    owner: str
    epoch: int


class Acquired(Struct, frozen=True):
    """The lease is ours; ``fields`` is the record at that moment."""

    lease: Lease
    fields: dict[str, str]


class HeldElsewhere(Struct, frozen=True):
    """Another owner has the lease; unless renewed, it expires in ``expires_in_s`` seconds."""

    holder: str
    expires_in_s: float


class StateStore(Protocol):
    """Any method may raise ``TransientError`` (worth a retry), ``StateLostError`` or ``ConfigError``."""

    def acquire(
        self, stream: str, owner: str, ttl_s: float, *, replacing: str = "", at_least: int = 0
    ) -> Acquired | HeldElsewhere:
        """Take the lease if it is free, expired, already ours, or held by ``replacing``.

        Raises:
            StateLostError: its epoch is below ``at_least``, or below one that was seen before.
        """

    def renew(self, lease: Lease, ttl_s: float) -> None:
        """Keep the lease for ``ttl_s`` more seconds. Raises ``LeaseLostError``."""

    def release(self, lease: Lease) -> None:
        """Give the lease back; does nothing if it is no longer ours."""

    def write(self, lease: Lease, put: Mapping[str, str], remove: Sequence[str] = ()) -> None:
        """Set and remove fields in one atomic, durable step. Raises ``LeaseLostError``."""

    def read_all(self) -> dict[str, tuple[dict[str, str], str]]:
        """Every stream's fields and the current holder of its lease (``""`` for none)."""

    def forget(self, streams: Collection[str]) -> None:
        """Remove the records and leases of these streams, if any: they will not run again."""

    def announce(self, owner: str, text: str, ttl_s: float) -> None:
        """Let others see ``text``, what this engine says of itself, for ``ttl_s`` seconds; "" takes it back."""

    def announced(self) -> dict[str, str]:
        """What each living engine says of itself, by owner. Leases do not depend on it: it may be late."""

    def read_shared(self, name: str) -> tuple[int, str]:
        """A shared document's version and text; ``(0, "")`` if there is none."""

    def write_shared(self, name: str, version: int, text: str) -> bool:
        """Store ``text`` as ``version`` if the current version is the one before; whether it is stored now."""

    def read_all_shared(self) -> dict[str, tuple[int, str]]:
        """Every shared document's version and text, by name, in the order of the names."""

    def put_shared(self, name: str, version: int, text: str) -> None:
        """Store a shared document as this version, whatever was there; version 0, with no text, removes it.

        Only for commands that put a whole state in place: an engine changes documents by ``write_shared``.
        """

    def check(self) -> list[str]:
        """Check that a run can use the store, and leave nothing behind; returns warnings about its settings."""

    def close(self) -> None:
        """Drop the connection."""
