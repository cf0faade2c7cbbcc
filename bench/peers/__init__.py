"""Other tools on the engine's workload. One module each, and what they share.

A peer is a program that reads a change stream, or a whole collection, and writes it. ``bench.peer`` measures and
kills each of them in the same way; its module knows how to get the program, how to call it and how to read back
what it wrote. The workload must consist of inserts: an event is identified by the ``_id`` of its document.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import duckdb
from msgspec import Struct

from bench.local import LocalStack
from bench.measure import PEERS

Kind = Literal["stream", "load"]
Tell = Callable[[str], None]
_ANCHOR_S = 60


class Task(Struct):
    """One run of a peer.

    Attributes:
        kind: the events of a collection from before its first document on, or the documents of that collection.
        start: the cluster time before the first document, as ``seconds,increment``.
        tokens: the same as resume tokens in BSON, of a stream of the collection and of one of its database.
        events: the program may end after so many; 0 if it must not: it is going to be killed, or was.
        directory: for the program's state and its local output; it exists.
        prefix: for its objects in the bucket.
        last: the ``_id`` of the last document, in hexadecimal.
    """

    stack: LocalStack
    kind: Kind
    database: str
    collection: str
    start: str
    tokens: Mapping[str, bytes]
    directory: Path
    prefix: str
    events: int = 0
    last: str = ""

    @property
    def uri(self) -> str:
        """That of the server."""
        assert self.stack.mongo is not None
        return self.stack.mongo.uri

    def clear(self) -> None:
        """Remove what another run has left in the directory and under the prefix."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        filesystem = self.stack.s3.filesystem()
        if filesystem.exists(f"{self.stack.bucket}/{self.prefix}"):
            filesystem.rm(f"{self.stack.bucket}/{self.prefix}", recursive=True)


class Landed(Struct):
    """What was written, read back by DuckDB.

    Attributes:
        distinct: different events or documents.
        objects: or files.
    """

    rows: int = 0
    distinct: int = 0
    objects: int = 0
    bytes: int = 0


class Peer(ABC):
    """A program to measure.

    Attributes:
        name: as printed, with its version.
        kinds: what it can read.
        settings: those by which variants of it differ; printed with the effect of a SIGKILL.
        keeps: False if it writes nothing, so that nothing can be read back.
    """

    name: str
    kinds: tuple[Kind, ...] = ("stream", "load")
    settings: str = ""
    keeps: bool = True

    @abstractmethod
    def built(self) -> bool:
        """Whether the program is there, of the version that is wanted."""

    @abstractmethod
    def build(self, tell: Tell) -> bool:
        """Get the program; False, after a word why, if that is impossible here."""

    def anchor(self, task: Task) -> None:  # noqa: B027 - most need nothing
        """Called once before the first document, for programs that can only start where they are."""

    def prepare(self, task: Task) -> None:  # noqa: B027
        """Put the program's state before the first event; the directory and the prefix are empty."""

    @abstractmethod
    def command(self, task: Task) -> list[str]:
        """How to start it."""

    def environment(self, task: Task) -> dict[str, str]:
        """Variables that it needs."""
        return {}

    @abstractmethod
    def written(self, task: Task, log: Path) -> int:
        """How many events it has written so far, while it runs: by its own count, or what has landed."""

    @abstractmethod
    def landed(self, task: Task) -> Landed:
        """What it has written."""


def landed_in_bucket(task: Task, key: str, pattern: str = "**/*.parquet") -> Landed:
    """What is in the bucket under the prefix of the task; ``key`` is an expression on a row."""
    filesystem = task.stack.s3.filesystem()
    directory = f"{task.stack.bucket}/{task.prefix}"
    filesystem.invalidate_cache()
    if not filesystem.glob(f"{directory}/{pattern}"):
        return Landed()
    with duckdb.connect() as database:
        database.register_filesystem(filesystem)
        files = f"'s3://{directory}/{pattern}', filename = true, hive_partitioning = false, union_by_name = true"
        found = _count(database, f"read_parquet({files})", key)
    found.bytes = int(filesystem.du(directory))
    return found


