"""Calls in the planner's process return a result, whatever happens to the process."""

from __future__ import annotations

import os
import signal
from multiprocessing import forkserver
from pathlib import Path

import pytest

from engine.backfill.planner import Planner
from engine.config import RetryConfig
from engine.errors import TransientError
from engine.processes.forks import template

QUICK = RetryConfig(max_attempts=3, initial_delay=0.01, max_delay=0.05)  # type: ignore[arg-type]


def die_at_first(met: Path) -> int:
    """Dies as if killed by the kernel, but only the first time."""
    if not met.exists():
        met.touch()
        os._exit(9)
    return 7


def die() -> None:
    """Dies as if killed by the kernel, every time."""
    os._exit(9)


def test_a_process_that_dies_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with template(), Planner(QUICK, 60.0) as planner:
        assert planner.call(die_at_first, tmp_path / "met") == 7
        with pytest.raises(TransientError, match="die: the process that does this has died"):
            planner.call(die)
    assert {record.getMessage() for record in caplog.records} == {"the process that plans is away"}


def test_a_template_that_does_not_answer_is_replaced() -> None:
    with template(), Planner(QUICK, 3.0) as planner:
        stopped = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
        os.kill(stopped, signal.SIGSTOP)
        assert planner.call(os.getpid) != os.getpid()
        assert forkserver._forkserver._forkserver_pid != stopped  # type: ignore[attr-defined]
