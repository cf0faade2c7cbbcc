"""Collections that were replaced: another one was renamed to their name, without events for its documents.

``$out`` does this (it fills a temporary collection and renames it), as does every rename to the name of a captured
collection. What must be loaded follows from what is committed: from the commit of such an event on, the stream's
record says which collections were replaced, and when; and a load is done when any later plan, whoever made it, has
been carried out. So nothing is forgotten wherever a process dies, and the command ``backfill --restart`` works
too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from engine.backfill.planner import Planner
from engine.backfill.plans import Plans, plans_of
from engine.backfill.questions import make_plans
from engine.backfill.work import Work, work_of
from engine.cgroup import divide_within
from engine.config import Config
from engine.core.backfill import Plan, Selection, left_to_read
from engine.core.records import StreamRecord
from engine.core.specs import StreamSpec
from engine.errors import ConfigError

log = logging.getLogger("headrace")


def with_reloads(config: Config, planner: Planner, specs: Sequence[StreamSpec], work: Work) -> Work:
    """The work, and what is left to load of collections that were replaced; makes plans if needed."""
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
            except ConfigError as error:  # it is still shown as not loaded
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
    """The collections of these streams that were replaced, with the time of the last replacement, by namespace."""
    found: dict[str, int] = {}
    for record in records.values():
        for namespace, time in record.replaced.items():
            database, _, collection = namespace.partition(".")
            if any(spec.covers(database, collection) for spec in specs):
                found[namespace] = max(time, found.get(namespace, 0))
    return found


def pool_beside(config: Config, streams: int, splits: int) -> int:
    """The number of readers for this many splits: as configured, or as many as ``memory.limit`` allows."""
    for readers in range(min(config.backfill.readers, splits), 1, -1):
        try:
            divide_within(config, config.fleet.held(streams) + readers)
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
    earlier: Plan | None,
) -> Plan | None:
    """A new plan of the collection; None if it no longer exists, so that nothing is left to load.

    Raises:
        ConfigError: it cannot be planned now.
    """
    divide_within(config, config.fleet.held(len(specs)) + 1)
    if earlier is not None:
        plans.refuse_if_held(earlier)
        if not earlier.finished and earlier.selection != Selection():
            cause = f"a backfill of it is unfinished, of {earlier.selection}"
            raise ConfigError(f"load {namespace} again", cause, "Finish that, or abandon it with --restart.")
    database, _, collection = namespace.partition(".")
    made = planner.call(make_plans, config, [(database, collection)], Selection(), True)
    if not made:
        return None
    kept = plans.save(made[0], earlier)  # another engine's, if that was faster
    if earlier is not None and kept == made[0]:
        plans.forget(earlier)
    return kept
