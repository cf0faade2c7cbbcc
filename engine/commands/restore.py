"""The command ``restore``: a collection as it stood, from the lake into a MongoDB server or a file."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import msgspec
import pyarrow as pa
from msgspec import Struct

from engine.backfill.plans import Plans
from engine.commands.steps import Watch, steps
from engine.config import Config
from engine.config.expansion import Expansion, Problems
from engine.core.records import read_record, schema_document
from engine.core.restoring import EXAMPLES, Doubts, Job, told
from engine.core.schemas import decode_schema
from engine.decode.schema import arrow_schema
from engine.errors import ConfigError, FatalError, url_without_password
from engine.failpoints import failpoint
from engine.lake.bson_file import BsonFile
from engine.lake.documents.inverse import UNTOLD
from engine.lake.folding.fold import PARTITIONS, Current, Fold
from engine.lake.folding.reading import rows_until
from engine.lake.moment import Moments
from engine.lake.objects import Objects
from engine.retries import retrying
from engine.source.target import MongoTarget
from engine.state.opening import open_store

# Documents that are written at once: so many, or so many bytes.
_DOCUMENTS, _BYTES = 1000, 16 * 2**20
# How often it is recorded which parts are written.
_SAVE_EVERY_S = 2.0
# With these, what an update shows as its document is the one right after it.
_POST_IMAGES = ("required", "when_available")
_ENDING = ".bson.zst"


class Options(Struct, frozen=True):
    """What to restore.

    Attributes:
        collection: ``<database>.<collection>``; None for the only one that the configuration names.
        at: a cluster time; None for the newest.
        to: a connection string, or a path that ends in ``.bson.zst``.
        name: ``<database>.<collection>`` to write to; None for the same.
        drop: remove what is there.
        work: where rows wait that do not fit into memory; None for the system's temporary directory.
    """

    to: str
    collection: str | None = None
    at: int | None = None
    name: str | None = None
    drop: bool = False
    work: Path | None = None


class Report(Struct):
    """What was restored; the doubts are those of ``core.restoring``."""

    collection: str
    at: str
    to: str
    documents: int
    bytes: int
    exact: bool
    pending: Doubts
    missing: Doubts
    newer: Doubts
    unknown: Doubts
    untold: Sequence[str]
    notes: Sequence[str]


class Target(Protocol):
    """Where documents go; see ``source.target`` and ``lake.bson_file``."""

    where: str

    def begin(self, job: Job, *, given: bool, drop: bool) -> Job:
        """Start a restore, or continue the one that is there."""

    def write(self, documents: Sequence[bytes]) -> None:
        """Write documents."""

    def save(self, job: Job) -> None:
        """What was written so far is done; ``job`` says so."""

    def finish(self) -> None:
        """Everything is written."""

    def close(self) -> None:
        """Let go of it."""


def restore(config: Config, options: Options, *, as_json: bool) -> int:
    """Restore, and report; returns the exit code.

    Raises:
        ConfigError: the moment, the lake or the target does not allow it.
        HeadraceError: of a server.
    """
    pa.set_memory_pool(pa.system_memory_pool())  # the default one keeps more of what is freed
    database, collection = namespace = _namespace(config, options.collection)
    if config.sink.format != "parquet":
        cause = f'the lake is written as "{config.sink.format}", and only Parquet can be read back'
        raise ConfigError(
            f"restore {database}.{collection}", cause, 'Only sink.format = "parquet" can be restored.'
        )
    moments, known = _known(config, database, collection)
    at = moments.choose(options.at)
    with ExitStack() as stack:
        target = _target(config, options, namespace)
        stack.callback(target.close)
        job = Job(url_without_password(config.sink.url).rstrip("/"), f"{database}.{collection}", at)
        job = target.begin(job, given=options.at is not None, drop=options.drop)
        watch = stack.enter_context(steps(config, "restore"))
        run = _Restore(config, target, job, moments, watch)
        try:
            run.run(stack.enter_context(_fold(config, options, job, known)), namespace)
        except OSError as error:  # those of the store have become ours
            remedy = "Make room (rows wait in --work), and run the same command again: it continues."
            raise FatalError(f"restore {job.namespace}", str(error), remedy) from error
        except KeyboardInterrupt:
            sys.stderr.write(
                f"interrupted after {len(job.done)} of {PARTITIONS} parts; the same command continues\n"
            )
            return 128 + signal.SIGINT
    report = Report(
        job.namespace, told(job.at), target.where, job.documents, job.bytes, run.is_exact,
        job.pending, job.missing, job.newer, job.unknown, run.untold, run.notes,
    )  # fmt: skip
    _print(report, as_json=as_json)
    return 0


def _namespace(config: Config, name: str | None) -> tuple[str, str]:
    source = config.source
    if name is None:
        if source.watch != "collections" or len(source.collections) != 1:
            remedy = "Name one, as <database>.<collection>, with --collection."
            raise ConfigError("restore a collection", "the configuration does not name exactly one", remedy)
        return source.database, source.collections[0]
    return _split(name, "--collection")


def _split(name: str, option: str) -> tuple[str, str]:
    database, dot, collection = name.partition(".")
    if not (database and dot and collection):
        raise ConfigError(
            f"read {option}", f"{name!r} is not <database>.<collection>", "For example: shop.orders."
        )
    return database, collection


def _known(config: Config, database: str, collection: str) -> tuple[Moments, pa.Schema | None]:
    """What the state store knows of the collection: its streams, its backfill, its schema."""

    def read() -> tuple[Moments, pa.Schema | None]:
        store = open_store(config.state, config.sink, read_only=True)
        try:
            records = {name: read_record(fields) for name, (fields, _) in store.read_all().items()}
            plan = Plans(store).read(f"{database}.{collection}")
            text = store.read_shared(schema_document(database, collection))[1]
        finally:
            store.close()
        schema = arrow_schema(decode_schema(text)) if text else None
        return Moments(records, plan, database, collection), schema

    found: tuple[Moments, pa.Schema | None] = retrying(config.retry, what="the state store")(read)
    return found


def _target(config: Config, options: Options, namespace: tuple[str, str]) -> Target:
    problems = Problems()
    to: str = Expansion(os.environ, problems).expand(options.to, "--to")
    if problems.found:
        raise ConfigError("read --to", "; ".join(problems.found), "Set it, or write the value itself.")
    if "://" in to:
        database, collection = _split(options.name, "--as") if options.name else namespace
        return MongoTarget(to, database, collection, retrying(config.retry, what="the target"))
    if not to.endswith(_ENDING):
        remedy = "Give a connection string (mongodb://...), or a file whose name ends in .bson.zst."
        raise ConfigError("read --to", f"{options.to!r} is neither", remedy)
    return BsonFile(Path(to))


def _fold(config: Config, options: Options, job: Job, known: pa.Schema | None) -> Fold:
    memory = config.memory.limit // 4
    return Fold(at=job.at, memory=memory, directory=options.work, known=known, without=job.done)


class _Restore:
    """One run. State: what was seen that makes the result inexact (in ``job``). Owner: the command."""

    def __init__(self, config: Config, target: Target, job: Job, moments: Moments, watch: Watch) -> None:
        self._config = config
        self._target = target
        self._job = job
        self._moments = moments
        self._watch = watch
        self._is_looked_up = config.source.full_document not in _POST_IMAGES
        # In raw events, too, protected fields are protected.
        self.untold = UNTOLD if not config.schema.raw else UNTOLD[-1:] if config.schema.protect else ()
        self.notes = [] if moments.is_loaded() else [
            "no backfill of the whole collection is known: documents that were there before the capture began "
            "and have not changed since are not in the lake"
        ]  # fmt: skip

    @property
    def is_exact(self) -> bool:
        """Whether nothing is in doubt but what columns do not tell."""
        job = self._job
        return not (job.pending.count or job.missing.count or job.newer.count or job.unknown.count)

    def run(self, fold: Fold, namespace: tuple[str, str]) -> None:
        """Read the lake, and write the documents that are not written yet."""
        job = self._job
        if len(job.done) < PARTITIONS:
            for rows in rows_until(Objects(self._config.sink, self._config.retry), *namespace, job.at):
                fold.add(rows)
                self._watch("read rows", fold.rows, 0)
        next_at = 0.0
        for partition in fold.partitions():
            for documents in _chunks(map(self._seen, partition.documents)):
                self._target.write(documents)
                failpoint("restore_written")
                job.documents += len(documents)
                job.bytes += sum(map(len, documents))
            for id_ in partition.unknown:
                job.unknown.add(id_)
            job.done.append(partition.number)
            if time.monotonic() >= next_at:
                self._target.save(job)
                failpoint("restore_saved")
                next_at = time.monotonic() + _SAVE_EVERY_S
            self._watch("write parts", len(job.done), PARTITIONS)
        self._target.finish()

    def _seen(self, each: Current) -> bytes | None:
        """The document, once it is noted what is in doubt about it."""
        job = self._job
        if each.document is None:
            job.missing.add(each.id)
        elif each.pending:
            job.pending.add(each.id)
        elif self._may_be_newer(each):
            job.newer.add(each.id)
        return each.document

    def _may_be_newer(self, each: Current) -> bool:
        """Whether the document may have been looked up, or read by a backfill, after the next change of it."""
        if each.next is None:
            return False
        if each.operation == "read":
            return not self._moments.has_read_before(each.next.time)
        return each.operation == "update" and self._is_looked_up


def _chunks(documents: Iterator[bytes | None]) -> Iterator[list[bytes]]:
    found: list[bytes] = []
    size = 0
    for document in documents:
        if document is not None:
            found.append(document)
            size += len(document)
        if len(found) == _DOCUMENTS or size > _BYTES:
            yield found
            found, size = [], 0
    if found:
        yield found


_DOUBTS = {
    "pending": "have later updates, of which the lake has only the description",
    "missing": "are not restored: the lake has nothing but such updates of them",
    "newer": "may be newer: what the lake has was looked up (or read by a backfill) some time after the event, "
    "and they changed again",
    "unknown": "may have existed: the lake has them only from a later time",
}


def _print(report: Report, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return
    from engine.commands.terminal import print_details

    facts = {"as of": report.at, "to": report.to, "documents": f"{report.documents:,}"}
    print_details(report.collection, facts)
    doubts: dict[str, str] = {}
    for name, meaning in _DOUBTS.items():
        found: Doubts = getattr(report, name)
        if found.count:
            more = ", ..." if found.count > len(found.examples) else ""
            doubts[name] = f"{found.count:,} {meaning}: {', '.join(found.examples[:EXAMPLES])}{more}"
    if doubts:
        print_details("Documents that are not exact", doubts)
    if report.untold:
        told_apart = {f"{number}": text for number, text in enumerate(report.untold, 1)}
        print_details("What the columns do not tell", told_apart)
    for note in report.notes:
        print_details("Note", {"": note})
