"""Before the streams of a configuration start: let others hand over to them what they have covered so far.

See ``core.handover`` for why and how. This is the shell: it reads and writes the state store, and runs the
old streams up to their common end.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence

import msgspec

from engine.config import Config
from engine.core import records
from engine.core.handover import Handover, plan_handover
from engine.core.messages import StreamSpec
from engine.core.position import Position
from engine.core.records import Change, read_record
from engine.errors import ConfigError
from engine.retries import FIRST_ATTEMPTS, retrying
from engine.state import Acquired, StateStore, open_store
from engine.state.owner import is_certainly_dead, this_owner

_DOCUMENT = "handover"
# Runs these streams until they have caught up: the one cluster time that all have come to; 0 when interrupted.
RunToEnd = Callable[[Sequence[StreamSpec]], int]

log = logging.getLogger("headrace")


def hand_over(config: Config, desired: Sequence[StreamSpec], run_to_end: RunToEnd) -> bool:
    """Carry out what earlier streams must hand over to the desired ones, if anything.

    Returns False when that was interrupted: the desired streams must not start.

    Raises:
        ConfigError: another engine runs one of the streams.
    """
    store = open_store(config.state)
    try:
        retry = retrying(config.retry, attempts=FIRST_ATTEMPTS, what="the state store")
        retry(_carry_out_pending, store, config)
        plan = plan_handover(desired, retry(_running, store))
        if plan is None:
            return True
        fields = {
            "close": [spec.stream for spec in plan.close],
            "open": [spec.stream for spec in plan.open],
        }
        log.info("streams change; the former ones run to one common end first", extra={"fields": fields})
        time = run_to_end(plan.close)
        if not time:
            return False
        closed = tuple(spec.stream for spec in plan.close)
        _save(store, Handover(uuid.uuid4().hex, time, closed, plan.open))
        _carry_out_pending(store, config)
        return True
    finally:
        store.close()


def _running(store: StateStore) -> dict[str, StreamSpec]:
    """The open streams of the store, with their selections."""
    known = {name: read_record(fields) for name, (fields, _) in store.read_all().items()}
    return {name: record.spec for name, record in known.items() if record.spec and not record.closed}


def _carry_out_pending(store: StateStore, config: Config) -> None:
    """Close and open what the written handover says, as far as that is not done yet; then forget it."""
    version, text = store.read_shared(_DOCUMENT)
    if not text:
        return
    handover = msgspec.json.decode(text, type=Handover)
    opening = {spec.stream: spec for spec in handover.open}
    for name in sorted({*handover.close, *opening}):
        _update(store, config, name, handover, opening.get(name))
    fields = {"closed": list(handover.close), "opened": list(opening)}
    log.info("handed over", extra={"fields": fields})
    store.write_shared(_DOCUMENT, version + 1, "")


def _update(store: StateStore, config: Config, name: str, handover: Handover, opened: StreamSpec | None) -> None:
    from engine.supervisor import sink_identity

    owner = this_owner()
    found = store.acquire(name, owner, config.lease.ttl)
    if not isinstance(found, Acquired) and is_certainly_dead(found.holder):
        found = store.acquire(name, owner, config.lease.ttl, replacing=found.holder)
    if not isinstance(found, Acquired):
        cause = f"{found.holder} runs the stream {name}"
        raise ConfigError("hand streams over", cause, "Stop the other engine first.")
    record = read_record(found.fields)
    if record.handover != handover.id:
        change = records.close(handover.id)
        if opened is not None:
            begun = records.begin(
                opened, sink_identity(config), record.deployment, Position(time=handover.time + 1)
            )
            change = Change({**begun.put, "handover": handover.id, "seq": str(record.seq)}, begun.remove)
        store.write(found.lease, change.put, change.remove)
    store.release(found.lease)


def _save(store: StateStore, handover: Handover) -> None:
    version, text = store.read_shared(_DOCUMENT)
    assert not text, "a handover is carried out before the next is planned"
    if not store.write_shared(_DOCUMENT, version + 1, msgspec.json.encode(handover).decode()):
        raise ConfigError("hand streams over", "another engine does so too", "Stop the other engine first.")
