"""A restore into a file: BSON documents one after another, compressed with zstd, as ``mongorestore`` reads them.

What is written ends a frame of zstd and is synced to disk before the record beside the file says that it is done.
What a killed restore wrote after that is cut off. Until the end the file has another name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import zstandard

from engine.core.restoring import Job, to_continue
from engine.errors import ConfigError

_LEVEL = 3


class BsonFile:
    """The file. State: what is done (``job``), the open file, the open frame. Owner: the command.

    Raises (by every method):
        OSError: the disk is full, or the like.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._record = path.with_name(f"{path.name}.partial.json")
        self._file: BinaryIO | None = None
        self._frame: zstandard.ZstdCompressionWriter | None = None
        self.where = str(path)

    def begin(self, job: Job, *, given: bool, drop: bool) -> Job:
        """Start a restore, or continue the one that is there.

        Raises:
            ConfigError: there is another one, or the file exists.
        """
        if drop:
            for each in (self._record, self._partial, self._path):
                each.unlink(missing_ok=True)
        if self._record.exists():
            job = to_continue(
                msgspec.json.decode(self._record.read_bytes(), type=Job), job, self.where, given=given
            )
        elif self._path.exists():
            remedy = "Give another name, or replace it with --drop."
            raise ConfigError(f"restore into {self.where}", "the file exists", remedy)
        else:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._save(job)
        self._file = self._partial.open("r+b" if self._partial.exists() else "w+b")
        self._file.truncate(job.size)
        self._file.seek(job.size)
        return job

    def write(self, documents: Sequence[bytes]) -> None:
        """Add documents."""
        assert self._file is not None
        if self._frame is None:
            self._frame = zstandard.ZstdCompressor(_LEVEL).stream_writer(self._file, closefd=False)
        self._frame.write(b"".join(documents))

    def save(self, job: Job) -> None:
        """What was written so far is done; ``job`` says so."""
        job.size = self._synced()
        self._save(job)

    def _synced(self) -> int:
        """End the frame, and sync; returns the size of the file."""
        assert self._file is not None
        if self._frame is not None:
            self._frame.flush(zstandard.FLUSH_FRAME)
            self._frame = None
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def _save(self, job: Job) -> None:
        new = self._record.with_name(f"{self._record.name}.new")
        with new.open("wb") as file:
            file.write(msgspec.json.encode(job))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._record)

    def finish(self) -> None:
        """Everything is written."""
        self._synced()
        self.close()
        self._partial.replace(self._path)
        self._record.unlink()

    def close(self) -> None:
        """Let go of the file, finished or not."""
        if self._file is not None:
            self._file.close()
            self._file = None
