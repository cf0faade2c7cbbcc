"""The command ``backfill``: plans, reads splits here or on Ray, and reports the result."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from engine.config import Config
from engine.core.backfill import Selection
from engine.processes.forks import template

if TYPE_CHECKING:
    from engine.backfill.work import Work
    from engine.supervisor.telemetry import Watch

log = logging.getLogger("headrace")


def backfill(config: Config, collections: Sequence[str], selection: Selection, *, restart: bool) -> int:
    """Load collections; returns the exit code."""
    with template(config.sink.library):
        return _backfill(config, collections, selection, restart=restart)


def _backfill(config: Config, collections: Sequence[str], selection: Selection, *, restart: bool) -> int:
    from engine.backfill.planner import Planner
    from engine.backfill.work import finish, prepare, warn_of_absent
    from engine.commands.progress import report, shown
    from engine.commands.terminal import is_cut_off
    from engine.supervisor.identity import first_line

    log.info("starting", extra={"fields": first_line(config)})
    wanted = [(config.source.database, name) for name in dict.fromkeys(collections)]
    is_first = True
    while True:
        with ExitStack() as stack:
            with Planner(config.retry, config.supervision.hang_timeout) as planner:
                load = stack.enter_context(_loader(config))
                if is_first and not collections:
                    warn_of_absent(config, planner)
                work = prepare(config, planner, wanted, selection, restart=restart)
            watch = stack.enter_context(shown(config, work.progress.values()))
            interrupted = bool(work.splits) and not load(work, watch)
        found = finish(config, work)
        # Splits may be left over if another engine took one over at the last moment.
        if interrupted or all(each.finished for each in found):
            if not (interrupted and is_cut_off(sys.stdout)):  # closing the terminal interrupts, too
                report(found)
            return 0
        restart = is_first = False


@contextmanager
def _loader(config: Config) -> Iterator[Callable[[Work, Watch], bool]]:
    """A function that has splits read and returns whether it finished; its processes start while plans are made.

    Raises:
        EngineEnded: it failed.
    """
    from engine.supervisor.supervisor import Supervisor

    if config.backfill.executor == "ray":
        from engine.backfill.ray import run_on_ray

        yield lambda work, watch: run_on_ray(config, work, watch)
        return
    supervisor = Supervisor(config, (), pool=config.backfill.readers)
    supervisor.launch()

    def load(work: Work, watch: Watch) -> bool:
        supervisor.load(work.splits, work.progress, watch)
        supervisor.run()
        return not supervisor.interrupted

    try:
        yield load
    finally:
        supervisor.abandon()
