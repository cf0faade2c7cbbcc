"""The command ``check``: finds out what a command would encounter, without changing anything.

What each command needs of each server is one row of ``_STEPS``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
from rich.text import Text

from engine.backfill.work import snapshot_readers
from engine.cgroup import divide_within
from engine.commands.explain import available_cores, more_writers_than_cores
from engine.commands.terminal import Terminal
from engine.config import Config, format_size
from engine.config.streams import streams_of
from engine.core.handover import find_succession
from engine.core.position import Position
from engine.core.records import StreamRecord, read_record
from engine.core.specs import StreamSpec
from engine.errors import ConfigError, HeadraceError, NoStateError, StreamLostError
from engine.state.opening import location, open_store

if TYPE_CHECKING:
    from engine.source.rights import Need
    from engine.source.session import Members

Records = dict[str, StreamRecord]


class Doubt(str):
    """Something that is legal but may not be intended."""

    __slots__ = ()


# The findings of a step, in order; an error that it raises is the last one.
Findings = Iterator[str | Doubt | HeadraceError]


def check(config: Config, command: str = "run", *, as_json: bool = False) -> int:
    """Check access to the state store, MongoDB and the sink with the rights of a command; show the memory budget.

    Args:
        as_json: one JSON object per finding: ``step``, ``result`` (``ok``, ``doubt``, ``failed``) and ``text``.

    Returns 0 if all is well, 2 if the configuration is at fault, otherwise 1. Every failure is shown with its
    remedy.
    """
    terminal = Terminal(soft_wrap=True)
    redact = config.redactor()
    records: Records = {}
    code = 0
    for name, step in _STEPS[command]:
        for found in _each(step(config, records)):
            label, color = "ok", "green"
            if isinstance(found, HeadraceError):
                code = max(code, 2 if isinstance(found, ConfigError) else 1)
                label, color = "failed", "red"
            elif isinstance(found, Doubt):
                label, color = "doubt", "yellow"
            text = redact(str(found))
            if as_json:
                line = msgspec.json.encode({"step": name, "result": label, "text": text})
                sys.stdout.write(line.decode() + "\n")
            else:
                terminal.print(Text(f"{label:8}", style=color), f"{name:12} {text}", sep="")
    return code


def _each(findings: Findings) -> Findings:
    try:
        yield from findings
    except HeadraceError as error:
        yield error


def _check_state(config: Config, records: Records) -> Findings:
    """Also fills ``records`` for the next steps."""
    where = location(config.state, config.sink)
    store = open_store(config.state, config.sink, read_only=True)
    try:
        try:
            records |= {name: read_record(fields) for name, (fields, _) in store.read_all().items()}
            known = f"{where} knows {len(records)} stream(s), and can be written"
        except NoStateError as none:
            known = f"{none.cause}; the first run can make it"
        doubts = store.check()
    finally:
        store.close()
    yield known
    yield from map(Doubt, doubts)


def _read_state(config: Config, _records: Records) -> Findings:
    where = location(config.state, config.sink)
    store = open_store(config.state, config.sink, read_only=True)
    try:
        yield f"{where} can be read, and knows {len(store.read_all())} stream(s)"
    finally:
        store.close()


def _check_source(config: Config, records: Records) -> Findings:
    from engine.source.presence import absent
    from engine.source.rights import missing, needs_of_loading, needs_of_streams
    from engine.source.session import Members, connect, starting_position, survey
    from engine.source.watchable import not_watchable

    source = config.source
    with connect(source.uri) as client:
        ready = survey(client)
        yield f"{ready.deployment}, MongoDB {ready.server_version}"
        loads = "snapshot" in (source.start, source.on_history_lost)
        needs = [*needs_of_streams(streams_of(source)), *(needs_of_loading(config) if loads else ())]
        yield from map(Doubt, absent(client, source))
        if lacking := missing(client, needs):
            yield from lacking
            return
        yield from not_watchable(client, streams_of(source))
        members = Members(client, source.uri, "primary")
        opened = resumed = 0
        for spec, record in _streams(config, records):
            if record is not None and record.deployment not in ("", ready.deployment):
                cause = f"its state is from {record.deployment!r}, and this is {ready.deployment!r}"
                remedy = "Use another state.prefix and another sink.url for another deployment."
                yield ConfigError(f"start the stream {spec.stream}", cause, remedy)
                continue
            try:
                position = record.position if record else None
                _open(members, spec, position or starting_position(client, source.start))
                opened += 1
                resumed += position is not None
            except StreamLostError as lost:
                policy = source.on_history_lost
                yield lost if policy == "fail" else Doubt(_healed(lost, policy))
            except HeadraceError as error:
                yield error
        yield f"{opened} stream(s) can be opened" + (f", {resumed} where they stand" if resumed else "")


def _check_loading(config: Config, _records: Records) -> Findings:
    from engine.source.rights import needs_of_loading

    yield from _check_rights(config, list(needs_of_loading(config)), "collections can be loaded")


def _check_comparing(config: Config, _records: Records) -> Findings:
    from engine.source.rights import needs_of_comparing

    yield from _check_rights(config, list(needs_of_comparing(config)), "collections can be read")


def _check_rights(config: Config, needs: Sequence[Need], what: str) -> Findings:
    from engine.source.presence import absent
    from engine.source.rights import missing
    from engine.source.session import connect, survey

    with connect(config.source.uri) as client:
        ready = survey(client)
        yield f"{ready.deployment}, MongoDB {ready.server_version}"
        yield from map(Doubt, absent(client, config.source))
        if lacking := missing(client, needs):
            yield from lacking
        else:
            yield what


def _streams(config: Config, records: Records) -> list[tuple[StreamSpec, StreamRecord | None]]:
    """The streams that a run would open, those that hand over included, with the records to resume from."""
    running = {
        name: record.spec
        for name, record in records.items()
        if isinstance(record.spec, StreamSpec) and record.position and not record.closed
    }
    desired = streams_of(config.source)
    handover = find_succession(desired, running)
    beginning = {spec.stream for spec in handover.open} if handover else set()
    closing = [(spec, records[spec.stream]) for spec in (handover.close if handover else ())]
    return closing + [
        (spec, records[spec.stream] if spec.stream in running and spec.stream not in beginning else None)
        for spec in desired
    ]


def _open(members: Members, spec: StreamSpec, position: Position) -> None:
    from engine.source.change_stream import ChangeStream

    stream = ChangeStream(members, spec, position)
    try:
        stream.next()
    finally:
        stream.close()


def _healed(lost: StreamLostError, policy: str) -> str:
    then = "its collections are loaded again" if policy == "snapshot" else "what has changed since is skipped"
    return f'{lost.operation}: {lost.cause}. By source.on_history_lost = "{policy}", {then}.'


def _check_sink(config: Config, _records: Records) -> Findings:
    from engine.sink.objects import Sink

    Sink(config.sink).prove()
    yield f"{config.sink.url} can be written and listed"


def _read_sink(config: Config, _records: Records) -> Findings:
    from engine.sink.objects import Sink

    Sink(config.sink).prove_readable()
    yield f"{config.sink.url} can be listed and read"


def _check_tables(config: Config, _records: Records) -> Findings:
    """Nothing is said without tables."""
    from engine.sink.objects import Sink

    if config.table.format == "none":
        return
    from engine.tables.formats import tables_of

    tables_of(config).check()
    Sink(config.sink).prove_readable()
    mirrors = " and mirrors" if config.mirror.enabled else ""
    yield f"changelog tables{mirrors} in {config.table.format} can be looked at"


def _check_memory(config: Config, _records: Records) -> Findings:
    readers = config.fleet.held(len(streams_of(config.source))) + snapshot_readers(config)
    budget = divide_within(config, readers)
    lines = [f"{format_size(budget.limit)}, of which"]
    lines += [f"{'':20} {size / 2**20:7.0f} MiB  {name}" for name, size in budget.terms()]
    yield "\n".join(lines)
    if (surplus := more_writers_than_cores(config.writers.processes, available_cores())) is not None:
        yield Doubt(surplus)


Step = tuple[str, Callable[[Config, Records], Findings]]
_STEPS: dict[str, tuple[Step, ...]] = {
    "run": (
        ("state store", _check_state),
        ("MongoDB", _check_source),
        ("sink", _check_sink),
        ("tables", _check_tables),
        ("memory", _check_memory),
    ),
    "backfill": (
        ("state store", _check_state),
        ("MongoDB", _check_loading),
        ("sink", _check_sink),
        ("tables", _check_tables),
    ),
    "verify": (
        ("state store", _read_state),
        ("MongoDB", _check_comparing),
        ("sink", _read_sink),
        ("tables", _check_tables),
    ),
    "restore": (("state store", _read_state), ("sink", _read_sink)),
    "status": (("state store", _read_state),),
}
