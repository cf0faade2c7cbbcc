"""The progress of backfills: live bars on a terminal, otherwise a log line every few seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

import msgspec

from engine.config import Config, format_size
from engine.core.backfill import Progress as Backfill
from engine.supervisor.telemetry import Watch

LOG_EVERY_S = 10.0

log = logging.getLogger("headrace")


@contextmanager
def shown(config: Config, backfills: Iterable[Backfill]) -> Iterator[Watch]:
    """Show the progress of these backfills."""
    if not sys.stderr.isatty() or config.telemetry.log_format == "json":
        yield logged(backfills)
        return
    # Imported here, so that an engine that shows no bars does not load it.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=cast(TextIO, _WhileItIsThere(sys.stderr)))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(
            "{task.percentage:>3.0f} %  {task.fields[documents]:>13,} documents  {task.fields[rate]:>9,}/s"
        ),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as bars, _above_the_bars():
        rates = {each.collection: _Rate(each.documents) for each in backfills}
        tasks = {
            each.collection: bars.add_task(
                each.collection, total=each.bytes_total, completed=each.bytes, documents=each.documents, rate=0
            )
            for each in backfills
        }

        def watch(statuses: Sequence[Backfill]) -> None:
            for each in statuses:
                rate = int(rates[each.collection].per_s(each.documents))
                total = max(each.bytes_total, each.bytes)
                bars.update(
                    tasks[each.collection],
                    completed=total if each.splits == each.splits_total else each.bytes,
                    total=total,
                    documents=each.documents,
                    rate=rate,
                )

        yield watch


@contextmanager
def _above_the_bars() -> Iterator[None]:
    """Write log lines above the bars, which have replaced ``sys.stderr``."""
    handlers = [each for each in logging.getLogger().handlers if isinstance(each, logging.StreamHandler)]
    streams = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, streams, strict=True):
            if stream is not None:
                handler.setStream(stream)


class _WhileItIsThere:
    """A stream to a terminal that may be closed: then the bars are lost and the work continues."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, unless the terminal is gone."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, unless the terminal is gone."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Rate:
    """Documents per second, over the last seconds."""

    def __init__(self, documents: int) -> None:
        self._seen = [(time.monotonic(), documents)]

    def per_s(self, documents: int) -> float:
        """The rate, given the current number of documents."""
        now = time.monotonic()
        self._seen = [each for each in self._seen if now - each[0] < 2 * LOG_EVERY_S] or self._seen[-1:]
        self._seen.append((now, documents))
        since, before = self._seen[0]
        return (documents - before) / (now - since) if now > since else 0.0


def logged(backfills: Iterable[Backfill]) -> Watch:
    """Log the progress of these backfills every ``LOG_EVERY_S``."""
    rates = {each.collection: _Rate(each.documents) for each in backfills}
    next_at = time.monotonic() + LOG_EVERY_S

    def watch(statuses: Sequence[Backfill]) -> None:
        nonlocal next_at
        if time.monotonic() < next_at:
            return
        next_at = time.monotonic() + LOG_EVERY_S
        for each in statuses:
            if each.splits < each.splits_total:
                fields = _fields(each, rates[each.collection].per_s(each.documents))
                log.info("backfill", extra={"fields": fields})

    return watch


def _fields(backfill: Backfill, rate: float) -> dict[str, object]:
    left = max(0, backfill.documents_total - backfill.documents)
    return {
        "collection": backfill.collection,
        "splits": f"{backfill.splits}/{backfill.splits_total}",
        "documents": backfill.documents,
        "documents_total": backfill.documents_total,
        "bytes": backfill.bytes,
        "documents_per_s": round(rate),
        "left_s": round(left / rate) if rate else None,
    }


def report(backfills: Iterable[Backfill]) -> None:
    """Print what has been loaded: a table, or JSON lines in a pipe."""
    found = list(backfills)
    if not sys.stdout.isatty():
        for each in found:
            sys.stdout.write(msgspec.json.encode(each).decode() + "\n")
        return
    from engine.commands.terminal import print_details, print_table

    if not found:
        sys.stdout.write("there is no backfill\n")
        return
    essentials = [
        (each.collection, _loaded(each), f"{each.documents:,}", format_size(each.bytes)) for each in found
    ]
    print_table(("collection", "loaded", "documents", "BSON"), essentials)
    for each in found:
        finished = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(each.finished)) if each.finished else ""
        documents = f"{each.documents:,} of about {each.documents_total:,}"
        splits = f"{each.splits} of {each.splits_total}"
        print_details(each.collection, {"splits": splits, "documents": documents, "finished": finished})


def _loaded(backfill: Backfill) -> str:
    if backfill.finished:
        return "all"
    return f"{100 * backfill.splits // max(1, backfill.splits_total)} %"
