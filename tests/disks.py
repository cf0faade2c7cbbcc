"""Disks of a size that a test chooses: tmpfs, mounted for as long as the test takes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(directory: Path, size: str) -> Iterator[Path]:
    """A disk of so many bytes, as ``mount`` writes them; skips where nothing may be mounted."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def resize(directory: Path, size: str) -> None:
    """More room, or less."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(directory)], check=True)
