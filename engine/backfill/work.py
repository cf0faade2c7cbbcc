"""What is left to load: before a run, plans are made or found; after it, finished ones are closed."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from engine.backfill.planner import Planner
from engine.backfill.plans import Plans, plans_of
from engine.backfill.questions import (
    find_absentees,
    find_newest_of_splits,
    get_server_time,
    list_collections,
    make_plans,
)
from engine.config import Config
from engine.config.streams import IN_DOUBT, streams_of
from engine.core.backfill import Plan, Progress, Selection, left_to_read, progress_of
from engine.core.handover import overlap
from engine.core.ledger import Ledger
from engine.core.naming import number_in
from engine.core.position import make_time
from engine.core.records import StreamRecord
from engine.core.specs import BackfillSpec, StreamSpec
from engine.errors import ConfigError

# A plan is timed by this machine's clock, its objects by the server's.
_CLOCK_SKEW_S = 86_400

log = logging.getLogger("headrace")


class Work(Struct, frozen=True):
    """The remaining work of backfills.

    Attributes:
        plans: the unfinished ones.
        splits: those left to read, in order.
        progress: of each collection, by namespace.
        start_at: where change streams without a position start: a time before the plans were made, or None for
            ``source.start``.
        loaded: collections that were replaced and have been loaded, with the cluster time of the replacement, by
            namespace.
        put_off: whether some cannot be loaded now.
    """

    plans: tuple[Plan, ...] = ()
    splits: tuple[BackfillSpec, ...] = ()
    progress: dict[str, Progress] = {}
    start_at: str | None = None
    loaded: dict[str, int] = {}
    put_off: bool = False


NOTHING = Work()


def prepare(
    config: Config,
    planner: Planner,
    wanted: Sequence[tuple[str, str]],
    selection: Selection,
    *,
    restart: bool = False,
    beginning: bool = False,
) -> Work:
    """The remaining work to load these collections; makes plans where there are none.

    Args:
        wanted: the collections; if empty, all that the configuration captures, of those that exist.
        restart: forget what has been done, and start over.
        beginning: their change streams are about to start: a plan of which anything was read is too old for them,
            and a collection that does not exist (yet) is left out.

    Raises:
        ConfigError: an unfinished backfill of one of them has another selection; or see ``make_plans``.
    """
    is_asked_for = bool(wanted) and not beginning
    wanted = wanted or _captured(config, planner, streams_of(config.source))
    with plans_of(config) as plans:
        existing = {namespace: plans.read(".".join(namespace)) for namespace in wanted}
        known = plans.records()
        fresh = [
            each
            for each, plan in existing.items()
            if restart or _is_void(plan, selection) or (beginning and plan is not None and _is_begun(plan, known))
        ]
        found = {each: plan for each, plan in existing.items() if plan is not None and each not in fresh}
        for namespace, plan in existing.items():
            if plan is not None and namespace in fresh:
                plans.refuse_if_held(plan)
        if not restart:
            _refuse_lost_state(config, planner, plans, existing)
        for plan in found.values():
            plans.enlist(plan.namespace)
        for made in planner.call(make_plans, config, fresh, selection, not is_asked_for) if fresh else []:
            namespace = made.database, made.collection
            before = existing[namespace]
            has_older = restart or before is not None or _is_streamed(made, known)
            plan = made if has_older else replace(made, since=None)  # there is nothing for a mark to void
            found[namespace] = plans.save(plan, before)
            if found[namespace] != plan and (restart or found[namespace].selection != selection):
                cause = f"another engine has meanwhile planned it for {found[namespace].selection}"
                raise ConfigError(f"plan the backfill of {plan.namespace}", cause, "Stop the other engine first.")
            if before is not None and found[namespace] == plan:
                plans.forget(before)
        if wanted and not found and not beginning:
            planner.call(make_plans, config, wanted, selection, False)  # raises what is wrong with the first
        return work_of(plans, [found[namespace] for namespace in wanted if namespace in found])


def warn_of_absent(config: Config, planner: Planner) -> None:
    """Log what the configuration names but cannot be loaded; it is left out."""
    for sentence in planner.call(find_absentees, config):
        log.warning(IN_DOUBT, extra={"fields": {"cause": sentence}})


def _refuse_lost_state(
    config: Config, planner: Planner, plans: Plans, existing: Mapping[tuple[str, str], Plan | None]
) -> None:
    """Compare the state of backfills that continue, or that are unknown, with the lake.

    Raises:
        ConfigError: the lake has more than the state store knows of.
    """
    for namespace, plan in existing.items():
        if plan is not None and plan.finished:
            continue
        since = _objects_since(config, plans, plan) if plan else None
        asked = config.sink, *namespace, plan.id if plan else None, since
        newest = planner.call(find_newest_of_splits, *asked, of="the sink")
        # The state is read again after the lake, so that it includes what another engine has written meanwhile.
        if not newest or plans.read(".".join(namespace)) != plan:
            continue
        records = plans.records()
        for split, key in newest.items():
            record = records.get(split, StreamRecord())
            if (number_in(key, split) or 0) > Ledger(record.position, record.seq, record.intents).last_known:
                raise _older_than_the_lake(".".join(namespace), plan, key)


def _objects_since(config: Config, plans: Plans, plan: Plan) -> int | None:
    """A cluster time before which there are no objects of the plan in the present layout; None if not known."""
    known = plans.records()
    sinks = {known[spec.stream].sink for spec in plan.specs() if spec.stream in known}
    return make_time(int(plan.made) - _CLOCK_SKEW_S, 0) if sinks == {config.sink.identity} else None


def _older_than_the_lake(namespace: str, plan: Plan | None, key: str) -> ConfigError:
    known = "is older than that" if plan else "knows of no backfill"
    cause = f"the lake holds {key}, and the state store {known}: documents would be loaded twice"
    remedy = (
        "Restore the newest state; headrace state rebuild can tell whether the backfill was finished. Or load "
        "everything again with --restart: a mark then voids the older rows."
    )
    return ConfigError(f"load {namespace}", cause, remedy)


def snapshot(config: Config, planner: Planner, specs: Sequence[StreamSpec], lost: Collection[str] = ()) -> Work:
    """What to load beside change streams, by ``source.start`` or ``source.on_history_lost``.

    Plans for streams without a position are made before they get one. A stream with a position continues, and only
    those of its collections with a plan are loaded: one that was created since is entirely in the stream.

    Args:
        lost: streams whose history is lost: what they cover is loaded again.
    """
    if "snapshot" not in (config.source.start, config.source.on_history_lost):
        return NOTHING
    with plans_of(config) as plans:
        records = plans.records().values()
        known = plans.read_of(specs)
    # A stream that takes over from others continues from their position.
    running = [
        each.spec for each in records if isinstance(each.spec, StreamSpec) and each.position and not each.closed
    ]
    starts_so = config.source.start == "snapshot"
    fresh = [spec for spec in specs if starts_so and not any(overlap(spec, other) for other in running)]
    # All collections that exist when the streams start must be listed, so the start time is taken before the
    # listing.
    start_at = planner.call(get_server_time, config) if fresh or lost else None
    prepared: set[tuple[str, str]] = set()
    for spec in specs:
        if spec in fresh or spec.stream in lost:
            wanted = _captured(config, planner, [spec])
        elif starts_so and known and spec not in running:
            captured = _captured(config, planner, [spec])
            wanted = [each for each in captured if not any(other.covers(*each) for other in running)]
        else:
            continue
        if wanted:
            prepared.update(wanted)
            prepare(config, planner, wanted, Selection(), restart=spec.stream in lost, beginning=True)
    if starts_so and not fresh and not known:
        what = "streams continue where they were; use the command backfill to load what was there before"
        log.warning(what, extra={"fields": {"streams": [spec.stream for spec in specs]}})
    with plans_of(config) as plans:
        found = plans.read_of(specs)
        unchecked = {(plan.database, plan.collection): plan for plan in found}
        unchecked = {each: plan for each, plan in unchecked.items() if each not in prepared}
        _refuse_lost_state(config, planner, plans, unchecked)
        work = work_of(plans, found)
    return replace(work, start_at=start_at)


def _captured(config: Config, planner: Planner, specs: Sequence[StreamSpec]) -> list[tuple[str, str]]:
    """The collections of these streams: those that are named, and those that exist of what has no name."""
    named = [(spec.database, name) for spec in specs for name in spec.collections]
    existing = planner.call(list_collections, config) if any(not spec.named for spec in specs) else []
    covered = [each for each in existing if any(spec.covers(*each) for spec in specs)]
    return list(dict.fromkeys([*named, *covered]))


def snapshot_readers(config: Config) -> int:
    """Readers that ``run`` may need besides those of the streams."""
    return config.backfill.readers if "snapshot" in (config.source.start, config.source.on_history_lost) else 0


def finish(config: Config, work: Work) -> list[Progress]:
    """The progress after a run; closes finished plans."""
    if not work.plans:
        return list(work.progress.values())
    with plans_of(config) as plans:
        return plans.finish(work.plans)


def _is_void(plan: Plan | None, selection: Selection) -> bool:
    """Whether a new plan has to be made.

    Raises:
        ConfigError: the plan is unfinished, and has another selection.
    """
    if plan is None:
        return True
    if plan.selection == selection:
        return False
    if not plan.finished:
        cause = f"a backfill of {plan.namespace} is unfinished, of {plan.selection}; now it is {selection}"
        remedy = "Finish it with the same options, or abandon it with --restart (its objects stay in the lake)."
        raise ConfigError("plan the backfill", cause, remedy)
    return True


def _is_begun(plan: Plan, known: Mapping[str, StreamRecord]) -> bool:
    """Whether any of it has been read."""
    return bool(plan.finished) or any(spec.stream in known for spec in plan.specs())


def _is_streamed(plan: Plan, known: Mapping[str, StreamRecord]) -> bool:
    """Whether a change stream may have brought events of the collection."""
    return any(
        isinstance(each.spec, StreamSpec)
        and each.position is not None
        and each.spec.covers(plan.database, plan.collection)
        for each in known.values()
    )


def work_of(plans: Plans, found: Sequence[Plan]) -> Work:
    """The remaining work of these plans."""
    open_ = [plan for plan in found if not plan.finished]
    known = plans.records() if open_ else {}
    return Work(
        tuple(open_),
        tuple(spec for plan in open_ for spec in left_to_read(plan, known)),
        {plan.namespace: progress_of(plan, known) for plan in found},
    )
