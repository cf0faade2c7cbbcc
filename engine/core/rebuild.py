"""A stream's record from its objects in the lake, when the state is gone.

Segments are committed in order, and at most ``MAX_SEGMENTS_PER_STREAM`` are in flight. So of those in the lake all
but the newest few are committed; and of these few, one that is entirely in the lake may count as committed if all
before it do. The position is the end of the last such segment. Every later one of which something is in the lake,
and every one missing in between, becomes an *intent* again: the engine replays it to the same keys, which
completes it. This is exact, because

- a footer says how many objects the segment has, so a segment that was published in part is not taken for a whole;
- an intent ends where the footers say, and takes everything since the end of the one before it. A missing segment
  is replayed without events, because nothing of it is in the lake: the next one takes what it would have had;
- a stream is rewound only while nothing is in flight, so segments from before that are committed.

Footers of version 0.2 and before do not say how many objects there are: then all that could have been in flight
is replayed. All engines must have ended: one that was only paused could still publish a segment as it was.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from engine.core import records
from engine.core.ledger import FIRST_OF_SECOND, MAX_SEGMENTS_PER_STREAM, NUMBERS_PER_SECOND, first_segment
from engine.core.messages import Intent, ObjectName, Replaced
from engine.core.position import Position, make_time, position_at, token_time
from engine.core.specs import Spec
from engine.errors import ConfigError


class Footer(Struct, frozen=True):
    """What an object's footer says of its segment.

    Attributes:
        first_token: the token of its first event; None if it has none.
        end: its last position.
        after: the position that it follows; None in objects of version 0.2 and before.
        objects: how many objects it has; None likewise.
        line: how often the stream had been rewound before.
        replaced: the collections that were replaced up to there and whose content had not been loaded.
    """

    first_token: str | None
    end: Position
    after: Position | None = None
    objects: int | None = None
    line: int = 0
    replaced: tuple[Replaced, ...] = ()


class Landed(Struct, frozen=True):
    """An object of a stream, and its footer; dead letters have none."""

    seq: int
    name: ObjectName
    footer: Footer | None = None


class Rebuilt(Struct, frozen=True):
    """Where a stream stands by what is in the lake.

    Attributes:
        position, seq: the last committed position and segment.
        intents: what is to be replayed.
        skipped: segments that are not in the lake, and are not read again because where they began is not known.
    """

    position: Position
    seq: int
    line: int = 0
    intents: tuple[Intent, ...] = ()
    replaced: tuple[Replaced, ...] = ()
    skipped: tuple[int, ...] = ()

    def fields(
        self, spec: Spec, sink: str, schemas: Mapping[str, int], deployment: str | None = None
    ) -> dict[str, str]:
        """The stream's record.

        Args:
            sink: where its objects are and how they are laid out.
            schemas: the versions under which its objects were written, by the schemas' names.
        """
        fields = records.begin(spec, sink, deployment, self.position).put
        fields |= {"seq": str(self.seq), "line": str(self.line)}
        fields |= records.replaced_fields(self.replaced)
        for intent in self.intents:
            fields |= records.intended(intent, schemas).put
        return fields | {name: str(version) for name, version in schemas.items()}


def decisive(numbers: Iterable[int]) -> list[int]:
    """The segments that decide where a stream stands: those that could be in flight, and the last before them."""
    known = sorted(set(numbers))
    return known[max(0, bisect_left(known, known[-1] - MAX_SEGMENTS_PER_STREAM + 1) - 1) :]


def rebuilt(objects: Iterable[Landed]) -> Rebuilt:
    """Where the stream with these objects stands; those of its ``decisive`` segments suffice.

    Raises:
        ConfigError: that cannot be determined, because of a segment only the dead letters are there.
    """
    segments: dict[int, list[Landed]] = {}
    for each in objects:
        segments.setdefault(each.seq, []).append(each)
    return _Evidence(segments).rebuilt()


class _Evidence:
    """The segments in the lake, by number."""

    def __init__(self, segments: dict[int, list[Landed]]) -> None:
        self._segments = dict(sorted(segments.items()))
        self._newest = max(segments)
        lines = [footer.line for seq in segments for footer in self._footers(seq)]
        self._line = max(lines, default=0)

    def _footers(self, seq: int) -> Sequence[Footer]:
        return [each.footer for each in self._segments.get(seq, ()) if each.footer is not None]

    def _is_complete(self, seq: int) -> bool:
        """Whether all objects of the segment are there, of one attempt or of attempts with the same objects."""
        footers = self._footers(seq)
        return bool(footers) and {each.objects for each in footers} == {len(self._segments[seq])}

    def _end(self, seq: int) -> Position:
        if footers := self._footers(seq):
            return footers[0].end
        following = [each.after for each in self._footers(seq + 1) if each.after is not None]
        if following:
            return following[0]
        keys = ", ".join(each.name.key for each in self._segments[seq])
        cause = f"of segment {seq} only the dead letters are in the lake, which do not say where it ended: {keys}"
        raise ConfigError("rebuild the state", cause, "Delete them: they are written again.")

    def _first_open(self) -> tuple[int | None, int]:
        """The last segment that is committed for certain (None if it is not there), and the first one to judge."""
        in_flight = self._newest - MAX_SEGMENTS_PER_STREAM + 1
        committed = [seq for seq in self._segments if seq < in_flight or self._is_of_earlier_line(seq)]
        if committed:
            return committed[-1], max(in_flight, committed[-1] + 1)
        oldest = next(iter(self._segments))
        begun = first_segment(Position(time=_start_time(oldest)))
        # A stream's first number ends in 01. What came before the oldest object was deleted, or never published.
        follows_nothing = any(each.after and not each.after.token for each in self._footers(oldest))
        return None, oldest if follows_nothing or begun < in_flight else begun

    def _is_of_earlier_line(self, seq: int) -> bool:
        return any(each.line < self._line for each in self._footers(seq))

    def rebuilt(self) -> Rebuilt:
        base, seq = self._first_open()
        while self._is_complete(seq):
            base, seq = seq, seq + 1
        position, skipped = self._start(base, seq)
        seq += len(skipped)
        replaced = next((each.replaced for each in self._newest_first()), ())
        intents: list[Intent] = []
        for number in range(seq, self._newest + 1):
            intents.append(self._intent(number, intents[-1].end if intents else position))
        return Rebuilt(position, seq - 1, self._line, tuple(intents), replaced, tuple(skipped))

    def _newest_first(self) -> Iterator[Footer]:
        return (footer for seq in reversed(self._segments) for footer in self._footers(seq))

    def _intent(self, seq: int, start: Position) -> Intent:
        if seq not in self._segments:
            return Intent(seq, None, start)
        first = next((each.first_token for each in self._footers(seq)), None)
        names = tuple(sorted({each.name for each in self._segments[seq]}))
        return Intent(seq, first, self._end(seq), names)

    def _start(self, base: int | None, seq: int) -> tuple[Position, Sequence[int]]:
        """The position that segment ``seq`` follows, and the segments from there on that have to be skipped."""
        present = next((number for number in self._segments if number >= seq), seq)
        known = [each for each in self._footers(present) if each.after is not None]
        if base is not None and not (present > seq and self._is_of_earlier_line(base)):
            follows = known[0].after if known and present == seq else None
            return follows or self._end(base), ()
        if base is None and present > seq:  # the stream's first segments are missing; its number tells its start
            return Position(time=_start_time(seq)), ()
        if known:  # with a rewind before the missing ones, and where to is not known
            assert known[0].after is not None
            return known[0].after, range(seq, present)
        first = next((each.first_token for each in self._footers(present) if each.first_token), "")
        if time := token_time(first or ""):
            return Position(time=time), ()
        return position_at("", self._end(present).time), ()


def _start_time(seq: int) -> int:
    """The cluster time at which a stream started whose first segment has this number or a somewhat lower one."""
    return make_time((seq - FIRST_OF_SECOND) // NUMBERS_PER_SECOND, 0)
