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
from engine.state.opening import open_store


class _Shown(msgspec.Struct):
    """One stream's line; ``position`` is the whole resume token, as Extended JSON.

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
    not_loaded: list[str]


def show_state(config: Config, *, as_json: bool) -> int:
    """Print the position of each stream and the progress of each backfill: tables, or JSON lines.

    Raises:
        NoStateError: nothing has run yet.
    """
    store = open_store(config.state, config.sink, read_only=True)
    try:
        known = store.read_all()
        backfills = Plans(store).progress()
        plans = {plan.namespace: plan for plan in Plans(store).read_all()}
    finally:
        store.close()
    rows = [
        _shown(name, read_record(fields), holder, plans)
        for name, (fields, holder) in known.items()
        if not is_split(name)
    ]
    if as_json:
        for row in (*rows, *backfills):
            sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        return 0
    _print(rows)
    if backfills:
        sys.stdout.write("\n")
        report(backfills)
    elif not rows:
        sys.stdout.write("no stream has run yet\n")
    return 0


def _print(rows: list[_Shown]) -> None:
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
        if row.not_loaded:
            facts["not loaded"] = f"{', '.join(row.not_loaded)}, since a rename replaced the documents"
        print_details(row.stream, facts)


def _shown(name: str, record: StreamRecord, holder: str, plans: Mapping[str, Plan]) -> _Shown:
    at = record.position
    seconds = split_time(at.time)[0] if at and at.time else 0
    return _Shown(
        stream=name,
        collections=", ".join(record.spec.collections) if record.spec else "",
        position=_token_json(at.token) if at and at.token else "",
        cluster_time=_iso(seconds),
        seq=record.seq,
        events=record.rows,
        intents=len(record.intents),
        held_by=holder.partition("/")[0],
        updated=_iso(record.updated),
        status="closed" if record.closed else "running" if holder else "stopped",
        behind_s=round(max(0.0, time.time() - seconds), 1) if seconds and not record.closed else None,
        not_loaded=not_loaded(record, plans),
    )


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
