"""The command ``verify``: the lake compared with itself, with the state store, and with its source."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import count
from typing import Any

import msgspec
import pyarrow as pa
from msgspec import Struct

from engine.backfill.planning import collection_entries
from engine.backfill.plans import Plans
from engine.backfill.questions import list_collections
from engine.commands.steps import Watch, steps
from engine.config import Config
from engine.config.streams import named_by_database, streams_of
from engine.core.backfill import Plan, Selection
from engine.core.position import split_time
from engine.core.records import StreamRecord, read_record
from engine.core.specs import StreamSpec
from engine.errors import ConfigError, HeadraceError, NoStateError
from engine.lake.against_source.comparison import Compared, Comparison
from engine.lake.against_source.sides import Sides
from engine.lake.audit.audit import Audited, Auditor
from engine.lake.audit.findings import MEANINGS, Findings
from engine.lake.audit.segments import Window
from engine.lake.documents.normal import normal_of
from engine.lake.moment import read_by
from engine.lake.objects import Objects
from engine.retries import retrying
from engine.source.failures import translated
from engine.source.session import Client, Members, connect
from engine.source.snapshots import CappedCollectionError
from engine.state.opening import open_store
from engine.tables.verification import TableCompared, compare_tables

Namespace = tuple[str, str]
State = tuple[Mapping[str, StreamRecord], Sequence[Plan]]
_NO_BACKFILL = (
    "nothing has loaded the whole collection: documents that have not changed since its stream started are not in "
    "the lake; load them with the command backfill"
)


class Options(Struct, frozen=True):
    """What to verify.

    Attributes:
        collections: those of ``source.database``; empty for the whole lake, and all that are watched.
        since, until: RFC 3339 times, ``until`` exclusive: only segments with events of that time, and the
            documents that these concern.
        lake_only: do not compare with the source.
        examples: how many findings of each kind to show.
    """

    collections: Sequence[str] = ()
    since: str | None = None
    until: str | None = None
    lake_only: bool = False
    examples: int = 20

    @property
    def window(self) -> Window:
        """The times, in seconds since 1970."""
        since, until = (int(datetime.fromisoformat(each).timestamp()) if each else None for each in self._times)
        return Window(since, until)

    @property
    def _times(self) -> tuple[str | None, str | None]:
        return self.since, self.until


class _Report(Struct):
    """The last line of the output."""

    clean: bool
    differences: dict[str, int]
    lake: Audited
    collections: dict[str, Compared]
    tables: dict[str, TableCompared]
    notes: list[str]


def verify(config: Config, options: Options, *, as_json: bool) -> int:
    """Compare, and print what differs; returns 1 if anything does, else 0.

    Raises:
        ConfigError: some of it cannot be compared, and nothing else differs.
        HeadraceError: of a server.
    """
    pa.set_memory_pool(pa.system_memory_pool())  # the default one keeps more of what is freed
    if config.sink.format != "parquet" and not options.lake_only:
        cause = f'the lake is written as "{config.sink.format}", and only Parquet can be read back'
        raise ConfigError("compare the lake with its source", cause, "Use --lake-only to check its objects alone.")
    with ExitStack() as stack:
        watch = stack.enter_context(steps(config, "verify"))
        run = _Verification(config, options, stack, watch)
        report = run.run()
    redact = config.redactor()
    _print(report, run.findings, redact, as_json=as_json)
    if run.failure is not None and not run.findings:
        raise run.failure
    return 0 if report.clean else 1


class _Verification:
    def __init__(self, config: Config, options: Options, stack: ExitStack, watch: Watch) -> None:
        self._config = config
        self._options = options
        self._stack = stack
        self._watch = watch
        self._objects = Objects(config.sink, config.retry)
        self._store = open_store(config.state, config.sink, read_only=True)
        stack.callback(self._store.close)
        self._retry = retrying(config.retry, what="the state store")
        self.findings = Findings(options.examples)
        self.failure: HeadraceError | None = None
        self._notes: list[str] = []

    def run(self) -> _Report:
        window = self._options.window
        named = [self._named(name) for name in self._options.collections]
        auditor = Auditor(self._objects, self._state, named or None, window, self.findings, self._watch)
        audited = auditor.run()
        for stream, seqs in audited.rewinds.items():
            numbers = ", ".join(map(str, seqs))
            self._notes.append(f"{stream} was rewound, on purpose, before segment {numbers}")
        compared = {} if self._options.lake_only else self._against_source(named, auditor.namespaces, window)
        tables = self._tables(named) if self._config.table.format != "none" and window == Window() else {}
        counts = {str(kind): count for kind, count in sorted(self.findings.counts.items())}
        return _Report(not self.findings and self.failure is None, counts, audited, compared, tables, self._notes)

    def _tables(self, named: Sequence[Namespace]) -> dict[str, TableCompared]:
        steps_done = count(1)

        def beat() -> None:
            self._watch("comparing tables", next(steps_done), 0)

        try:
            return compare_tables(self._config, self._objects, self._store, named, self.findings, beat)
        except HeadraceError as error:
            self.failure = self.failure or error
            self._notes.append(f"the tables were not compared: {error}")
            return {}

    def _named(self, name: str) -> Namespace:
        if database := self._config.source.database:
            return database, name
        database, _, collection = name.partition(".")
        if not collection:
            remedy = "Write <database>.<collection>, because the configuration watches the whole deployment."
            raise ConfigError("read --collections", f"{name!r} has no database", remedy)
        return database, collection

    def _state(self) -> State:
        try:
            plans: Sequence[Plan] = self._retry(Plans(self._store).read_all)
        except NoStateError:
            plans = ()
        return self._records(), plans

    def _records(self) -> dict[str, StreamRecord]:
        try:
            known = self._retry(self._store.read_all)
        except NoStateError:
            return {}
        return {name: read_record(fields) for name, (fields, _) in known.items()}

    # --- the source --------------------------------------------------------------------------------------

    def _against_source(
        self, named: Sequence[Namespace], namespaces: Iterable[Namespace], window: Window
    ) -> dict[str, Compared]:
        uri = self._config.source.uri
        client = self._stack.enter_context(connect(uri))
        members = Members(client, uri, self._config.backfill.read_preference)
        self._stack.callback(members.close)
        compared = {}
        for namespace in named or self._watched(namespaces):
            name = ".".join(namespace)
            try:
                if self._is_comparable(client, namespace):
                    compared[name] = self._compare(client, members, namespace, window)
                    self._explain(name, compared[name])
            except CappedCollectionError as error:
                self._notes.append(f"{name} was not compared: {error.cause}")
            except HeadraceError as error:  # what has been found so far is still worth reporting
                self.failure = self.failure or error
                self._notes.append(f"{name} was not compared: {error}")
                if not isinstance(error, ConfigError):
                    break
        return compared

    def _watched(self, landed: Iterable[Namespace]) -> list[Namespace]:
        """What the configuration captures: named by it, existing, or landed and no longer existing."""
        source = self._config.source
        specs = streams_of(source)
        named = {(database, name) for database, names in named_by_database(source).items() for name in names}
        gone = {each for each in landed if any(spec.covers(*each) for spec in specs)}
        return sorted({*named, *gone, *list_collections(self._config)})

    def _is_comparable(self, client: Client, namespace: Namespace) -> bool:
        database, collection = namespace
        with translated("list the collections"):
            entries = collection_entries(client, database, collection)
        if any(entry["type"] == "timeseries" for entry in entries):
            self._notes.append(
                f"{database}.{collection} is a time-series collection, whose documents have no keys"
            )
            return False
        return True

    def _compare(self, client: Client, members: Members, namespace: Namespace, window: Window) -> Compared:
        database, collection = namespace
        self._refuse_unloaded(namespace)
        normal = normal_of(self._config.schema, collection)
        at = self._passed(namespace)
        sides = Sides(self._objects, members, namespace, at, normal, self._config.retry, self.findings)
        comparison = Comparison(sides, self.findings, self._watch)
        if window != Window():
            return comparison.changed(window)
        with translated("count the documents"):
            expected = client[database][collection].estimated_document_count()
        return comparison.everything(expected)

    def _refuse_unloaded(self, namespace: Namespace) -> None:
        records, plans = self._state()
        mine = [each for each in plans if (each.database, each.collection) == namespace]
        if any(read_by(each, records) is None for each in mine):
            remedy = "Let it finish (see the command status), or use --lake-only."
            name = ".".join(namespace)
            raise ConfigError(f"compare {name} with its source", "its backfill is not finished", remedy)

    def _passed(self, namespace: Namespace) -> Callable[[], int | None]:
        """Gives the newest cluster time that every stream of a collection has passed; None if it has no stream."""

        def passed() -> int | None:
            positions = [
                (name, record.position)
                for name, record in self._records().items()
                if isinstance(record.spec, StreamSpec) and record.spec.covers(*namespace) and not record.closed
            ]
            for name, position in positions:
                if position is None:
                    remedy = "Start the engine first."
                    raise ConfigError(f"find where {name} stands", "it has not started yet", remedy)
            # A segment may end within a transaction: events of the very time of its end may still be to come.
            return (
                min((each.time for _, each in positions if each is not None), default=0) - 1 if positions else None
            )

        return passed

    def _explain(self, name: str, compared: Compared) -> None:
        database, _, collection = name.partition(".")
        records, plans = self._state()
        covered = any(
            isinstance(each.spec, StreamSpec) and each.spec.covers(database, collection)
            for each in records.values()
        )
        if not covered:
            self._notes.append(f"no change stream covers {name}: it was compared with the source as it is now")
        loaded = any(each.namespace == name and each.selection == Selection() for each in plans)
        if self.findings.counts["document_missing"] and not loaded:
            self._notes.append(f"{name}: {_NO_BACKFILL}")
        if compared.pending:
            what = "documents have updates of which the lake has only the changes; they could not be compared"
            self._notes.append(f"{name}: {compared.pending} {what} (see source.full_document)")
        if compared.unsettled:
            what = (
                "documents changed or were loaded after what the streams have passed; verify again while one runs"
            )
            self._notes.append(f"{name}: {compared.unsettled} {what}")
        if not compared.complete:
            self._notes.append(f"{name}: there are so many differences that the rest was not compared exactly")
        if self._config.source.pipeline:
            self._notes.append("what source.pipeline filters out or changes counts as a difference")


# --- output ----------------------------------------------------------------------------------------------


def _print(report: _Report, findings: Findings, redact: Callable[[str], str], *, as_json: bool) -> None:
    if as_json:
        for each in findings.examples:
            sys.stdout.write(redact(msgspec.json.encode(each).decode()) + "\n")
        sys.stdout.write(redact(msgspec.json.encode(report).decode()) + "\n")
        return
    from rich.text import Text

    from engine.commands.terminal import Terminal, print_details

    terminal = Terminal(soft_wrap=True)
    for kind, meaning in MEANINGS.items():
        if not (count := findings.counts[kind]):
            continue
        terminal.print(Text(f"{count:,} {meaning}", style="bold red"))
        shown = [each for each in findings.examples if each.kind == kind]
        for each in shown:
            terminal.print(Text(redact(f"  {each.where}: {each.key}"), overflow="fold"))
            terminal.print(Text(redact(f"    {each.what}"), overflow="fold"))
            for side in ("lake", "source"):
                if text := getattr(each, side):
                    terminal.print(Text(redact(f"    {side:6} {text}"), overflow="fold"))
        if count > len(shown):
            terminal.print(Text(f"  and {count - len(shown):,} more"))
    print_details("the lake", _facts(report.lake))
    for name, compared in report.collections.items():
        print_details(name, _compared_facts(compared))
    for name, table in report.tables.items():
        print_details(f"table {name}", {"files": f"{table.files:,}", "rows": f"{table.rows:,}"})
    for note in report.notes:
        terminal.print(Text(redact(f"note: {note}"), style="yellow"))
    verdict = ("clean", "green") if report.clean else ("there are differences", "bold red")
    if not report.clean and not findings:
        verdict = "not everything was compared", "bold red"
    terminal.print()
    terminal.print(Text(verdict[0], style=verdict[1]))


def _facts(audited: Audited) -> dict[str, str]:
    return {
        "streams": f"{audited.streams:,}",
        "segments": f"{audited.segments:,}",
        "objects": f"{audited.objects:,}",
        "rows": f"{audited.rows:,}",
    }


def _compared_facts(compared: Compared) -> dict[str, str]:
    times: tuple[Any, ...] = tuple(_iso(each) for each in (compared.first, compared.last) if each)
    return {
        "documents": f"{compared.source:,} in the source, {compared.lake:,} in the lake",
        "looked at twice": f"{compared.again:,}",
        "as of": " to ".join(dict.fromkeys(times)),
    }


def _iso(at: int) -> str:
    return datetime.fromtimestamp(split_time(at)[0], UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
