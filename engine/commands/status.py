"""The commands ``status`` and ``state show``: the contents of the state store, as tables or JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime

import bson
import msgspec
from bson import json_util

from engine.backfill.plans import Plans
from engine.commands.progress import report
from engine.config import Config
from engine.core.backfill import Plan, not_loaded
from engine.core.naming import is_split
from engine.core.position import split_time, token_document
from engine.core.records import StreamRecord, read_record
from engine.core.sharing import decode_members
from engine.core.specs import Spec, StreamSpec
from engine.errors import HeadraceError
from engine.owner import name_of
from engine.state.opening import open_store

_ASK_MS = 2000


class _Shown(msgspec.Struct):
    """One stream's line; ``position`` is the whole resume token, as Extended JSON.

    ``oplog_headroom_s`` is how far the oplog reaches back behind the position; null while that is not known.
    ``not_loaded`` are the collections that a rename replaced and whose new documents are not in the lake yet.
    """

    stream: str
    collections: str
    position: str
    cluster_time: str
    seq: int
    events: int
    intents: int
    held_by: str
    updated: str
    status: str
    behind_s: float | None
    oplog_headroom_s: float | None
    not_loaded: list[str]


class _Engine(msgspec.Struct):
    """One engine's line, as it has announced itself."""

    engine: str
    version: str
    generation: int
    streams: list[str]
    cannot: dict[str, str]
    leaving: bool


def show_state(config: Config, *, as_json: bool) -> int:
    """Print the position of each stream and the progress of each backfill: tables, or JSON lines.

    Raises:
        NoStateError: nothing has run yet.
    """
    store = open_store(config.state, config.sink, read_only=True)
    try:
        known = store.read_all()
        engines = _engines(store.announced())
        backfills = Plans(store).progress()
        plans = {plan.namespace: plan for plan in Plans(store).read_all()}
    finally:
        store.close()
    window, unknown = _oplog(config) if known else (None, "")
    rows = [
        _shown(name, read_record(fields), holder, plans, window)
        for name, (fields, holder) in known.items()
        if not is_split(name)
    ]
    if as_json:
        for row in (*rows, *engines, *backfills):
            sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        return 0
    _print(rows, window, unknown)
    if engines:
        _print_engines(engines)
    if backfills:
        sys.stdout.write("\n")
        report(backfills)
    elif not rows:
        sys.stdout.write("no stream has run yet\n")
    return 0


def _engines(texts: Mapping[str, str]) -> list[_Engine]:
    """The engines that run, by name."""
    return [
        _Engine(name_of(owner), found.version, found.generation, sorted(found.holds), found.cannot, found.leaving)
        for owner, found in sorted(decode_members(texts).items())
    ]


def _print_engines(engines: list[_Engine]) -> None:
    from engine.commands.terminal import print_details, print_table

    lines = [
        (
            each.engine,
            each.version,
            str(each.generation),
            str(len(each.streams)),
            "leaving" if each.leaving else "",
        )
        for each in engines
    ]
    sys.stdout.write("\n")
    print_table(("engine", "version", "generation", "streams", ""), lines)
    for each in engines:
        if each.cannot:
            print_details(f"{each.engine} cannot read", each.cannot)


def _oplog(config: Config) -> tuple[tuple[int, int] | None, str]:
    """The cluster times of the oplog's first and last entries; None, and why, if they are not known.

    MongoDB is asked briefly: this command is also for the time when a server is away.
    """
    from engine.source.session import connect, oplog_window

    try:
        with connect(config.source.uri, selection_timeout_ms=_ASK_MS, socket_timeout_ms=_ASK_MS) as client:
            return oplog_window(client, "read the oplog's window"), ""
    except HeadraceError as error:
        return None, config.redactor()(error.cause)


def _print(rows: list[_Shown], window: tuple[int, int] | None, unknown: str) -> None:
    from engine.commands.terminal import print_details, print_table

    if rows:
        essentials = [(r.stream, r.status, _behind(r.behind_s), f"{r.events:,}", r.held_by) for r in rows]
        print_table(("stream", "status", "behind", "events", "held by"), essentials)
    for row in rows:
        segments = f"{row.seq} committed" + (f", {row.intents} being published" if row.intents else "")
        facts = {
            "collections": row.collections,
            "stands at": row.cluster_time,
            "token": row.position,
            "segments": segments,
            "written": row.updated,
        }
        if row.oplog_headroom_s is not None and window is not None:
            share = row.oplog_headroom_s / max(1, split_time(window[1])[0] - split_time(window[0])[0])
            facts["oplog"] = f"reaches back {_behind(row.oplog_headroom_s)} further, {min(1.0, share):.0%} of it"
        elif unknown and row.status != "closed":
            facts["oplog"] = f"unknown: {unknown}"
        if row.not_loaded:
            facts["not loaded"] = f"{', '.join(row.not_loaded)}, since a rename replaced the documents"
        print_details(row.stream, facts)


def _shown(
    name: str, record: StreamRecord, holder: str, plans: Mapping[str, Plan], window: tuple[int, int] | None
) -> _Shown:
    at = record.position
    seconds = split_time(at.time)[0] if at and at.time else 0
    return _Shown(
        stream=name,
        collections=_collections(record.spec),
        position=_token_json(at.token) if at and at.token else "",
        cluster_time=_iso(seconds),
        seq=record.seq,
        events=record.rows,
        intents=len(record.intents),
        held_by=name_of(holder),
        updated=_iso(record.updated),
        status="closed" if record.closed else "running" if holder else "stopped",
        behind_s=round(max(0.0, time.time() - seconds), 1) if seconds and not record.closed else None,
        oplog_headroom_s=float(max(0, seconds - split_time(window[0])[0]))
        if seconds and not record.closed and window is not None
        else None,
        not_loaded=not_loaded(record, plans),
    )


def _collections(spec: Spec | None) -> str:
    if spec is None:
        return ""
    excluded = spec.exclude if isinstance(spec, StreamSpec) else ()
    without = f", without {', '.join(excluded)}" if excluded else ""
    return ", ".join((*spec.collections, *spec.patterns)) + without


def _behind(seconds: float | None) -> str:
    """``93784.0`` as ``1d 2h``: at most two units."""
    if seconds is None:
        return ""
    left = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size}{unit}")
        left %= size
    return " ".join(parts[:2])


def _token_json(token: str) -> str:
    """The resume token in the form that drivers take."""
    return json_util.dumps(bson.decode(token_document(token)))


def _iso(seconds: float | None) -> str:
    return (
        datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        if seconds
        else ""
    )
