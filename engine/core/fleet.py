"""This engine among those that share its streams; ``core.sharing`` decides who should have what.

A stream that is given up is drained first: what was read of it is published and committed, and the next owner
continues behind that. A stream whose owner is gone is taken by others as soon as its lease has expired.

State: the members as last seen, what this engine is to take, since when streams have been free. Owner: the
coordinator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.core.actions import Action, Announce, Log
from engine.core.children import Children
from engine.core.decisions import Decision, GiveUp
from engine.core.generations import FLEET_DOCUMENT, Generation, decode_generations, successor
from engine.core.lifecycle import Lease, Stage
from engine.core.problems import Problem
from engine.core.sharing import Member, Share, decode_members, share
from engine.core.store import FleetSeen
from engine.core.stream import Settings, Stream

# How often to look at the others. Alone, an engine looks as often as it renews its leases.
LOOK_EVERY_S = 2.0
# A reason why an engine cannot read a stream; the whole of it is in that engine's log.
MAX_REASON = 300
NOBODY = "no engine can take this stream"


class Fleet:
    """This engine among those that share its streams.

    Args:
        streams: all streams of this engine.

    Attributes:
        me: this engine's name, once the others have been seen.
        members: every living engine, as last seen, by name.
        unowned: streams that have no owner, and that no engine can take.
        successor: the generation that has replaced this engine's selection by another.
    """

    def __init__(self, settings: Settings, streams: Mapping[str, Stream], children: Children) -> None:
        self._identity = settings.fleet
        self._settings = settings
        self._streams = streams
        self._children = children
        self._announced_at: float | None = None
        self._awaits = False
        self._take: frozenset[str] = frozenset()
        self._captured: frozenset[str] = frozenset()
        self._free_since: dict[str, float] = {}
        self._shown: tuple[object, ...] = ()
        self.me = ""
        self.members: dict[str, Member] = {}
        self.unowned: tuple[str, ...] = ()
        self.successor: Generation | None = None

    @property
    def _own(self) -> list[Stream]:
        return [each for each in self._streams.values() if not each.is_of_backfill]

    def wants(self, stream: Stream) -> bool:
        """Whether this engine should ask for the stream's lease, as far as the others are concerned."""
        shares = self._identity is not None and not self._settings.common_end
        return not shares or stream.is_of_backfill or stream.name in self._take

    def is_captured_elsewhere(self, stream: Stream) -> bool:
        """Whether another engine captures the stream, as last seen."""
        return stream.name in self._captured

    def missed(self) -> None:
        """Another engine was faster: look again at once."""
        self._announced_at = None

    def look(self, now: float, *, draining: bool) -> list[Action]:
        """Announce this engine, and look at the others, if that is due; one answer is awaited at a time."""
        if self._identity is None or self._awaits:
            return []
        every = self._settings.lease_ttl_s / 3
        if len(self.members) > 1:
            every = min(every, LOOK_EVERY_S)
        if self._announced_at is not None and now - self._announced_at < every:
            return []
        self._announced_at, self._awaits = now, True
        return [Announce(self._member(draining=draining), FLEET_DOCUMENT)]

    def _member(self, *, draining: bool) -> Member:
        assert self._identity is not None
        held = [each for each in self._own if each.life.lease is not Lease.FREE]
        capacity = self._settings.capacity or len(self._own)
        return Member(
            self._settings.version,
            self._identity.selection,
            self._identity.number,
            {each.name: each.is_captured for each in held},
            {each.name: str(each.error)[:MAX_REASON] for each in self._own if each.error is not None},
            max(0, capacity - len(held)),
            bool(self._children.ready("writer")),
            draining,
        )

    def seen(self, answer: FleetSeen, now: float, *, draining: bool) -> list[Decision]:
        """The others, as of now: what to take, and what to give up, until the next look.

        Raises:
            ConfigError: the generations of the fleet were written by a later version.
            StateLostError: they are damaged.
        """
        self._awaits = False
        self.me = answer.owner
        assert self._identity is not None
        self.successor = successor(decode_generations(answer.document), self._identity)
        found = decode_members(answer.members)
        self.members = {name: each for name, each in found.items() if each.selection == self._identity.selection}
        self.members[self.me] = self._member(draining=draining)
        holders = {s: name for name, each in self.members.items() for s in each.holds if name != self.me}
        self._captured = frozenset(s for m in self.members.values() for s, captured in m.holds.items() if captured)
        names = [each.name for each in self._own if each.is_open]
        free = [name for name in names if name not in holders and name not in self.members[self.me].holds]
        self._free_since = {name: self._free_since.get(name, now) for name in free}
        late = [name for name in free if now - self._free_since[name] > self._settings.lease_ttl_s]
        todo = Share() if draining or self._settings.common_end else share(names, self.members, self.me, late)
        self._take = frozenset(todo.take)
        told = [*self._told(free), *self._told_of_unowned(late)]
        self._note_holders(holders, now)
        return [
            *told,
            *(GiveUp(self._streams[name]) for name in todo.give),
            *self._resting(),
        ]

    def _note_holders(self, holders: Mapping[str, str], now: float) -> None:
        """Note who has the streams that are neither ours nor asked for; "" for no one yet."""
        for stream in self._own:
            if stream.life.lease is not Lease.FREE or stream.stage is not Stage.WAITING:
                continue
            if stream.name not in self._take:
                stream.held_by = holders.get(stream.name, "")
            stream.trouble = Problem.after(stream.trouble, NOBODY if stream.name in self.unowned else None, now)

    def _resting(self) -> list[Action]:
        """Let the readers of streams that others have exit."""
        unused = (each.reader for each in self._own if each.held_by is not None and not self._is_ours(each))
        return [self._children.rest(each) for each in unused if each is not None and self._children[each].ready]

    def _is_ours(self, stream: Stream) -> bool:
        return stream.life.lease is not Lease.FREE or stream.name in self._take

    def _told(self, free: Sequence[str]) -> list[Log]:
        """A line for each change of the membership."""
        now = tuple(sorted(self.members))
        if now == self._shown:
            return []
        self._shown = now
        if len(now) == 1 and not free:
            return []
        held = len(self.members[self.me].holds)
        fields = {"engines": len(now), "streams": len(self._own), "holds": held, "free": len(free)}
        return [Log("info", "the fleet has changed", fields)]

    def _told_of_unowned(self, late: Sequence[str]) -> list[Log]:
        """Streams that are free and stay free, because no engine can take them."""
        unowned = tuple(name for name in late if not any(each.can_take(name) for each in self.members.values()))
        is_new, self.unowned = set(unowned) - set(self.unowned), unowned
        if not is_new:
            return []
        fields = {
            "streams": sorted(is_new)[:10],
            "count": len(unowned),
            "remedy": "Start another engine, raise fleet.streams, or see why the engines cannot read them.",
        }
        return [Log("error", "no engine can take these streams", fields)]
