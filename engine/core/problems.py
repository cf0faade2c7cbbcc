"""The current problems of the streams, and when to report them. No decision depends on them.

State: since when each stream has been held up, and when that was last logged. Owner: the coordinator.

A server that hangs does not answer, and that causes no error for a minute or so. So a process that waits for an
answer reports for how long (``Heartbeat.unanswered_s``), and an unusually long wait is a problem. If a request
fails, its error is the problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from engine.core.actions import Log

# MongoDB answers a getMore within three seconds, even if with nothing; the state store's records are small. A part
# of an upload may take several seconds.
UNANSWERED_S = 5.0
# Heartbeats are sent every second or two; the longest that a loop goes without one is three or so.
SILENT_S = 8.0
# A problem that is over by then is not reported.
BRIEF_S = 2.0
REPEAT_EVERY_S = 60.0

MAX_NAMED = 10


class Problem(Struct, frozen=True):
    """What holds a stream up, and since when (by the coordinator's clock).

    Attributes:
        lasts: the duration is the problem: it is reported with ``cause``.
    """

    cause: str
    since: float
    lasts: bool = False

    @classmethod
    def after(cls, previous: Problem | None, cause: str | None, now: float) -> Problem | None:
        """The problem with this cause; an existing problem continues, with its cause updated."""
        if not cause:
            return None
        return cls(cause, now if previous is None else previous.since)

    def text(self, now: float) -> str:
        """The problem as it is reported."""
        return f"{self.cause} for {now - self.since:.0f} s" if self.lasts else self.cause


class Problems:
    """Reports when streams are held up, and when they continue."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._logged_at: dict[str, float] = {}

    def report(self, found: Mapping[str, Problem | None], now: float) -> list[Log]:
        """A line for each cause that is new or was last logged a while ago, and for what is over.

        Args:
            found: the problem of each existing stream.
        """
        causes: dict[str, list[str]] = {}
        over: dict[float, list[str]] = {}
        for name, problem in found.items():
            if problem is None and name in self._since:
                over.setdefault(self._since[name], []).append(name)
            elif problem is not None and now - self._logged_at.get(name, -REPEAT_EVERY_S) >= REPEAT_EVERY_S:
                causes.setdefault(problem.text(now), []).append(name)
                self._logged_at[name] = now
        self._since = {name: self._since.get(name, each.since) for name, each in found.items() if each is not None}
        self._logged_at = {name: at for name, at in self._logged_at.items() if name in self._since}
        return [
            *(
                Log("warning", "streams are held up", _named(each) | {"problem": why})
                for why, each in causes.items()
            ),
            *(
                Log("info", "streams resumed", _named(each) | {"after_s": round(now - since, 1)})
                for since, each in over.items()
            ),
        ]


def _named(streams: Sequence[str]) -> dict[str, object]:
    left = len(streams) - MAX_NAMED
    return {"streams": list(streams[:MAX_NAMED])} | ({"more": left} if left > 0 else {})