def objects_in_bucket(task: Task) -> int:
    """The number of Parquet files in the bucket under the prefix of the task."""
    filesystem = task.stack.s3.filesystem()
    filesystem.invalidate_cache()
    return len(filesystem.glob(f"{task.stack.bucket}/{task.prefix}/**/*.parquet"))


def landed_in_files(task: Task, key: str, columns: Mapping[str, str], suffix: str = "jsonl.zst") -> Landed:
    """What is in files of JSON lines in the directory of the task."""
    files = [*task.directory.glob(f"*.{suffix}")]
    if not files:
        return Landed()
    with duckdb.connect() as database:
        pattern = f"'{task.directory}/*.{suffix}'"
        listed = ", ".join(f"'{name}': '{kind}'" for name, kind in columns.items())
        options = f"columns = {{{listed}}}, compression = 'zstd', filename = true"
        found = _count(database, f"read_ndjson({pattern}, {options})", key)
    found.bytes = sum(file.stat().st_size for file in files)
    return found


def _count(database: duckdb.DuckDBPyConnection, source: str, key: str) -> Landed:
    row = database.execute(
        f"select count(*), count(distinct {key}), count(distinct filename) from {source}"
    ).fetchone()
    assert row is not None
    return Landed(*map(int, row))


def last_written(log: Path) -> int:
    """The last count in a log with lines ``written EVENTS SECONDS``."""
    lines = log.read_text(errors="replace").splitlines(keepends=True) if log.exists() else []
    counts = [line.split()[1] for line in lines if line.startswith("written ") and line.endswith("\n")]
    return int(counts[-1]) if counts else 0


class FromPyPI(Peer):
    """A program in a virtual environment of its own, which is installed the first time.

    By itself it starts at the present time, and goes on from a file with a checkpoint: a run before the first
    document leaves one.

    Attributes:
        package: pinned.
        companions: what else it needs in its environment, pinned too.
        checkpoint: the name of that file.
    """

    package: str
    companions: tuple[str, ...] = ()
    checkpoint = "checkpoint"

    def built(self) -> bool:
        """Whether this package is installed."""
        return self._stamp.exists() and self._stamp.read_text() == self._wanted

    def build(self, tell: Tell) -> bool:
        """From PyPI."""
        if self.built():
            return True
        commands = [
            [sys.executable, "-m", "venv", "--clear", str(self._environment)],
            [self.program("python"), "-m", "pip", "install", "-q", self.package, *self.companions],
        ]
        if not succeed(commands, f"{self.name} cannot be installed; left out", tell):
            return False
        self._stamp.write_text(self._wanted)
        return True

    def anchor(self, task: Task) -> None:
        """Let it leave a checkpoint at the present time."""
        if task.kind == "stream":
            task.directory.mkdir(parents=True, exist_ok=True)
            first, environment = self.first_command(task), self.environment(task)
            subprocess.run(first, env=environment, check=True, capture_output=True, timeout=_ANCHOR_S)
            shutil.copy(task.directory / self.checkpoint, self._anchor(task))

    def prepare(self, task: Task) -> None:
        """Put that checkpoint in place."""
        if task.kind == "stream":
            shutil.copy(self._anchor(task), task.directory / self.checkpoint)

    def first_command(self, task: Task) -> list[str]:
        """How to start it so that it leaves a checkpoint and ends."""
        return self.command(task)

    def program(self, name: str) -> str:
        """A program of the environment."""
        return str(self._environment / "bin" / name)

    @property
    def _environment(self) -> Path:
        return PEERS / self.package.partition("==")[0].partition("[")[0]

    @property
    def _wanted(self) -> str:
        return " ".join([self.package, *self.companions])

    @property
    def _stamp(self) -> Path:
        return self._environment / "stamp"

    def _anchor(self, task: Task) -> Path:
        return task.directory.parent / f"{self._environment.name}-{self.checkpoint}"


def succeed(commands: Sequence[Sequence[str]], otherwise: str, tell: Tell, cwd: Path | None = None) -> bool:
    """Run commands until one fails; False then, after a word and its last line."""
    for command in commands:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode:
            tell(f"{otherwise}: {((done.stderr or done.stdout).strip().splitlines() or ['?'])[-1]}")
            return False
    return True
