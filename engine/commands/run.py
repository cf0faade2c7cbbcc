"""The command ``run``: runs the streams to their end, and loads what has to be loaded beside them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence

from engine.config import Config
from engine.core.generations import Generation
from engine.core.position import Position
from engine.core.specs import StreamSpec
from engine.errors import EngineEnded, HeadraceError
from engine.processes.forks import template

log = logging.getLogger("headrace")
# A loss of history that recurs at once is not one that a snapshot can repair.
MAX_LOSSES = 3
LOSSES_WITHIN_S = 600.0
# The streams restart for a load, so collections that are replaced all the time are not loaded more often than
# this.
RELOADS_APART_S = 60.0
RELOADS_PUT_OFF_S = 600.0  # if one could not be planned


def run(config: Config, *, until_caught_up: bool) -> int:
    """Follow the change streams; returns the exit code."""
    with template(config.sink.library):
        return _run(config, until_caught_up=until_caught_up)


def _run(config: Config, *, until_caught_up: bool) -> int:
    from engine.backfill.work import snapshot_readers
    from engine.cgroup import divide_within
    from engine.commands.fleet import join, leave
    from engine.config.streams import streams_of
    from engine.supervisor.identity import first_line

    log.info("starting", extra={"fields": first_line(config)})
    specs = streams_of(config.source)
    divide_within(config, config.fleet.held(len(specs)) + snapshot_readers(config))
    generation = join(config, specs, stays=not until_caught_up)
    # A run with an end takes whatever it can get: it is over only when every stream has caught up.
    fleet = None if until_caught_up else generation
    lost: Mapping[str, Position | None] = {}
    losses: list[float] = []
    reload_from = 0.0
    follows = False
    try:
        while True:
            try:
                return _follow(config, specs, fleet, lost, reload_from, until_caught_up=until_caught_up)
            except ContentReplaced:
                # What is replaced after the requested end is left to the next run.
                reload_from = math.inf if until_caught_up else time.monotonic() + RELOADS_APART_S
                lost = {}
            except HistoryLost as loss:
                lost = loss.streams
                losses = [at for at in losses if time.monotonic() - at < LOSSES_WITHIN_S] + [time.monotonic()]
                if len(losses) > MAX_LOSSES:
                    raise EngineEnded(1, loss.error) from None
            follows = True
    finally:
        if follows:  # leases were kept for a run that may not have come
            leave(config)


class HistoryLost(Exception):
    """What these streams cover must be loaded again before they start over."""

    def __init__(self, streams: Mapping[str, Position | None], error: HeadraceError) -> None:
        super().__init__(str(error))
        self.streams = streams
        self.error = error


class ContentReplaced(Exception):
    """Collections were replaced, and the streams do not have their new documents: they must be loaded."""


def _follow(
    config: Config,
    specs: Sequence[StreamSpec],
    fleet: Generation | None,
    lost: Mapping[str, Position | None],
    reload_from: float,
    *,
    until_caught_up: bool,
) -> int:
    """Run the streams to their end; returns the exit code.

    Args:
        fleet: see ``Settings``.
        reload_from: from when on, by the monotonic clock, this may end with ``ContentReplaced``.

    Raises:
        ContentReplaced: some collections must be loaded to continue.
        HistoryLost: some of the streams must start over with a snapshot.
        EngineEnded: it failed.
    """
    from engine.backfill.planner import Planner
    from engine.backfill.reloads import pool_beside, with_reloads
    from engine.backfill.work import finish, snapshot
    from engine.commands.handover import abandoned, hand_over
    from engine.commands.progress import logged
    from engine.supervisor.supervisor import Supervisor

    with Planner(config.retry, config.supervision.hang_timeout) as planner:
        work = with_reloads(config, planner, specs, snapshot(config, planner, specs, lost))
    watch = logged(work.progress.values())
    over = abandoned(config, specs)
    if work.put_off:
        reload_from = max(reload_from, time.monotonic() + RELOADS_PUT_OFF_S)

    def launched() -> Supervisor:
        made = Supervisor(
            config,
            specs,
            pool=pool_beside(config, len(specs), len(work.splits)),
            start_at=work.start_at,
            lost=lost,
            abandoned=over,
            until_caught_up=until_caught_up,
            reload_from=reload_from,
            loaded=work.loaded,
            fleet=fleet,
        )
        made.load(work.splits, work.progress, watch)
        made.launch()
        return made

    supervisor = launched()

    def run_to_end(closing: Sequence[StreamSpec]) -> int | None:
        nonlocal supervisor
        supervisor.abandon()
        ending = Supervisor(config, closing, common_end=True, fleet=fleet)
        if ending.run() or ending.interrupted:
            return None
        supervisor = launched()
        return ending.until

    try:
        code = supervisor.run() if hand_over(config, specs, run_to_end, fleet) else 0
        finish(config, work)
        if supervisor.reloads and not supervisor.interrupted:
            raise ContentReplaced
        return code
    except EngineEnded as ended:
        if supervisor.lost and not supervisor.interrupted:
            raise HistoryLost(supervisor.lost, ended.error) from ended
        raise
    finally:
        supervisor.abandon()
