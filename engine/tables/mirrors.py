"""The mirrors of a lake: which there are, who merges them, and when there is something to merge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from engine.config.tree import Config
from engine.core.naming import TABLE_DIRECTORIES, is_split, mirror_name, parts_of
from engine.errors import HeadraceError
from engine.lake.objects import Objects
from engine.sink.lake import directories_of
from engine.sink.objects import Sink
from engine.state.seam import StateStore
from engine.tables.follower import Tables
from engine.tables.mirror import Merged, Mirror
from engine.tables.table import ConflictError, TableFile

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
    """Merges the mirrors of all changelog tables of a lake.

    Args:
        store: only read.
        owner: leave the mirrors that other engines merge to them; "" for none.
    """

    def __init__(self, config: Config, store: StateStore, tables: Tables, owner: str = "") -> None:
        self._config = config
        self._sink = Sink(config.sink)
        self._objects = Objects(config.sink, config.retry)
        self._store = store
        self._tables = tables
        self._owner = owner

    def run_once(self, beat: Callable[[], None] = lambda: None) -> MirrorPass:
        """Merge what the changelog tables have by now.

        Raises:
            HeadraceError: of the state store or the sink; of a table, see ``MirrorPass.failed``.
        """
        holders = {name: holder for name, (_, holder) in self._store.read_all().items() if not is_split(name)}
        done: dict[str, Merged] = {}
        failed: dict[str, HeadraceError] = {}
        for directory in directories_of(self._sink, None, TABLE_DIRECTORIES):
            beat()
            database, changes, _ = directory.split("/")
            name = mirror_name(changes)
            try:
                merged = self._merged(database, changes, name, holders, beat)
            except HeadraceError as error:
                failed[f"{database}.{name}"] = error
            else:
                if merged.rows:
                    done[f"{database}.{name}"] = merged
        return MirrorPass(done, failed)

    def _merged(
        self, database: str, changes: str, name: str, holders: Mapping[str, str], beat: Callable[[], None]
    ) -> Merged:
        source = self._tables.open(database, changes, by_day=True)
        table = self._tables.open(database, name, by_day=False)
        source.coverage()
        if not self._is_ours(source.files(), holders):
            return Merged()
        mirror = Mirror(self._config.sink, self._objects, source, table, f"{database}/{name}/", beat)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return mirror.merge()
            except ConflictError:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def _is_ours(self, files: Iterable[TableFile], holders: Mapping[str, str]) -> bool:
        """Whether this engine merges a mirror: the one that has the first of the streams that it is made of."""
        if not self._owner:
            return True
        parts = (parts_of(each.key) for each in files)
        streams = {each.stream for each in parts if each is not None} & holders.keys()
        return not streams or holders[min(streams)] in ("", self._owner)
