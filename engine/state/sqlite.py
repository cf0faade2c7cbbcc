"""The embedded state store: one SQLite file, for engines on one machine.

Leases expire by the machine's wall clock. Writes are fenced inside their own transaction. When they return, they
are on disk (WAL with ``synchronous=FULL``), in the file that the path leads to at that moment.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from engine.config.tree import StateConfig
from engine.errors import (
    ConfigError,
    HeadraceError,
    LeaseLostError,
    NoStateError,
    StateLostError,
    TransientError,
)
from engine.state.known import REVISION, Known, log_restored, lost_record, own_fields
from engine.state.seam import Acquired, HeldElsewhere, Lease

BUSY_TIMEOUT_S = 5.0
_HELD = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")
_DISK = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_NOMEM")
_REFUSED = ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_SCHEMA")
_WRITABLE = "Free space on its disk, and make sure that this user can write the file and its directory."
_RESTORE = (
    "Stop every engine, then restore the file, or its newest copy made by SQLite's own backup, or make the state "
    "again from the lake (headrace state rebuild). Nothing else may touch the file."
)

# How the names of documents start that have a colon.
_KINDS = ("schema", "backfill")

_TABLES = """
CREATE TABLE IF NOT EXISTS leases (
    stream TEXT PRIMARY KEY, epoch INTEGER NOT NULL, owner TEXT NOT NULL, expires_at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS fields (
    stream TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (stream, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS engines (
    owner TEXT PRIMARY KEY, text TEXT NOT NULL, expires_at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS shared (
    name TEXT PRIMARY KEY, version INTEGER NOT NULL, value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
"""


class SqliteStore:
    """See ``engine.state.seam.StateStore``. Streams are prefixed, so that several engines can share a file.

    Args:
        read_only: the file is only looked at, and neither created nor changed.
        makes_directory: create the file's directory if it is missing.
    """

    def __init__(self, config: StateConfig, *, read_only: bool = False, makes_directory: bool = False) -> None:
        self._read_only = read_only
        self._makes_directory = makes_directory
        parts = urlsplit(config.url)
        # sqlite:///relative.db and sqlite:////absolute.db, as in SQLAlchemy
        self._path = Path(unquote(parts.netloc + parts.path.removeprefix("/")))
        self._prefix = f"{config.prefix}:"
        self._wal_path = self._path.with_name(f"{self._path.name}-wal")
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._wal: tuple[int, int] | None = None
        self._known = Known()

    def acquire(
        self, stream: str, owner: str, ttl_s: float, *, replacing: str = "", at_least: int = 0
    ) -> Acquired | HeldElsewhere:
        """Take the lease if it is free, expired, already ours, or held by ``replacing``."""
        operation, known = f"acquire the lease of {stream}", max(at_least, self._known.epoch(stream))
        name, now = self._prefix + stream, time.time()
        with self._transaction(operation) as db:
            row = db.execute("SELECT epoch, owner, expires_at FROM leases WHERE stream = ?", (name,)).fetchone()
            epoch, holder, expires_at = row or (0, "", 0.0)
            if epoch < known:
                raise lost_record(operation, stream, known, epoch)
            self._known.saw(stream, epoch)
            if holder not in ("", owner, replacing) and expires_at > now:
                return HeldElsewhere(holder, expires_at - now)
            db.execute("REPLACE INTO leases VALUES (?, ?, ?, ?)", (name, epoch + 1, owner, now + ttl_s))
            fields = dict(db.execute("SELECT name, value FROM fields WHERE stream = ?", (name,)).fetchall())
        lease = Lease(stream, owner, epoch + 1)
        return Acquired(lease, self._known.acquired(lease, fields))

    def renew(self, lease: Lease, ttl_s: float) -> None:
        """Keep the lease for ``ttl_s`` more seconds."""
        expires_at = time.time() + ttl_s
        with self._fenced(lease, f"renew the lease of {lease.stream}") as (db, name, revision):
            db.execute("UPDATE leases SET expires_at = ? WHERE stream = ?", (expires_at, name))
        if revision < (self._known.revision(lease) or 0):
            self.write(lease, {})

    def release(self, lease: Lease) -> None:
        """Give the lease back; does nothing if it is no longer ours."""
        with (
            suppress(LeaseLostError),
            self._fenced(lease, f"release the lease of {lease.stream}") as (db, name, _),
        ):
            db.execute("UPDATE leases SET expires_at = 0 WHERE stream = ?", (name,))
        self._known.dropped(lease)

    def write(self, lease: Lease, put: Mapping[str, str], remove: Sequence[str] = ()) -> None:
        """Set and remove fields in one atomic, durable step."""
        known = self._known.revision(lease)
        with self._fenced(lease, f"write the record of {lease.stream}") as (db, name, revision):
            items = put
            if known is not None and revision < known:
                log_restored(lease.stream)  # no other owner has written it since
                items = self._known.fields_with(lease, put, remove)
                db.execute("DELETE FROM fields WHERE stream = ?", (name,))
            own = {REVISION: str((revision if known is None else known) + 1)}
            rows = [(name, *item) for item in {**items, **own}.items()]
            db.executemany("REPLACE INTO fields VALUES (?, ?, ?)", rows)
            db.executemany("DELETE FROM fields WHERE stream = ? AND name = ?", [(name, field) for field in remove])
        self._known.wrote(lease, put, remove)

    def read_all(self) -> dict[str, tuple[dict[str, str], str]]:
        """Every stream's fields and the current holder of its lease."""
        with self._transaction("read the state") as db:
            leases = db.execute("SELECT stream, owner, expires_at FROM leases ORDER BY stream").fetchall()
            rows = db.execute("SELECT stream, name, value FROM fields").fetchall()
        now = time.time()
        known: dict[str, dict[str, str]] = {}
        for stream, name, value in rows:
            known.setdefault(stream, {})[name] = value
        found: dict[str, tuple[dict[str, str], str]] = {}
        for stream, owner, expires_at in leases:
            if (name := self._own_name(stream)) is not None:
                found[name] = (own_fields(known.get(stream, {})), owner if expires_at > now else "")
        return found

    def forget(self, streams: Collection[str]) -> None:
        """Remove the records and leases of these streams, if any."""
        with self._transaction(f"forget {len(streams)} streams") as db:
            for table in ("leases", "fields"):
                names = ((self._prefix + stream,) for stream in streams)
                db.executemany(f"DELETE FROM {table} WHERE stream = ?", names)
        self._known.forgot(streams)

    def announce(self, owner: str, text: str, ttl_s: float) -> None:
        """Let other engines see ``text`` as what this one says of itself; "" takes it back."""
        now = time.time()
        with self._transaction("announce this engine") as db:
            db.execute("DELETE FROM engines WHERE expires_at < ? OR owner = ?", (now, self._prefix + owner))
            if text:
                db.execute("REPLACE INTO engines VALUES (?, ?, ?)", (self._prefix + owner, text, now + ttl_s))

    def announced(self) -> dict[str, str]:
        """What each living engine says of itself, by owner."""
        with self._transaction("see the other engines") as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'engines'").fetchone():
                return {}  # a file of an earlier version, opened to be looked at
            rows = db.execute("SELECT owner, text FROM engines WHERE expires_at > ?", (time.time(),)).fetchall()
        return {owner.removeprefix(self._prefix): text for owner, text in rows if owner.startswith(self._prefix)}

    def read_shared(self, name: str) -> tuple[int, str]:
        """A shared document's version and text."""
        with self._transaction(f"read {name}") as db:
            key = self._prefix + name
            row = db.execute("SELECT version, value FROM shared WHERE name = ?", (key,)).fetchone()
        return row or (0, "")

    def write_shared(self, name: str, version: int, text: str) -> bool:
        """Store ``text`` as ``version`` if the current version is the one before; whether it is stored now."""
        with self._transaction(f"write {name}") as db:
            key = self._prefix + name
            row = db.execute("SELECT version, value FROM shared WHERE name = ?", (key,)).fetchone() or (0, "")
            if row[0] != version - 1:
                return bool(row == (version, text))  # by an attempt whose outcome was unknown
            db.execute("REPLACE INTO shared VALUES (?, ?, ?)", (key, version, text))
        return True

    def read_all_shared(self) -> dict[str, tuple[int, str]]:
        """Every shared document's version and text, by name."""
        with self._transaction("read the shared documents") as db:
            rows = db.execute("SELECT name, version, value FROM shared ORDER BY name").fetchall()
        return {own: (version, text) for name, version, text in rows if (own := self._own_name(name)) is not None}

    def _own_name(self, key: str) -> str | None:
        """The name of a stream or document under our prefix; None if it has another prefix.

        Streams have no colon in their names; documents have one only behind their kind.
        """
        if not key.startswith(self._prefix):
            return None
        name = key.removeprefix(self._prefix)
        kind, colon, _ = name.partition(":")
        return name if not colon or kind in _KINDS else None

    def put_shared(self, name: str, version: int, text: str) -> None:
        """Store a shared document as this version, whatever was there; version 0 removes it."""
        key = self._prefix + name
        with self._transaction(f"write {name}") as db:
            if version:
                db.execute("REPLACE INTO shared VALUES (?, ?, ?)", (key, version, text))
            else:
                db.execute("DELETE FROM shared WHERE name = ?", (key,))

    def check(self) -> list[str]:
        """Check that the file can be written, or created; nothing is changed, and there are no warnings."""
        operation = "write the state"
        if not self._path.exists():
            if not self._makes_directory:
                self._refuse_directory(operation)
            return []
        try:
            with closing(sqlite3.connect(self._uri("rw"), BUSY_TIMEOUT_S, isolation_level=None, uri=True)) as db:
                (version,) = db.execute("PRAGMA user_version").fetchone()
                db.execute("BEGIN IMMEDIATE")
                db.execute(f"PRAGMA user_version = {version}")
                db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise self._translated(operation, error) from error
        return []

    def _refuse_directory(self, operation: str) -> None:
        """Raise ``ConfigError`` if the file cannot be created in its directory."""
        directory = self._path.absolute().parent
        if not directory.is_dir():
            raise ConfigError(operation, f"there is no directory {directory}", "Create it, or correct state.url.")
        if not os.access(directory, os.W_OK | os.X_OK):
            remedy = "Let the engine's user write there, or correct state.url."
            raise ConfigError(operation, f"{directory} cannot be written", remedy)

    def _make_directory(self, operation: str) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(operation, f"{self._path.parent}: {error.strerror}", _WRITABLE) from error

    def _uri(self, mode: str) -> str:
        return f"{self._path.absolute().as_uri()}?mode={mode}"

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _fenced(self, lease: Lease, operation: str) -> Iterator[tuple[sqlite3.Connection, str, int]]:
        """A transaction under the lease: the connection, the stream's name there, the record's revision.

        Raises:
            LeaseLostError, StateLostError: the record is no longer ours.
        """
        name = self._prefix + lease.stream
        with self._transaction(operation) as db:
            row = db.execute("SELECT epoch, owner FROM leases WHERE stream = ?", (name,)).fetchone()
            if row != (lease.epoch, lease.owner):
                self._known.dropped(lease)
                raise self._known.refusal(operation, lease, *(row or (0, "")))
            found = db.execute(
                "SELECT value FROM fields WHERE stream = ? AND name = ?", (name, REVISION)
            ).fetchone()
            yield db, name, int(found[0]) if found else 0

    @contextmanager
    def _transaction(self, operation: str) -> Iterator[sqlite3.Connection]:
        """A transaction, immediate unless the store is read-only; the library's errors are raised as ours."""
        try:
            db = self._connect(operation)
            db.execute("BEGIN" if self._read_only else "BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # some errors have already ended it
                    db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            if self._connection is not None and self._connection.in_transaction:
                self.close()
            raise self._translated(operation, error) from error
        # A commit counts only if it is in the file that others would open.
        self._refuse_other_file(operation)

    def _connect(self, operation: str) -> sqlite3.Connection:
        if self._connection is None and self._read_only:
            self._connection = self._look(operation)
            self._file, self._wal = _identity(self._path), _identity(self._wal_path)
        if self._connection is None:
            if self._file:
                self._refuse_other_file(operation)
            if self._makes_directory:
                self._make_directory(operation)
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
            self._file, self._wal = _identity(self._path), _identity(self._wal_path)
        return self._connection

    def _look(self, operation: str) -> sqlite3.Connection:
        """Open an existing file, which must hold a state; nothing is created, not even beside it.

        Without a write-ahead log there is no writer, and the file is complete. SQLite would create an empty log
        beside it unless told that the file does not change (``immutable``).
        """
        where = self._path.absolute()
        remedy = "The first run creates it. A relative path in state.url starts at the working directory."
        if not self._path.exists():
            raise NoStateError(operation, f"there is no state yet at {where}", remedy)
        mode = "ro" if self._wal_path.exists() else "ro&immutable=1"
        connection = sqlite3.connect(
            self._uri(mode), BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, uri=True
        )
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        except BaseException:
            connection.close()
            raise
        if "leases" not in tables:
            connection.close()
            raise NoStateError(operation, f"there is no state in {where} yet", remedy)
        return connection

    def _refuse_other_file(self, operation: str) -> None:
        """Raise ``StateLostError`` if the file or its write-ahead log is no longer the one that was opened."""
        opened = self._connection is not None
        for path, known in ((self._path, self._file), (self._wal_path, self._wal if opened else None)):
            try:
                found = _identity(path)
            except OSError as error:
                raise TransientError(operation, str(error), _WRITABLE) from error
            if known is not None and found != known:
                what = "replaced by another file" if found else "removed"
                raise StateLostError(operation, f"{path} has been {what} while it was in use", _RESTORE)
        if opened and not self._path.stat().st_size:
            raise StateLostError(operation, f"{self._path} has been emptied while it was in use", _RESTORE)

    def _translated(self, operation: str, error: sqlite3.Error) -> HeadraceError:
        cause, name = f"{self._path}: {error}", getattr(error, "sqlite_errorname", "")
        worked = self._file is not None
        if worked:
            try:
                self._refuse_other_file(operation)
            except HeadraceError as found:
                return found
        if name.startswith("SQLITE_CANTOPEN") and _has_no_descriptors():  # it does not say why
            return TransientError(operation, cause, "Raise this machine's limit of open files (ulimit -n).")
        if name.startswith(_HELD):
            return TransientError(operation, cause, "Another process is using the file and has it locked.")
        if name.startswith(_DISK) or (worked and name.startswith(_REFUSED)):
            return TransientError(operation, cause, _WRITABLE)
        if worked and (name.startswith(_DAMAGED) or "no such table" in str(error)):
            return StateLostError(operation, f"{cause}; the file was intact before", _RESTORE)
        if isinstance(error, sqlite3.OperationalError):
            remedy = "state.url must name a file that this user can create and write."
            return ConfigError(operation, cause, remedy)
        return ConfigError(
            operation,
            cause,
            "Is it a SQLite file? If it held the state, restore the newest copy, or "
            "move it away and make the state again: headrace state rebuild.",
        )


def _has_no_descriptors() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return False


def _identity(path: Path) -> tuple[int, int] | None:
    """The file's device and inode; None if there is no file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
