"""The progress of a command that works in steps: bars on a terminal, otherwise a log line every few seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.commands.progress import LOG_EVERY_S
from engine.config import Config

# Told what is being done, how much of it is done, and of how much (0 if that is not known).
Watch = Callable[[str, int, int], None]
_BAR_EVERY_S = 0.2

log = logging.getLogger("headrace")


@contextmanager
def steps(config: Config, name: str) -> Iterator[Watch]:
    """Show the steps of the command ``name``."""
    if not sys.stderr.isatty() or config.telemetry.log_format == "json":
        yield _every(LOG_EVERY_S, lambda what, done, total: _log(name, what, done, total))
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, int] = {}

        def show(what: str, done: int, total: int) -> None:
            task = tasks.setdefault(what, -1)
            if task < 0:
                task = tasks[what] = bars.add_task(what)
            bars.update(task, completed=done, total=total or None)  # type: ignore[arg-type]

        yield _every(_BAR_EVERY_S, show)


def _every(seconds: float, show: Watch) -> Watch:
    next_at = time.monotonic() + seconds

    def watch(what: str, done: int, total: int) -> None:
        nonlocal next_at
        if time.monotonic() >= next_at:
            next_at = time.monotonic() + seconds
            show(what, done, total)

    return watch


def _log(name: str, what: str, done: int, total: int) -> None:
    log.info(name, extra={"fields": {"step": what, "done": done} | ({"of": total} if total else {})})
