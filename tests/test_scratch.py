"""Directories of processes that were killed are removed by the next one, and those of others stay."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from engine.scratch import scratch

LEAVE = """
import os, pathlib, sys
from engine.scratch import scratch

made = scratch("fold", pathlib.Path(sys.argv[1]))
"""


def test_what_another_machine_leaves(tmp_path: Path) -> None:
    """Its processes cannot be checked; what has been touched within a day may be in use."""
    long_ago = time.time() - 25 * 3600
    for name in ("headrace-fold~elsewhere~1~2~x", "headrace-fold~elsewhere~3~4~y", "headrace-a~b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows").write_bytes(b"x")
        os.utime(tmp_path / name, (long_ago, long_ago))
    os.utime(tmp_path / "headrace-fold~elsewhere~1~2~x" / "rows", (long_ago, long_ago))
    os.utime(tmp_path / "headrace-a~b" / "rows", (long_ago, long_ago))
    ours = scratch("fold", tmp_path)
    assert set(tmp_path.iterdir()) == {tmp_path / "headrace-fold~elsewhere~3~4~y", tmp_path / "headrace-a~b", ours}


def test_what_a_killed_process_leaves(tmp_path: Path) -> None:
    kill = f"{LEAVE}(made / 'rows').write_bytes(b'x'); os.kill(os.getpid(), 9)"
    wait = f"{LEAVE}print(made, flush=True); sys.stdin.read()"
    (tmp_path / "headrace-other").mkdir()
    (tmp_path / "headrace-a~b").mkdir()
    assert subprocess.run([sys.executable, "-c", kill, tmp_path], check=False).returncode == -9
    (left,) = tmp_path.glob("headrace-fold~*")
    with subprocess.Popen(
        [sys.executable, "-c", wait, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as living:
        assert living.stdout is not None
        theirs = Path(living.stdout.readline().strip())
        assert not left.exists()
        ours = scratch("mirror", tmp_path)
        kept = {theirs, ours, tmp_path / "headrace-other", tmp_path / "headrace-a~b"}
        assert set(tmp_path.iterdir()) == kept
        living.communicate("")
    assert ours.stat().st_mode & 0o077 == 0
