"""Two-phase publish on a local disk: a hidden file, which is renamed."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

from engine.errors import HeadraceError
from engine.objects.failures import translated
from engine.owner import has_left, this_owner

_HIDDEN = ".headrace_"
_numbers = itertools.count()


class LocalUpload:
    """A hidden file in the same directory, until it is renamed.

    The hidden name identifies the process that created it (``engine.owner``), so that files of dead ones can be
    removed. fsspec's own two-phase file is in the system's temporary directory, from where a rename may not be
    atomic.

    Args:
        once: a file that is there is not replaced.
    """

    def __init__(self, path: Path, *, proved: bool, once: bool = False) -> None:
        self._path = path
        self._once = once
        self._proved = proved
        self._hidden = path.with_name(_hidden_name())
        with translated(f"write {path}", proved=proved):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._hidden.open("wb")

    def write(self, data: bytes) -> int:
        """Add bytes."""
        with translated(f"write {self._path}", proved=self._proved):
            return self._file.write(data)

    @property
    def held(self) -> int:
        """Nothing is held in memory."""
        return 0

    @property
    def spillable(self) -> int:
        """Nothing, then."""
        return 0

    def spill(self) -> None:
        """Nothing to do."""

    def seal(self) -> None:
        """Sync everything to disk."""
        with translated(f"write {self._path}", proved=self._proved):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def publish(self) -> None:
        """Rename, and sync the rename to disk."""
        with translated(f"publish {self._path}", proved=self._proved):
            if self._once:
                with contextlib.suppress(FileExistsError):
                    os.link(self._hidden, self._path)
                self._hidden.unlink()
            else:
                self._hidden.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def discard(self) -> None:
        """Remove the hidden file, ignoring errors, such as a disk too full to flush it."""
        with contextlib.suppress(HeadraceError):
            self.abort()

    def abort(self) -> None:
        """Remove the hidden file.

        Raises:
            HeadraceError: it is still there.
        """
        with contextlib.suppress(OSError):
            self._file.close()
        with translated(f"remove {self._hidden}", proved=self._proved):
            self._hidden.unlink(missing_ok=True)


def _hidden_name() -> str:
    _, where, pid, started = this_owner().split("/")
    return f"{_HIDDEN}{where}_{pid}_{started}_{next(_numbers)}.tmp"


def is_stale(hidden: Path) -> bool:
    """Whether this is a hidden file of an upload, and the process that created it is gone."""
    if not hidden.name.startswith(_HIDDEN):
        return False
    owner = hidden.name.removeprefix(_HIDDEN).rpartition("_")[0].replace("_", "/")
    return has_left(f"/{owner}", hidden)
