"""All objects of a lake with their footers, sorted by segment, in bounded memory.

A lake is listed in the order of keys, and may have more objects than fit into memory. So they are kept in a
temporary file, which SQLite removes by itself.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import groupby
from typing import Self

import msgspec
from msgspec import Struct

from engine.core.naming import parts_of
from engine.lake.objects import Footer, LakeObject, Objects, UnreadableError

_TABLE = """
CREATE TABLE objects (
    stream TEXT, seq INTEGER, key TEXT, size INTEGER, wanted INTEGER, footer BLOB, problem TEXT
)"""
_COLUMNS = "key, size, wanted, footer, problem"
_CHUNK = 512


class Entry(Struct, frozen=True):
    """An object with its footer: with neither footer nor ``problem``, it is of a format without.

    Attributes:
        wanted: its rows are to be looked at, not only its footer.
    """

    object: LakeObject
    wanted: bool = True
    footer: Footer | None = None
    problem: str | None = None


class Catalogue:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # a private file in the temporary directory
        self._database.execute(_TABLE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def add(self, objects: Iterable[tuple[LakeObject, bool]]) -> None:
        """Add objects, each with whether its rows are wanted; forget those of streams without any such."""
        rows = ((each.parts.stream, each.parts.seq, each.key, each.size, wanted) for each, wanted in objects)
        self._database.executemany("INSERT INTO objects VALUES (?, ?, ?, ?, ?, NULL, NULL)", rows)
        wanted = "SELECT stream FROM objects WHERE wanted"
        self._database.execute(f"DELETE FROM objects WHERE stream NOT IN ({wanted})")

    def read_footers(self, objects: Objects, watch: Callable[[int], None]) -> None:
        """Read the footers of all objects; ``watch`` is called with how many more have been read."""
        last = 0
        query = "SELECT rowid, key, size FROM objects WHERE rowid > ? ORDER BY rowid LIMIT ?"
        while chunk := self._database.execute(query, (last, _CHUNK)).fetchall():
            last = chunk[-1][0]
            numbers = {key: number for number, key, _ in chunk}
            for each, footer in objects.footers(_object(key, size) for _, key, size in chunk):
                problem = str(footer) if isinstance(footer, UnreadableError) else None
                encoded = msgspec.msgpack.encode(footer) if isinstance(footer, Footer) else None
                change = "UPDATE objects SET footer = ?, problem = ? WHERE rowid = ?"
                self._database.execute(change, (encoded, problem, numbers[each.key]))
            watch(len(chunk))

    def totals(self) -> tuple[int, int]:
        """How many objects there are, and the bytes of those whose rows are wanted."""
        query = "SELECT count(*), coalesce(sum(size) FILTER (WHERE wanted), 0) FROM objects"
        objects, size = self._database.execute(query).fetchone()
        return objects, size

    def streams(self) -> Iterator[tuple[str, Iterator[list[Entry]]]]:
        """Each stream with its segments in order, each of these as its entries in the order of keys."""
        query = f"SELECT stream, seq, {_COLUMNS} FROM objects ORDER BY stream, seq, key"
        with closing(self._database.execute(query)) as rows:
            for stream, group in groupby(rows, lambda row: row[0]):
                yield (
                    stream,
                    ([_entry(*row[2:]) for row in segment] for _, segment in groupby(group, lambda row: row[1])),
                )


def _entry(key: str, size: int, wanted: int, footer: bytes | None, problem: str | None) -> Entry:
    decoded = msgspec.msgpack.decode(footer, type=Footer) if footer is not None else None
    return Entry(_object(key, size), bool(wanted), decoded, problem)


def _object(key: str, size: int) -> LakeObject:
    parts = parts_of(key)
    assert parts is not None, key
    return LakeObject(key, parts, size)
