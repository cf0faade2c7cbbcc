"""The commands that look and do not run: ``check``, ``status`` and ``state show``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime

import bson
import msgspec
from bson import json_util
from rich.console import Console
from rich.table import Table

from engine.backfill import Plans, snapshot_readers
from engine.cgroup import divide_within
from engine.config import Config, format_size
from engine.core.naming import is_split
from engine.core.plan import plan_streams
from engine.core.position import split_time, token_document
from engine.core.records import StreamRecord, read_record
from engine.errors import ConfigError, HeadraceError, url_without_password
from engine.progress import report
from engine.state import open_store


def check(config: Config) -> int:
    """Reach MongoDB, the sink and the state store with the rights that a run needs; show the memory sum.

    Returns 0 when all is well, 2 when something is wrong with the configuration, else 1; every failure is shown
    with its remedy.
    """
    console = Console(soft_wrap=True, highlight=False)
    redact = config.redactor()
    code = 0
    steps: list[tuple[str, Callable[[Config], str]]] = [
        ("MongoDB", _check_source),
        ("sink", _check_sink),
        ("state store", _check_state),
        ("memory", _check_memory),
    ]
    for name, step in steps:
        try:
            found = redact(step(config))
            console.print(f"[green]ok[/]      {name:12} ", end="")
            console.print(found, markup=False)
        except HeadraceError as error:
            code = max(code, 2 if isinstance(error, ConfigError) else 1)
            console.print(f"[red]failed[/]  {name:12} ", end="")
            console.print(redact(str(error)), markup=False)
    return code


def _check_source(config: Config) -> str:
    from engine.source.change_stream import ChangeStream
    from engine.source.session import Members, connect, starting_position, survey

    client = connect(config.source.uri)
    ready = survey(client)
    specs = plan_streams(config.source)
    members = Members(client, config.source.uri, "primary")
    for spec in specs:
        stream = ChangeStream(members, spec, starting_position(client, config.source.start))
        try:
            stream.next()
        finally:
            stream.close()
    return f"{ready.deployment}, MongoDB {ready.server_version}; {len(specs)} stream(s) can be opened"


def _check_sink(config: Config) -> str:
    from engine.sink import Sink

    Sink(config.sink).check()
    return f"{config.sink.url} can be written"


def _check_state(config: Config) -> str:
    store = open_store(config.state)
    try:
        known = store.read_all()
    finally:
        store.close()
    return f"{url_without_password(config.state.url)} knows {len(known)} stream(s)"


def _check_memory(config: Config) -> str:
    readers = len(plan_streams(config.source)) + snapshot_readers(config)
    budget = divide_within(config, readers)
    lines = [f"{format_size(budget.limit)}, of which"]
    lines += [f"{'':20} {size / 2**20:7.0f} MiB  {name}" for name, size in budget.terms()]
    return "\n".join(lines)


class _Shown(msgspec.Struct):
    """One stream's line of ``state show``; ``position`` is the whole resume token, as Extended JSON."""

    stream: str
    collections: str
    position: str
    cluster_time: str
    seq: int
    events: int
    intents: int
    held_by: str
    updated: str


def show_state(config: Config, *, as_json: bool) -> int:
    """Print where each stream and each backfill stands: tables, or one JSON object per line."""
    store = open_store(config.state)
    try:
        known = store.read_all()
        backfills = Plans(store).progress()
    finally:
        store.close()
    rows = [
        _shown(name, read_record(fields), holder) for name, (fields, holder) in known.items() if not is_split(name)
    ]
    if as_json:
        for row in (*rows, *backfills):
            sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        return 0
    if rows or not backfills:
        table = Table(*_Shown.__struct_fields__, box=None)
        for row in rows:
            table.add_row(*(str(getattr(row, name)) for name in _Shown.__struct_fields__))
        Console().print(table if rows else "no stream has run yet")
    if backfills:
        report(backfills)
    return 0


def _shown(name: str, record: StreamRecord, holder: str) -> _Shown:
    at = record.position
    return _Shown(
        stream=name,
        collections=", ".join(record.spec.collections) if record.spec else "",
        position=_token_json(at.token) if at and at.token else "",
        cluster_time=_iso(split_time(at.time)[0]) if at and at.time else "",
        seq=record.seq,
        events=record.rows,
        intents=len(record.intents),
        held_by=holder.partition("/")[0],
        updated=_iso(record.updated),
    )


def _token_json(token: str) -> str:
    """The resume token as a driver takes it."""
    return json_util.dumps(bson.decode(token_document(token)))


def _iso(seconds: float) -> str:
    return (
        datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        if seconds
        else ""
    )
