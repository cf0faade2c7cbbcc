"""Collections that were replaced: another one was renamed to their name, and its documents are in no event.

That is so of ``$out``, which fills a temporary collection and renames it, and of every rename to the name of a
captured collection. What must be loaded is a function of what is committed: the record of a stream tells which
collections were replaced, and when, from the commit of that event on; and it is done when a plan that was made
later has been carried out, whoever made it. So nothing is forgotten, wherever a process dies in between, and the
command ``backfill --restart`` does as well.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from engine.backfill.planner import Planner
from engine.backfill.plans import Plans, plans_of
from engine.backfill.work import Work, work_of
from engine.cgroup import divide_within
from engine.config import Config
from engine.core.backfill import Plan, Selection, left_to_read
from engine.core.records import StreamRecord
from engine.core.specs import StreamSpec
from engine.errors import ConfigError

log = logging.getLogger("headrace")


def with_reloads(config: Config, planner: Planner, specs: Sequence[StreamSpec], work: Work) -> Work:
    """The work, and what is left to load of collections that were replaced; plans are made where needed."""
    with plans_of(config) as plans:
        found = {plan.namespace: plan for plan in work.plans}
        records = plans.records()
        times = replaced(records, specs)
        loaded: dict[str, int] = {}
        due: dict[str, Plan | None] = {}
        put_off = False
        reloads = config.source.on_replaced == "reload"
        for namespace, time in times.items():
            plan = plans.read(namespace)
            if plan is None or not plan.has_all_since(time):
                due[namespace] = plan
                continue
            if reloads and not plan.finished:
                found[namespace] = plan
            if plan.finished or not left_to_read(plan, records):
                loaded[namespace] = time
        for namespace, plan in due.items() if reloads else ():
            try:
                made = _planned(config, planner, specs, plans, namespace, plan)
            except ConfigError as error:  # it goes on being shown as not loaded
                fields = {"collection": namespace, "error": str(error)}
                log.error("a replaced collection cannot be loaded now", extra={"fields": fields})
                put_off = True
                continue
            if made is None:
                loaded[namespace] = times[namespace]
            else:
                found[namespace] = made
        left = work_of(plans, list(found.values()))
        return replace(left, start_at=work.start_at, loaded=loaded, put_off=put_off)


def replaced(records: Mapping[str, StreamRecord], specs: Sequence[StreamSpec]) -> dict[str, int]:
    """The collections of these streams that were replaced, and when last, by namespace."""
    found: dict[str, int] = {}
    for record in records.values():
        for namespace, time in record.replaced.items():
            database, _, collection = namespace.partition(".")
            if any(spec.covers(database, collection) for spec in specs):
                found[namespace] = max(time, found.get(namespace, 0))
    return found


def pool_beside(config: Config, streams: int, splits: int) -> int:
    """Readers for so many splits: as many as configured, or as ``memory.limit`` has room for."""
    for readers in range(min(config.backfill.readers, splits), 1, -1):
        try:
            divide_within(config, streams + readers)
        except ConfigError:
            continue
        return readers
    return min(1, splits)


def _planned(
    config: Config,
    planner: Planner,
    specs: Sequence[StreamSpec],
    plans: Plans,
    namespace: str,
    former: Plan | None,
) -> Plan | None:
    """A new plan of the collection; None when it is not there any more: nothing is left to load then.

    Raises:
        ConfigError: it cannot be planned now.
    """
    from engine.backfill.planning import make_plans

    divide_within(config, len(specs) + 1)
    if former is not None:
        plans.refuse_if_held(former)
        if not former.finished and former.selection != Selection():
            cause = f"a backfill of it is unfinished, of {former.selection}"
            raise ConfigError(f"load {namespace} again", cause, "Finish that, or give it up with --restart.")
    database, _, collection = namespace.partition(".")
    made = planner.call(make_plans, config, [(database, collection)], Selection(), True)
    if not made:
        return None
    kept = plans.save(made[0], former)  # another engine's, if that was faster
    if former is not None and kept == made[0]:
        plans.forget(former)
    return kept
