"""How much of the oplog is left behind each stream, and how long that lasts at the present rates.

A stream continues from its committed position, which must not be older than the oplog's first entry. Both move:
the position as segments are committed, the first entry as the oplog is overwritten. While the sink or the state
store is away, the position stands still.

State: the oplog's window as last seen, how fast its first entry and each position have moved, and which streams
are known to be short. Owner: the coordinator.

An oplog that is not full yet loses nothing, however far behind a stream is. So nothing is said of a stream before
the first entry has been seen to move.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from msgspec import Struct

from engine.core.actions import Log
from engine.core.messages import OplogSeen
from engine.core.position import split_time
from engine.core.stream import Stream

# The share of the window below which a stream is short, and above which it no longer is.
LOW_SHARE = 0.25
RECOVERED_SHARE = 0.35
# "Present" rates are those of this many seconds. A server truncates the oplog in up to 100 steps, so the rate of
# its first entry is taken over several of them.
RATE_OVER_S = 600.0
STEPS_OF_WINDOW = 20
MIN_RATE_OVER_S = 60.0
_POINTS = 60


class Headroom(Struct, frozen=True):
    """What is left of the oplog behind one stream.

    Attributes:
        left_s: seconds from the oplog's first entry to the committed position.
        share: the same as a share of the window.
        lost_in_s: when the position will have been overwritten, at the present rates; None if it is not being
            approached, or the rates are not known yet.
    """

    left_s: float
    share: float
    lost_in_s: float | None


class _Rate:
    """How fast a cluster time moves, in its seconds per second."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def note(self, now: float, seconds: int, over_s: float) -> None:
        points = self._points
        if not points or now - points[-1][0] >= over_s / _POINTS:
            points.append((now, seconds))
        while len(points) > 2 and points[1][0] <= now - over_s:
            points.popleft()

    def per_s(self, now: float, seconds: int) -> float | None:
        """The rate since the oldest point; None if that is too recent."""
        if not self._points or now - self._points[0][0] < MIN_RATE_OVER_S:
            return None
        at, before = self._points[0]
        return max(0, seconds - before) / (now - at)


class Oplog:
    """The oplog of the deployment, and the streams' headroom in it.

    Attributes:
        window: the cluster times of its first and last entries; None while they are not known.
        error: why they are not known, if they cannot be.
    """

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self._streams = streams
        self.window: tuple[int, int] | None = None
        self.error: str | None = None
        self._first_rate = _Rate()
        self._rates: dict[str, _Rate] = {}
        self._seen_at = 0.0
        self._is_overwritten = False
        self._short: set[str] = set()

    @property
    def window_s(self) -> float | None:
        """How much the oplog holds, in seconds."""
        return None if self.window is None else float(_seconds(self.window[1]) - _seconds(self.window[0]))

    def seen(self, seen: OplogSeen, now: float) -> list[Log]:
        """A reader has asked for the window, or knows why it cannot; each stream's reader asks."""
        if seen.error is not None:
            known, self.error = self.error, seen.error
            return [] if known == seen.error else [Log("warning", "oplog not visible", {"error": seen.error})]
        if self.window is not None and seen.last < self.window[1]:
            return []  # another reader's is more recent
        self.error = None
        self._is_overwritten |= self.window is not None and seen.first > self.window[0]
        self.window, self._seen_at = (seen.first, seen.last), now
        over_s = max(RATE_OVER_S, (self.window_s or 0.0) / STEPS_OF_WINDOW)
        self._first_rate.note(now, _seconds(seen.first), over_s)
        for stream in self._streams.values():
            if not stream.is_of_backfill and (position := stream.standing) is not None:
                self._rates.setdefault(stream.name, _Rate()).note(now, _seconds(position.time), RATE_OVER_S)
        return [log for stream in self._streams.values() if (log := self._judge(stream)) is not None]

    def headroom(self, stream: Stream) -> Headroom | None:
        """What is left behind a change stream; None while that is not known."""
        position = None if stream.is_of_backfill else stream.standing
        if self.window is None or position is None or not position.time:
            return None
        first, at = _seconds(self.window[0]), _seconds(position.time)
        left_s = float(max(0, at - first))
        share = min(1.0, left_s / max(1.0, self.window_s or 0.0))
        return Headroom(left_s, share, self._lost_in_s(stream, left_s, first, at))

    def _lost_in_s(self, stream: Stream, left_s: float, first: int, at: int) -> float | None:
        towards = self._first_rate.per_s(self._seen_at, first)
        away = self._rates[stream.name].per_s(self._seen_at, at) if stream.name in self._rates else None
        if towards is None or away is None or towards <= away:
            return None
        return left_s / (towards - away)

    def is_short(self, stream: Stream) -> bool:
        """Whether the oplog is running out behind a stream."""
        return stream.name in self._short

    def _judge(self, stream: Stream) -> Log | None:
        """Say that a stream has become short, or no longer is."""
        found = self.headroom(stream)
        if found is None or not self._is_overwritten:
            return None
        fields: dict[str, object] = {"stream": stream.name, "left_s": found.left_s, "share": round(found.share, 2)}
        if found.share < LOW_SHARE and stream.name not in self._short:
            self._short.add(stream.name)
            if found.lost_in_s is not None:
                fields["lost_in_s"] = round(found.lost_in_s)
            fields["remedy"] = "Make the stream move again, or enlarge the oplog now (replSetResizeOplog)."
            return Log("warning", "the oplog is running out behind a stream", fields)
        if found.share > RECOVERED_SHARE and stream.name in self._short:
            self._short.remove(stream.name)
            return Log("info", "the oplog reaches back far enough again", fields)
        return None


def _seconds(time: int) -> int:
    return split_time(time)[0]
