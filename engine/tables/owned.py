"""The changelog tables of a lake that this engine looks after: of each, one engine merges and maintains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from engine.core.naming import TABLE_DIRECTORIES, is_split, parts_of
from engine.errors import HeadraceError
from engine.sink.lake import directories_of
from engine.sink.objects import Sink
from engine.state.seam import StateStore
from engine.tables.follower import Tables
from engine.tables.table import Table


class Owned(NamedTuple):
    """A changelog table, as it stands.

    Attributes:
        database, name: as in the directory of its objects.
        error: why it cannot be read.
    """

    database: str
    name: str
    table: Table
    error: HeadraceError | None = None


def owned(sink: Sink, store: StateStore, tables: Tables, owner: str) -> Iterator[Owned]:
    """The tables, those that others look after left out; see ``_is_ours``.

    Args:
        store: only read.
        owner: this engine; "" for all tables.

    Raises:
        HeadraceError: of the state store, the sink, or the catalog; of a table, see ``Owned.error``.
    """
    holders = {name: holder for name, (_, holder) in store.read_all().items() if not is_split(name)}
    for directory in directories_of(sink, None, TABLE_DIRECTORIES):
        database, name, _ = directory.split("/")
        table = tables.open(database, name, by_day=True)
        try:
            table.coverage()
            is_ours = not owner or _is_ours(table, holders, owner)
        except HeadraceError as error:
            yield Owned(database, name, table, error)
            continue
        if is_ours:
            yield Owned(database, name, table)


def _is_ours(table: Table, holders: dict[str, str], owner: str) -> bool:
    """Whether this engine has the first of the streams that a table is made of, or nobody has it."""
    parts = (parts_of(each.key) for each in table.files())
    streams = {each.stream for each in parts if each is not None} & holders.keys()
    return not streams or holders[min(streams)] in ("", owner)
