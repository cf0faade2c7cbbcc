"""Documents to look at again, by ``_cdc_id``: there may be as many as the collection has, so they wait on disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Self


class Candidates:
    """A context manager; each document is held once."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # a private file in the temporary directory
        self._database.execute("CREATE TABLE candidates (id TEXT PRIMARY KEY, key BLOB) WITHOUT ROWID")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def add(self, id_: str, key: bytes) -> None:
        """Add one: its ``_cdc_id``, and a BSON document with only its ``_id``."""
        self._database.execute("INSERT OR IGNORE INTO candidates VALUES (?, ?)", (id_, key))

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM candidates").fetchone()[0])

    def chunks(self, count: int) -> Iterator[dict[str, bytes]]:
        """All of them, at most ``count`` at once."""
        last = None
        query = "SELECT id, key FROM candidates WHERE ? IS NULL OR id > ? ORDER BY id LIMIT ?"
        while chunk := dict(self._database.execute(query, (last, last, count)).fetchall()):
            yield chunk
            last = max(chunk)
