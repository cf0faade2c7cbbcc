"""Small disks: tmpfs of a chosen size, mounted while a test runs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(directory: Path, size: str) -> Iterator[Path]:
    """A disk of this size, in the notation of ``mount``; skips if mounting is not permitted."""
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
    """Change the size of a disk."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(directory)], check=True)
