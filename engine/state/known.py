"""What a state store is known to have, so that it is noticed when it has less.

A store's server can lose what it has acknowledged: it is emptied, evicts, goes over to a replica that lags, is
restored from a backup. The record of each stream therefore counts its owners (the *epoch*) and its writes (the
*revision*), and this side of the connection remembers both:

| the record as it is found | what that means |
|---|---|
| there is none | lost; it is not made again by somebody who has known it |
| a greater epoch than ours | another owner has taken the stream over |
| a smaller one, or ours under another owner | an older record has come back: lost |
| ours, a smaller revision | the last writes are lost; nobody else wrote since, so that we can put them back |

State: the greatest epoch seen of each stream; the records under leases of ours. Owner: the store.
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
    """A record under a lease of ours, as it was last acknowledged."""

    revision: int
    fields: dict[str, str]


class Known:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._epochs: dict[str, int] = {}
        self._held: dict[Lease, Held] = {}

    def epoch(self, stream: str) -> int:
        """The least epoch that the stream's record must have; 0 when it may be new."""
        return self._epochs.get(stream, 0)

    def saw(self, stream: str, epoch: int) -> None:
        """The stream's record has this epoch, whoever holds the lease."""
        self._epochs[stream] = max(epoch, self.epoch(stream))

    def acquired(self, lease: Lease, raw: Mapping[str, str]) -> dict[str, str]:
        """The lease is ours, and this is the record with the store's own fields; without them."""
        self.saw(lease.stream, lease.epoch)
        fields = own_fields(raw)
        self._held[lease] = Held(int(raw.get(REVISION, "0")), fields)
        return fields

    def revision(self, lease: Lease) -> int | None:
        """The record's last acknowledged write; None when the lease was acquired by way of another store."""
        held = self._held.get(lease)
        return held.revision if held else None

    def fields_with(self, lease: Lease, put: Mapping[str, str], remove: Sequence[str]) -> dict[str, str]:
        """The whole record as a write makes it."""
        fields = {**self._held[lease].fields, **put}
        return {name: value for name, value in fields.items() if name not in remove}

    def wrote(self, lease: Lease, put: Mapping[str, str], remove: Sequence[str]) -> None:
        """The store has acknowledged a write."""
        if (held := self._held.get(lease)) is not None:
            held.revision, held.fields = held.revision + 1, self.fields_with(lease, put, remove)

    def let_go(self, lease: Lease) -> None:
        """The lease is ours no more."""
        self._held.pop(lease, None)

    def forgot(self, streams: Collection[str]) -> None:
        """These streams' records were removed on purpose."""
        for stream in streams:
            self._epochs.pop(stream, None)

    def refusal(self, operation: str, lease: Lease, epoch: int, owner: str) -> HeadraceError:
        """Why nothing may be done under the lease with a record of this epoch (0: there is none) and owner."""
        if epoch > lease.epoch:
            return LeaseLostError(operation, f"{owner} has it since epoch {epoch}; ours was {lease.epoch}")
        return lost_record(operation, lease.stream, lease.epoch, epoch, owner if owner != lease.owner else "")


def own_fields(raw: Mapping[str, str]) -> dict[str, str]:
    """The record without the fields that are the store's own."""
    return {name: value for name, value in raw.items() if not name.startswith("_")}


def log_restored(stream: str) -> None:
    """Tell people that the server has lost what it had acknowledged."""
    what = "the state store had lost the last writes of a record; they are put back"
    log.warning(what, extra={"fields": {"stream": stream}})


def lost_record(operation: str, stream: str, known: int, found: int, owner: str = "") -> StateLostError:
    """The record was at epoch ``known``, and is gone or an older one."""
    if not found:
        return StateLostError(operation, f"the state store has lost its record of the stream {stream}")
    by = f", by {owner}" if owner else ""
    cause = f"the state store has gone back to an older record of the stream {stream}"
    return StateLostError(operation, f"{cause}: it was at epoch {known} and is now at {found}{by}")
