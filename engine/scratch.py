"""Directories on disk for what does not fit into memory.

A process that is killed leaves its own behind, and what is in it may be large and must not be read by others. So
whoever makes one first removes those of processes that are gone.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from engine.owner import has_left, this_owner

_PREFIX = "headrace-"


def scratch(purpose: str, directory: Path | None = None) -> Path:
    """A new directory, which only this user can read; the caller removes it.

    Args:
        purpose: a word that is part of its name.
        directory: where; by default in the system's temporary directory (``TMPDIR``).

    Raises:
        OSError: there is no room, or no such place.
    """
    _, *ours = this_owner().split("/")
    place = directory or Path(tempfile.gettempdir())
    for left in place.glob(f"{_PREFIX}*~*"):
        _, *owner, _ = left.name.split("~")
        if len(owner) == len(ours) and has_left("/".join(["", *owner]), left):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix="~".join([f"{_PREFIX}{purpose}", *ours, ""]), dir=place))
