"""Whether the owner of a lease is dead."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from engine import owner


def test_an_owner_is_dead_only_if_its_process_is_known_to_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "from engine.owner import this_owner; print(this_owner(), flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        other = process.stdout.readline().strip()
        assert not owner.is_certainly_dead(other)
        here = owner._where()  # was still available a moment ago
        monkeypatch.setattr(owner, "_where", lambda: here)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            assert not owner.is_certainly_dead(other), "no file can be opened"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        process.kill()
        process.wait()
        assert owner.is_certainly_dead(other)
