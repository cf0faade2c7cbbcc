"""The embedded state store: one SQLite file, for engines on one machine.

Leases expire by the machine's wall clock. Writes are fenced inside the transaction that makes them, and are
on disk when they return (WAL with ``synchronous=FULL``).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from engine.config.tree import StateConfig
from engine.errors import ConfigError, LeaseLostError, TransientError
from engine.state import Acquired, HeldElsewhere, Lease

BUSY_TIMEOUT_S = 5.0

_TABLES = """
CREATE TABLE IF NOT EXISTS leases (
    stream TEXT PRIMARY KEY, epoch INTEGER NOT NULL, owner TEXT NOT NULL, expires_at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS fields (
    stream TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (stream, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shared (
    name TEXT PRIMARY KEY, version INTEGER NOT NULL, value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
"""


class SqliteStore:
    """See ``engine.state.StateStore``. Streams are prefixed, so that several engines can share a file."""

    def __init__(self, config: StateConfig) -> None:
        parts = urlsplit(config.url)
        # sqlite:///relative.db and sqlite:////absolute.db, as SQLAlchemy has made it common
        self._path = Path(unquote(parts.netloc + parts.path.removeprefix("/")))
        self._prefix = f"{config.prefix}:"
        self._connection: sqlite3.Connection | None = None

    def acquire(self, stream: str, owner: str, ttl_s: float, *, replacing: str = "") -> Acquired | HeldElsewhere:
        """Take the lease if it is free, expired, already ours, or held by ``replacing``."""
        name, now = self._prefix + stream, time.time()
        with self._transaction(f"acquire the lease of {stream}") as db:
            row = db.execute("SELECT epoch, owner, expires_at FROM leases WHERE stream = ?", (name,)).fetchone()
            epoch, holder, expires_at = row or (0, "", 0.0)
            if holder not in ("", owner, replacing) and expires_at > now:
                return HeldElsewhere(holder, expires_at - now)
            db.execute("REPLACE INTO leases VALUES (?, ?, ?, ?)", (name, epoch + 1, owner, now + ttl_s))
            fields = dict(db.execute("SELECT name, value FROM fields WHERE stream = ?", (name,)).fetchall())
        return Acquired(Lease(stream, owner, epoch + 1), fields)

    def renew(self, lease: Lease, ttl_s: float) -> None:
        """Keep the lease for ``ttl_s`` more seconds."""
        with self._fenced(lease, f"renew the lease of {lease.stream}") as (db, name):
            db.execute("UPDATE leases SET expires_at = ? WHERE stream = ?", (time.time() + ttl_s, name))

    def release(self, lease: Lease) -> None:
        """Give the lease back; nothing happens when it is no longer ours."""
        with self._transaction(f"release the lease of {lease.stream}") as db:
            db.execute(
                "UPDATE leases SET owner = '', expires_at = 0 WHERE stream = ? AND epoch = ? AND owner = ?",
                (self._prefix + lease.stream, lease.epoch, lease.owner),
            )

    def write(self, lease: Lease, put: Mapping[str, str], remove: Sequence[str] = ()) -> None:
        """Set and remove fields in one atomic, durable step."""
        with self._fenced(lease, f"write the record of {lease.stream}") as (db, name):
            db.executemany("REPLACE INTO fields VALUES (?, ?, ?)", [(name, *item) for item in put.items()])
            db.executemany("DELETE FROM fields WHERE stream = ? AND name = ?", [(name, field) for field in remove])

    def read_all(self) -> dict[str, tuple[dict[str, str], str]]:
        """Every stream's fields and the present holder of its lease."""
        with self._transaction("read the state") as db:
            leases = db.execute("SELECT stream, owner, expires_at FROM leases ORDER BY stream").fetchall()
            rows = db.execute("SELECT stream, name, value FROM fields").fetchall()
        now = time.time()
        known: dict[str, dict[str, str]] = {}
        for stream, name, value in rows:
            known.setdefault(stream, {})[name] = value
        found: dict[str, tuple[dict[str, str], str]] = {}
        for stream, owner, expires_at in leases:
            if stream.startswith(self._prefix):
                fields = known.get(stream, {})
                found[stream.removeprefix(self._prefix)] = (fields, owner if expires_at > now else "")
        return found

    def forget(self, streams: Collection[str]) -> None:
        """Remove the records and leases of these streams, where there are any."""
        with self._transaction(f"forget {len(streams)} streams") as db:
            for table in ("leases", "fields"):
                names = ((self._prefix + stream,) for stream in streams)
                db.executemany(f"DELETE FROM {table} WHERE stream = ?", names)

    def read_shared(self, name: str) -> tuple[int, str]:
        """A shared document's version and text."""
        with self._transaction(f"read {name}") as db:
            key = self._prefix + name
            row = db.execute("SELECT version, value FROM shared WHERE name = ?", (key,)).fetchone()
        return row or (0, "")

    def write_shared(self, name: str, version: int, text: str) -> bool:
        """Store ``text`` as ``version``, if the present version is the one before."""
        with self._transaction(f"write {name}") as db:
            key = self._prefix + name
            row = db.execute("SELECT version FROM shared WHERE name = ?", (key,)).fetchone()
            if (row[0] if row else 0) != version - 1:
                return False
            db.execute("REPLACE INTO shared VALUES (?, ?, ?)", (key, version, text))
        return True

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _fenced(self, lease: Lease, operation: str) -> Iterator[tuple[sqlite3.Connection, str]]:
        name = self._prefix + lease.stream
        with self._transaction(operation) as db:
            row = db.execute("SELECT epoch, owner FROM leases WHERE stream = ?", (name,)).fetchone()
            if row != (lease.epoch, lease.owner):
                raise LeaseLostError(operation, f"the lease is at {row}, ours was epoch {lease.epoch}")
            yield db, name

    @contextmanager
    def _transaction(self, operation: str) -> Iterator[sqlite3.Connection]:
        """An immediate transaction; the library's errors leave it as ours."""
        try:
            db = self._connect()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise TransientError(operation, f"{self._path}: {error}") from error
            remedy = "state.url must name a file that this user can create and write."
            raise ConfigError(operation, f"{self._path}: {error}", remedy) from error
        except sqlite3.DatabaseError as error:
            raise ConfigError(operation, f"{self._path}: {error}", "Is it a SQLite file?") from error

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(
                self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.executescript(_TABLES)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection
