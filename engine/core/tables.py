"""The committer as the coordinator sees it: what it has added to tables, and the engine's end, which waits for it.

Tables follow the lake: nothing here is part of how an event gets into it. State: the committer's latest report,
and what it has added since the engine started. Owner: the coordinator.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.core.actions import Action, Child, Log, Send
from engine.core.children import Children
from engine.core.messages import CatchUp, CaughtUp, TableSeen, TablesSeen
from engine.core.stream import Settings, Stream
from engine.errors import FatalError, HeadraceError

COMMITTER = Child("committer", 0)
# So often in a row it dies before an engine that is otherwise done ends without it.
_DEATHS = 3


class Tables:
    """The tables of an engine, if it has any.

    Attributes:
        added: what was added to each.
    """

    def __init__(self, settings: Settings, streams: Mapping[str, Stream], children: Children) -> None:
        self._settings = settings
        self._streams = streams
        self._children = children
        self._asked = False
        self._answer: CaughtUp | None = None
        self._deaths = 0
        self._seen_at = 0.0
        self._seen: TablesSeen | None = None
        self.added: dict[str, TableSeen] = {}

    def start(self) -> None:
        """The committer is needed from the beginning."""
        if self._settings.tables:
            self._children.want(COMMITTER)

    def report(self, message: TablesSeen | CaughtUp, now: float) -> list[Action]:
        """The committer has looked at the tables."""
        if isinstance(message, CaughtUp):
            self._answer = message
            return []
        self._deaths = 0
        known = self.failed
        self._seen, self._seen_at = message, now
        for name, each in message.tables.items():
            before = self.added.get(name, TableSeen())
            self.added[name] = TableSeen(
                before.commits + each.commits, before.files + each.files, before.rows + each.rows
            )
        return [
            Log("warning", "a table is behind", {"table": name, "error": error})
            for name, error in message.failed.items()
            if name not in known
        ]

    @property
    def failed(self) -> dict[str, str]:
        """The tables that lack something, each with the reason; "" stands for all."""
        return self._seen.failed if self._seen else {}

    def lag_s(self, now: float) -> float | None:
        """How long ago the tables had all that had been committed; None if that is not known."""
        return None if self._seen is None else self._seen.lag_s + now - self._seen_at

    def exited(self) -> None:
        """The committer has died: it is asked again once it is back."""
        self._asked = False
        self._deaths += 1

    @property
    def is_caught_up(self) -> bool:
        """Whether an engine that is otherwise done may end."""
        answered = self._answer is not None or self._deaths >= _DEATHS
        return not self._settings.tables or self._settings.common_end or answered

    @property
    def error(self) -> HeadraceError | None:
        """Why some table lacks something at the end."""
        if self._answer is None and self._deaths >= _DEATHS:
            causes = f"the committer has died {self._deaths} times in a row; the log above has the reason"
        elif self._answer is None or not self._answer.failed:
            return None
        else:
            causes = "; ".join(
                f"{name}: {error}" if name else error for name, error in sorted(self._answer.failed.items())
            )
        remedy = "The lake has everything; the next run adds it to the tables."
        return FatalError("bring the tables up to date", causes, remedy)

    def catch_up(self) -> list[Action]:
        """Everything is in the lake: have it added to the tables before the engine ends."""
        if self._asked or not self._children[COMMITTER].ready:
            return []
        self._asked = True
        return [
            Send(COMMITTER, CatchUp({each.name: each.ledger.committed_seq for each in self._streams.values()}))
        ]
