"""What is in the way of the streams at present, and when to say so. It is told; nothing is decided by it.

State: since when each stream has been held up, and when that was last told. Owner: the coordinator.

A server that hangs answers nothing, and no error comes of it for a minute or so. So whoever waits for an answer
says for how long (``Heartbeat.unanswered_s``), and what is unusual is a problem. Where a request fails, the error
is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from engine.core.actions import Log

# MongoDB answers a getMore within a second, also with nothing; the state store's records are small. A part of an
# upload may take some seconds.
UNANSWERED_S = 3.0
UPLOAD_UNANSWERED_S = 5.0
# Heartbeats come every second; the longest that a loop is at without one is a second or two.
SILENT_S = 8.0
# What is over by then is not worth a word.
BRIEF_S = 2.0
REPEAT_EVERY_S = 60.0

MAX_NAMED = 10


class Problem(Struct, frozen=True):
    """What is in the way, and since when (by the clock of the coordinator).

    Attributes:
        lasts: the cause is that it lasts: ``cause`` wants to be read with the time.
    """

    cause: str
    since: float
    lasts: bool = False

    @classmethod
    def after(cls, former: Problem | None, cause: str | None, now: float) -> Problem | None:
        """The problem with this cause, which may be the latest words for one that is there already."""
        if not cause:
            return None
        return cls(cause, now if former is None else former.since)

    def text(self, now: float) -> str:
        """As it is told."""
        return f"{self.cause} for {now - self.since:.0f} s" if self.lasts else self.cause


class Problems:
    """Says when streams are held up, and when they go on."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._told_at: dict[str, float] = {}

    def tell(self, found: Mapping[str, Problem | None], now: float) -> list[Log]:
        """A line for each cause that is new or was last told a while ago, and for what is over.

        Args:
            found: the problem of each stream that there is.
        """
        causes: dict[str, list[str]] = {}
        over: dict[float, list[str]] = {}
        for name, problem in found.items():
            if problem is None and name in self._since:
                over.setdefault(self._since[name], []).append(name)
            elif problem is not None and now - self._told_at.get(name, -REPEAT_EVERY_S) >= REPEAT_EVERY_S:
                causes.setdefault(problem.text(now), []).append(name)
                self._told_at[name] = now
        self._since = {name: self._since.get(name, each.since) for name, each in found.items() if each is not None}
        self._told_at = {name: at for name, at in self._told_at.items() if name in self._since}
        return [
            *(
                Log("warning", "streams are held up", _named(each) | {"problem": why})
                for why, each in causes.items()
            ),
            *(
                Log("info", "streams go on", _named(each) | {"after_s": round(now - since, 1)})
                for since, each in over.items()
            ),
        ]


def _named(streams: Sequence[str]) -> dict[str, object]:
    left = len(streams) - MAX_NAMED
    return {"streams": list(streams[:MAX_NAMED])} | ({"more": left} if left > 0 else {})
