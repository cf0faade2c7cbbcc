"""Which streams hand over to which, when a configuration's streams cover what other streams covered before.

Reading a collection in parts, watching the whole database, using fewer readers than collections: each of these
replaces streams, all at different positions, by streams with new ids. The old streams first run, under their old
selection, up to one common cluster time, and are cut exactly there; the new ones then start right after it. Which
streams close and which open is recorded in one step before either happens, and carried out idempotently, so that a
crash in between leaves nothing uncovered and nothing covered twice.

Invariant: whatever is covered at all is covered by exactly one open stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from engine.core.formats import SpecV1, decode_document, encode_document
from engine.core.specs import StreamSpec


class Succession(Struct, frozen=True):
    """Streams that end, and streams that start where those ended; a stream can be in both."""

    close: tuple[StreamSpec, ...]
    open: tuple[StreamSpec, ...]


class Handover(Struct, frozen=True):
    """A succession whose old streams have all reached the cluster time ``time``: it must now be carried out.

    Attributes:
        id: how many streams it concerns, and a name; stored in their records, so that its loss is noticed.
        close: the streams that end, each with its last committed segment: one that has advanced since has been run
            by an engine that does not know of the handover, and must not be closed.
    """

    id: str
    time: int
    close: dict[str, int]
    open: tuple[StreamSpec, ...]


def encode_handover(handover: Handover) -> str:
    """A handover as the shared document that holds it."""
    return encode_document(handover)


def decode_handover(text: str) -> Handover:
    """The handover in a shared document.

    Raises:
        ConfigError: it was written by a later version.
        StateLostError: it is damaged.
    """
    return decode_document(text, Handover, _HandoverV1)


class _HandoverV1(Struct, frozen=True):
    """A handover in format 1."""

    id: str
    time: int
    close: dict[str, int]
    open: tuple[SpecV1, ...]

    def upgraded(self) -> Handover:
        """The handover in the current format."""
        return Handover(self.id, self.time, self.close, tuple(each.upgraded_stream() for each in self.open))


def find_succession(desired: Sequence[StreamSpec], running: Mapping[str, StreamSpec]) -> Succession | None:
    """What has to be handed over; None if every desired stream continues or starts by itself.

    Args:
        running: the open streams in the state store, by id, with the selection that they ran under.
    """
    closing: dict[str, StreamSpec] = {}
    opening: dict[str, StreamSpec] = {}
    while True:
        found = {
            (old.stream, new.stream)
            for new in desired
            for old in running.values()
            if (overlap(old, new) and (old.stream != new.stream or old.stream in closing or new.stream in opening))
            or (old.stream in closing and new.stream not in running and _carry_the_same_database(old, new))
        }
        before = len(closing), len(opening)
        for old, new in found:
            closing[old] = running[old]
            opening[new] = next(spec for spec in desired if spec.stream == new)
        if (len(closing), len(opening)) == before:
            break
    if not closing:
        return None
    by_id = sorted(closing), sorted(opening)
    return Succession(tuple(closing[each] for each in by_id[0]), tuple(opening[each] for each in by_id[1]))


def find_abandoned(
    desired: Sequence[StreamSpec], running: Mapping[str, StreamSpec], closed: Mapping[str, str]
) -> dict[str, str]:
    """The desired streams that were closed, while no open stream covers any of what they did: they start over.

    Their successors were handed over too, to streams that leave it out.

    Args:
        closed: the handover that has closed each stream; also of those returned, because another handover may
            close them again before they start.
    """
    return {
        spec.stream: closed[spec.stream]
        for spec in desired
        if spec.stream in closed and not any(overlap(spec, other) for other in running.values())
    }


def find_gaps(succession: Succession, closed: Iterable[StreamSpec]) -> dict[str, list[str]]:
    """The named collections that are captured again after they were left out, by the stream that opens.

    Nothing of them was captured since the streams that had them were closed: those that close now do not.

    Args:
        closed: the streams that were handed over earlier, with the selection that they ran under.
    """
    earlier = list(closed)
    found = {}
    for new in succession.open:
        names = {
            name
            for old in earlier
            if old.database == new.database
            for name in (*old.collections, *new.collections)
        }
        missed = [
            name
            for name in sorted(names)
            if new.covers(new.database, name)
            and any(old.covers(new.database, name) for old in earlier)
            and not any(old.covers(new.database, name) for old in succession.close)
        ]
        if missed:
            found[new.stream] = missed
    return found


def _carry_the_same_database(one: StreamSpec, other: StreamSpec) -> bool:
    """Whether both carry the events that concern a whole database, even if they share no collection."""
    return one.carries_database and other.carries_database and one.database == other.database


def overlap(one: StreamSpec, other: StreamSpec) -> bool:
    """Whether an event could be in both streams, as far as level, collections and parts determine."""
    are_parts = one.level == other.level == "collection" and one.parts == other.parts > 1
    return one.meets(other) and (not are_parts or one.part == other.part)
