"""The mirrors of a lake: which there are, and what they have had."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from engine.config.tree import Config
from engine.core.naming import mirror_name
from engine.errors import HeadraceError
from engine.lake.objects import Objects
from engine.sink.objects import Sink
from engine.state.seam import StateStore
from engine.tables.follower import Tables
from engine.tables.mirror import Merged, Mirror
from engine.tables.owned import Owned, owned
from engine.tables.table import ConflictError

_ATTEMPTS = 3


class MirrorPass(NamedTuple):
    """What one pass has done.

    Attributes:
        tables: what was merged, by mirror; those into which nothing was are not there.
        failed: the mirrors that could not be merged, each with the error.
    """

    tables: Mapping[str, Merged]
    failed: Mapping[str, HeadraceError]


class Mirrors:
    """Merges the mirrors of the changelog tables of a lake.

    State: what the files of each changelog have of which segments, by key: a file never changes.

    Args:
        store: only read.
        owner: leave the mirrors that other engines merge to them; "" for none.
        beat: called now and then while it works.
    """

    def __init__(
        self,
        config: Config,
        store: StateStore,
        tables: Tables,
        owner: str = "",
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._beat = beat
        self._sink = Sink(config.sink, beat)
        self._objects = Objects(config.sink, config.retry)
        self._store = store
        self._tables = tables
        self._owner = owner
        self._segments: defaultdict[str, dict[str, Mapping[str, int]]] = defaultdict(dict)

    def run_once(self) -> MirrorPass:
        """Merge what the changelog tables have by now.

        Raises:
            HeadraceError: of the state store or the sink; of a table, see ``MirrorPass.failed``.
        """
        done: dict[str, Merged] = {}
        failed: dict[str, HeadraceError] = {}
        for each in owned(self._sink, self._store, self._tables, self._owner):
            self._beat()
            name = mirror_name(each.name)
            try:
                merged = self._merged(each, name)
            except HeadraceError as error:
                failed[f"{each.database}.{name}"] = error
            else:
                if merged.rows:
                    done[f"{each.database}.{name}"] = merged
        return MirrorPass(done, failed)

    def _merged(self, changes: Owned, name: str) -> Merged:
        if changes.error is not None:
            raise changes.error
        table = self._tables.open(changes.database, name, by_day=False)
        directory = f"{changes.database}/{name}/"
        mirror = Mirror(
            self._sink,
            self._config.sink,
            self._objects,
            changes.table,
            table,
            directory,
            self._beat,
            self._segments[directory],
        )
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return mirror.merge()
            except ConflictError:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")
