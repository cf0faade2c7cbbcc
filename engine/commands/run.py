"""The command ``run``: streams from their start to their end, and around them what must be loaded."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from engine.config import Config
from engine.core.specs import StreamSpec
from engine.errors import EngineEnded, HeadraceError
from engine.processes.forks import template

# A loss of history that comes back at once is no loss that a snapshot heals.
MOST_LOSSES = 3
LOSSES_WITHIN_S = 600.0
# The streams begin again for a load: collections that are replaced all the time are loaded no oftener.
RELOADS_APART_S = 60.0
RELOADS_PUT_OFF_S = 600.0  # when one could not be planned


@template()
def run(config: Config, *, until_caught_up: bool) -> int:
    """Follow the change streams; the exit code."""
    from engine.backfill.work import snapshot_readers
    from engine.cgroup import divide_within
    from engine.config.streams import streams_of

    specs = streams_of(config.source)
    readers = len(specs) + snapshot_readers(config)
    divide_within(config, readers)
    lost: frozenset[str] = frozenset()
    losses: list[float] = []
    reload_from = 0.0
    while True:
        try:
            return _follow(config, specs, lost, reload_from, until_caught_up=until_caught_up)
        except ContentReplaced:
            # What is replaced behind the end that was wanted is for the next run.
            reload_from = math.inf if until_caught_up else time.monotonic() + RELOADS_APART_S
            lost = frozenset()
        except HistoryLost as loss:
            lost = loss.streams
            losses = [at for at in losses if time.monotonic() - at < LOSSES_WITHIN_S] + [time.monotonic()]
            if len(losses) > MOST_LOSSES:
                raise EngineEnded(1, loss.error) from None


class HistoryLost(Exception):
    """What these streams cover must be loaded again, before they begin anew."""

    def __init__(self, streams: frozenset[str], error: HeadraceError) -> None:
        super().__init__(str(error))
        self.streams = streams
        self.error = error


class ContentReplaced(Exception):
    """Collections got other documents, which the streams do not bring: they are to be loaded."""


def _follow(
    config: Config, specs: Sequence[StreamSpec], lost: frozenset[str], reload_from: float, *, until_caught_up: bool
) -> int:
    """Run the streams to their end; the exit code.

    Args:
        reload_from: since when, on the monotonic clock, this may end with ``ContentReplaced``.

    Raises:
        ContentReplaced: it goes on with a load of some collections.
        HistoryLost: some of them must begin anew with a snapshot.
        EngineEnded: it failed.
    """
    from engine.backfill.planner import Planner
    from engine.backfill.reloads import pool_beside, with_reloads
    from engine.backfill.work import finish, snapshot
    from engine.commands.handover import hand_over
    from engine.commands.progress import logged
    from engine.supervisor.supervisor import Supervisor

    with Planner(config.retry, config.supervision.hang_timeout) as planner:
        work = with_reloads(config, planner, specs, snapshot(config, planner, specs, lost))
    watch = logged(work.progress.values())
    if work.put_off:
        reload_from = max(reload_from, time.monotonic() + RELOADS_PUT_OFF_S)

    def launched() -> Supervisor:
        made = Supervisor(
            config,
            specs,
            pool=pool_beside(config, len(specs), len(work.splits)),
            start_at=work.start_at,
            lost=lost,
            until_caught_up=until_caught_up,
            reload_from=reload_from,
            loaded=work.loaded,
        )
        made.load(work.splits, work.progress, watch)
        made.launch()
        return made

    supervisor = launched()

    def run_to_end(former: Sequence[StreamSpec]) -> int | None:
        nonlocal supervisor
        supervisor.abandon()
        ending = Supervisor(config, former, common_end=True)
        if ending.run() or ending.interrupted:
            return None
        supervisor = launched()
        return ending.until

    try:
        code = supervisor.run() if hand_over(config, specs, run_to_end) else 0
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
