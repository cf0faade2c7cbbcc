"""What a state store is known to have, so that it is noticed when it has less.

A store's server can lose what it has acknowledged: it is emptied, evicts records, fails over to a lagging replica,
or is restored from a backup. Each stream's record therefore counts its acquisitions (the *epoch*) and its writes
(the *revision*), and the client remembers both:

| the record found | meaning |
|---|---|
| none | lost; a client that has known it does not create it again |
| a greater epoch than ours | another owner has taken over the stream |
| a smaller epoch, or ours with another owner | an older record has come back: lost |
| our epoch, a smaller revision | the last writes are lost; only we have written since, so we can restore them |

State: the greatest epoch seen of each stream; the records under our leases. Owner: the store.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

from engine.errors import HeadraceError, LeaseLostError, StateLostError
from engine.state.seam import Lease

REVISION = "_revision"

log = logging.getLogger("headrace")


class Held(Struct):
    """A record under one of our leases, as last acknowledged."""

    revision: int
    fields: dict[str, str]


class Known:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._epochs: dict[str, int] = {}
        self._held: dict[Lease, Held] = {}

    def epoch(self, stream: str) -> int:
        """The minimum epoch of the stream's record; 0 if it may be new."""
        return self._epochs.get(stream, 0)

    def saw(self, stream: str, epoch: int) -> None:
        """Note the epoch of the stream's record, whoever holds the lease."""
        self._epochs[stream] = max(epoch, self.epoch(stream))

    def acquired(self, lease: Lease, raw: Mapping[str, str]) -> dict[str, str]:
        """Note that the lease is ours; returns its record ``raw`` without the store's own fields."""
        self.saw(lease.stream, lease.epoch)
        fields = own_fields(raw)
        self._held[lease] = Held(int(raw.get(REVISION, "0")), fields)
        return fields

    def revision(self, lease: Lease) -> int | None:
        """The record's last acknowledged revision; None if the lease was acquired through another store object."""
        held = self._held.get(lease)
        return held.revision if held else None

    def fields_with(self, lease: Lease, put: Mapping[str, str], remove: Sequence[str]) -> dict[str, str]:
        """The whole record after a write."""
        fields = {**self._held[lease].fields, **put}
        return {name: value for name, value in fields.items() if name not in remove}

    def wrote(self, lease: Lease, put: Mapping[str, str], remove: Sequence[str]) -> None:
        """Note an acknowledged write."""
        if (held := self._held.get(lease)) is not None:
            held.revision, held.fields = held.revision + 1, self.fields_with(lease, put, remove)

    def dropped(self, lease: Lease) -> None:
        """Note that the lease is no longer ours."""
        self._held.pop(lease, None)

    def forgot(self, streams: Collection[str]) -> None:
        """Note that these streams' records were removed on purpose."""
        for stream in streams:
            self._epochs.pop(stream, None)

    def refusal(self, operation: str, lease: Lease, epoch: int, owner: str) -> HeadraceError:
        """Why the lease is not valid for a record with this epoch (0: there is no record) and owner."""
        if epoch > lease.epoch:
            return LeaseLostError(operation, f"{owner} has held it since epoch {epoch}; ours was {lease.epoch}")
        return lost_record(operation, lease.stream, lease.epoch, epoch, owner if owner != lease.owner else "")


def own_fields(raw: Mapping[str, str]) -> dict[str, str]:
    """The record without the store's own fields."""
    return {name: value for name, value in raw.items() if not name.startswith("_")}


def log_restored(stream: str) -> None:
    """Warn that the server has lost acknowledged writes, which are about to be written again."""
    what = "the state store had lost the last writes of a record; restoring them"
    log.warning(what, extra={"fields": {"stream": stream}})


def lost_record(operation: str, stream: str, known: int, found: int, owner: str = "") -> StateLostError:
    """The error for a record that was at epoch ``known``, and is now gone or older."""
    if not found:
        return StateLostError(operation, f"the state store has lost its record of the stream {stream}")
    by = f", by {owner}" if owner else ""
    cause = f"the state store has reverted to an older record of the stream {stream}"
    return StateLostError(operation, f"{cause}: it was at epoch {known} and is now at {found}{by}")
