"""Before a configuration's streams start, earlier streams hand over to them what they have covered so far.

See ``core.handover`` for why and how. This is the shell: it reads and writes the state store, and runs the
old streams to their common end.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from engine.commands.fleet import lead
from engine.config import Config
from engine.core import records
from engine.core.generations import Generation
from engine.core.handover import (
    Handover,
    Succession,
    decode_handover,
    encode_handover,
    find_abandoned,
    find_gaps,
    find_succession,
)
from engine.core.ledger import first_segment
from engine.core.position import Position
from engine.core.records import Change, StreamRecord, read_record
from engine.core.specs import StreamSpec
from engine.errors import ConfigError, StateLostError
from engine.owner import this_owner
from engine.state.leases import take
from engine.state.opening import open_retrying
from engine.state.seam import Acquired, Lease, StateStore
from engine.state.shared import amend

_DOCUMENT = "handover"
_OPERATION = "hand over streams"
_OTHER_FIRST = "Stop the other engine first."
_POLL_S = 1.0
# Runs these streams until they have caught up; the cluster time that all have reached, or None if interrupted.
RunToEnd = Callable[[Sequence[StreamSpec]], int | None]

log = logging.getLogger("headrace")


def hand_over(
    config: Config, desired: Sequence[StreamSpec], run_to_end: RunToEnd, fleet: Generation | None = None
) -> bool:
    """Hand over from earlier streams to the desired ones, if that is needed.

    Returns False if interrupted: the desired streams must not start.

    Args:
        fleet: the generation to hand over to; one of its engines does it, the others wait. None for an engine that
            shares nothing.

    Raises:
        ConfigError: another engine runs one of the streams.
    """
    store = open_retrying(config.state, config.sink, config.retry)
    try:
        if fleet is not None:
            _await_turn(store, config, desired, fleet)
        _carry_out_pending(store, config)
        version, _ = store.read_shared(_DOCUMENT)
        known = _known(store)
        succession = find_succession(desired, _open(known))
        if succession is None:
            return True
        fields = {
            "close": [spec.stream for spec in succession.close],
            "open": [spec.stream for spec in succession.open],
        }
        log.info("the streams change; the old ones run to a common end first", extra={"fields": fields})
        _warn_of_gaps(succession, known)
        end = run_to_end(succession.close)
        if end is None:
            return False
        stands = store.read_all()
        if lost := [spec.stream for spec in succession.close if spec.stream not in stands]:
            raise StateLostError(_OPERATION, f"the state store has lost its record of {', '.join(lost)}")
        ends = {spec.stream: read_record(stands[spec.stream][0]).seq for spec in succession.close}
        streams = {*ends, *(spec.stream for spec in succession.open)}
        _save(store, Handover(f"{len(streams)}-{uuid.uuid4().hex}", end, ends, succession.open), version)
        if not _carry_out_pending(store, config):
            raise ConfigError(_OPERATION, "another engine has continued them meanwhile", _OTHER_FIRST)
        return True
    finally:
        store.close()


def _warn_of_gaps(succession: Succession, known: Mapping[str, StreamRecord]) -> None:
    closed = [each.spec for each in known.values() if each.closed and isinstance(each.spec, StreamSpec)]
    for stream, collections in find_gaps(succession, closed).items():
        remedy = "headrace verify shows what is missing; headrace backfill --restart loads them again."
        fields = {"stream": stream, "collections": collections, "remedy": remedy}
        log.warning("collections are captured again that were left out for a time", extra={"fields": fields})


def _await_turn(store: StateStore, config: Config, desired: Sequence[StreamSpec], fleet: Generation) -> None:
    """Wait until nothing is to be handed over, or this engine is the one to do it."""
    waits_for: str | None = None
    while store.read_shared(_DOCUMENT)[1] or find_succession(desired, _open(_known(store))) is not None:
        by = lead(store, config, fleet)
        if by is None:
            return
        if by != waits_for:
            log.info("another engine of the fleet hands the streams over", extra={"fields": {"engine": by}})
            waits_for = by
        time.sleep(_POLL_S)


def abandoned(config: Config, desired: Sequence[StreamSpec]) -> dict[str, str]:
    """The desired streams that start over; see ``find_abandoned``. None while a handover is to be carried out."""
    store = open_retrying(config.state, config.sink, config.retry)
    try:
        if store.read_shared(_DOCUMENT)[1]:
            return {}
        known = _known(store)
    finally:
        store.close()
    closed = {name: record.handover for name, record in known.items() if record.closed and record.handover}
    found = find_abandoned(desired, _open(known), closed)
    if found:
        what = "no stream has covered this since it was last handed over; it starts over"
        log.warning(what, extra={"fields": {"streams": sorted(found), "start": config.source.start}})
    return found


def _known(store: StateStore) -> dict[str, StreamRecord]:
    """The records of all streams, by name."""
    return {name: read_record(fields) for name, (fields, _) in store.read_all().items()}


def _open(known: Mapping[str, StreamRecord]) -> dict[str, StreamSpec]:
    """The open streams among them."""
    return {
        name: record.spec
        for name, record in known.items()
        if isinstance(record.spec, StreamSpec) and not record.closed
    }


def _carry_out_pending(store: StateStore, config: Config) -> bool:
    """Close and open what the stored handover says, as far as not done yet; then remove it.

    All leases are taken before anything is written, so that no stream can move in between. Returns False if a
    stream has moved since the handover was stored, which makes it void.

    Raises:
        ConfigError: another engine holds one of the streams.
    """
    version, text = store.read_shared(_DOCUMENT)
    if not version:
        _refuse_if_lost(store)
    if not text:
        return True
    handover = decode_handover(text)
    opening = {spec.stream: spec for spec in handover.open}
    held: dict[str, tuple[Lease, StreamRecord]] = {}
    try:
        for name in sorted({*handover.close, *opening}):
            held[name] = _take(store, config, name)
        done = {name for name, (_, record) in held.items() if record.handover == handover.id}
        moved = [
            name
            for name, seq in handover.close.items()
            if name not in done and (held[name][1].seq != seq or held[name][1].intents)
        ]
        if moved and done:
            cause = f"{', '.join(moved)} went on although {', '.join(sorted(done))} had already been handed over"
            raise ConfigError(_OPERATION, cause, "Start over with another state.prefix and another sink.url.")
        if moved:
            log.warning("a handover is void: its streams have moved on", extra={"fields": {"streams": moved}})
        else:
            deployment = next((record.deployment for _, record in held.values() if record.deployment), "")
            for name in held.keys() - done:
                lease, record = held[name]
                change = _change(config, handover, record, opening.get(name), deployment)
                store.write(lease, change.put, change.remove)
            log.info("handed over", extra={"fields": {"closed": [*handover.close], "opened": [*opening]}})
        amend(store, _DOCUMENT, lambda _, found: "" if found == text else None)
        return not moved
    finally:
        for lease, _ in held.values():
            store.release(lease)


def _refuse_if_lost(store: StateStore) -> None:
    """Raise ``StateLostError`` if some, but not all, records of a handover refer to it: its document is lost."""
    for id_, count in Counter(each.handover for each in _known(store).values() if each.handover).items():
        streams, _, name = id_.partition("-")
        if name and count < int(streams):
            cause = f"the state store has lost the handover {id_}, to which {count} of its {streams} streams refer"
            raise StateLostError(_OPERATION, cause)


def _take(store: StateStore, config: Config, name: str) -> tuple[Lease, StreamRecord]:
    """Acquire a stream's lease; returns it and the record, which nobody else can change now."""
    found = take(store, name, this_owner(), config.lease.ttl)
    if not isinstance(found, Acquired):
        raise ConfigError(_OPERATION, f"{found.holder} runs the stream {name}", _OTHER_FIRST)
    return found.lease, read_record(found.fields)


def _change(
    config: Config, handover: Handover, record: StreamRecord, opened: StreamSpec | None, deployment: str
) -> Change:
    if opened is None:
        return records.close(handover.id)
    position = Position(time=handover.time + 1)
    begun = records.begin(opened, config.sink.identity, deployment, position)
    seq = max(record.seq, first_segment(position) - 1)
    return Change({**begun.put, "handover": handover.id, "seq": str(seq)}, begun.remove)


def _save(store: StateStore, handover: Handover, version: int) -> None:
    """Store a handover, to be carried out.

    Raises:
        ConfigError: another handover was stored since this one was planned, with the document at ``version``.
    """

    def written(found: int, text: str) -> str:
        if text or found != version:
            raise ConfigError(_OPERATION, "another engine has started a handover meanwhile", _OTHER_FIRST)
        return encode_handover(handover)

    amend(store, _DOCUMENT, written)
