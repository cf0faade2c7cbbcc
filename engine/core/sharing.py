"""Which of a fleet's streams each engine should have.

Engines on one state store, a *fleet*, share its streams evenly. Nobody assigns anything, and nobody leads: each
engine announces itself as a ``Member``, sees the others, and decides for itself by ``share`` what to take and what
to give up. Views may be stale or contradict each other. That costs balance for a moment, never data: a stream
belongs to whom the state store has given its lease, and all its writes are fenced.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from hashlib import blake2b

import msgspec
from msgspec import Struct


class Member(Struct, frozen=True, omit_defaults=True):
    """What an engine says of itself.

    Attributes:
        selection, generation: see ``core.generations``; only engines of one selection share streams.
        holds: the change streams whose leases it has, each with whether it is being captured.
        cannot: streams that it cannot read, each with the reason.
        room: how many more streams it could hold.
        ready: it can land what it reads; until then, nothing is given up for it.
        leaving: it is draining, and takes no more.
        epochs: of the leases that it has: whoever takes one over knows that it was there.
    """

    version: str = ""
    selection: str = ""
    generation: int = 0
    holds: dict[str, bool] = {}
    cannot: dict[str, str] = {}
    room: int = 0
    ready: bool = False
    leaving: bool = False
    epochs: dict[str, int] = {}

    def can_take(self, stream: str) -> bool:
        """Whether it could take this stream."""
        return not self.leaving and self.room > 0 and stream not in self.cannot


class Share(Struct, frozen=True):
    """What an engine should do: streams to take and streams to give up, in order of preference."""

    take: tuple[str, ...] = ()
    give: tuple[str, ...] = ()


def share(
    streams: Collection[str], members: Mapping[str, Member], me: str, overdue: Collection[str] = ()
) -> Share:
    """What the engine ``me`` should take or give up.

    Each free stream is for the engine with the fewest among those that can take it; all that see the same members
    agree on which. What has been free for too long (``overdue``) is for anyone who can take it.

    While no stream is free, an engine gives up what is more than anyone should have; and then one at a time, if it
    has the most, and another has at least two fewer. While the members stay the same, this ends with a difference
    of at most one, and then nothing moves.

    Args:
        streams: all streams that are to be read.
        members: every living engine of the selection. The own entry is true; the others' may be stale.
    """
    active = {name: member for name, member in members.items() if not member.leaving}
    if me not in active:
        return Share()
    held = {stream for member in members.values() for stream in member.holds}
    free = [stream for stream in streams if stream not in held]
    if free_for_some := [stream for stream in free if any(each.can_take(stream) for each in active.values())]:
        mine = _allotted(free_for_some, active)[me]
        late = [stream for stream in free_for_some if stream in overdue and active[me].can_take(stream)]
        wanted = [*mine, *(stream for stream in late if stream not in mine)]
        return Share(take=tuple(wanted[: active[me].room]))
    return Share(give=_excess(streams, active, me))


def _allotted(free: Iterable[str], active: Mapping[str, Member]) -> dict[str, list[str]]:
    """For each engine, the free streams that it should have."""
    allotted: dict[str, list[str]] = {name: [] for name in active}
    for stream in free:
        able = [n for n, each in active.items() if each.can_take(stream) and len(allotted[n]) < each.room]
        if able:
            fewest = min(able, key=lambda n: (len(active[n].holds) + len(allotted[n]), _score(stream, n)))
            allotted[fewest].append(stream)
    return allotted


def _excess(streams: Collection[str], active: Mapping[str, Member], me: str) -> tuple[str, ...]:
    """What to give up while no stream is free."""
    counts = {name: len(member.holds) for name, member in active.items()}
    lower = {name: each for name, each in active.items() if each.ready and counts[name] <= counts[me] - 2}
    wanted = [s for s in active[me].holds if any(each.can_take(s) for each in lower.values())]
    beyond = counts[me] - math.ceil(len(streams) / len(active))
    if beyond <= 0:
        beyond = int(max(active, key=lambda name: (counts[name], name)) == me)
    room = sum(min(each.room, counts[me] - 1 - counts[name]) for name, each in lower.items())
    ordered = sorted(wanted, key=lambda stream: _score(stream, me))
    return tuple(ordered[: min(beyond, room)])


def _score(stream: str, member: str) -> bytes:
    """The lower, the sooner this engine gets a stream among equals."""
    return blake2b(f"{member}\0{stream}".encode(), digest_size=8).digest()


def decode_members(texts: Mapping[str, str]) -> dict[str, Member]:
    """The members by owner, from what they have announced.

    What a later version adds is ignored. An announcement that cannot be read is left out: what that engine holds
    is fenced all the same.
    """
    found = {}
    for owner, text in texts.items():
        with suppress(msgspec.DecodeError):
            found[owner] = msgspec.json.decode(text, type=Member)
    return found
