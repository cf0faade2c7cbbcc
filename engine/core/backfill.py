"""The plan of a backfill: how a collection is divided into splits, and their progress.

A *split* is a range of a collection in index order: by ``_id``, whatever its types, or by the time field of a
time-series collection. It runs like a stream, with a lease, a record, segments and intents of its own. Its
positions are places in that order instead of resume tokens.

After a whole collection has been loaded into a lake that may hold older rows of it, one more row is written: the
*mark*, with the operation ``loaded`` and the cluster time at which the plan was made. It voids the older rows:
every document that still existed has been read since, and so has a row that is not older. The mark runs as one
more split, which is started after all others are committed, and has no documents to read.

Bounds and places are hexadecimal BSON of a document that has only the key, ``{"_id": ...}``, so that every type
keeps its exact value. Only the server compares them: it knows the order across types, and the collation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from engine.core.formats import damaged, decode_document, encode_document
from engine.core.naming import split_id
from engine.core.position import Position
from engine.core.records import StreamRecord, schema_document
from engine.core.specs import BackfillSpec, MarkSpec, SplitSpec

# The position after a split's last document: greater than every place.
END = "~"


def plan_document(namespace: str) -> str:
    """The name of the shared document that holds a collection's plan."""
    return f"backfill:{namespace}"


def make_place(count: int, key: str) -> str:
    """A place as a token: how many documents of the split lie up to and including it, and the last one's key.

    The count makes places sort as text.
    """
    return f"{count:016d}:{key}"


def split_place(token: str) -> tuple[int, str]:
    """A place's count and key; ``(0, "")`` for the start of a split."""
    count, _, key = token.partition(":")
    return int(count or "0"), key


class Selection(Struct, frozen=True):
    """Which documents of a collection to load.

    Attributes:
        filter: a query as Extended JSON; None for all.
        since, until: RFC 3339 times, ``until`` exclusive; None for no such bound.
    """

    filter: str | None = None
    since: str | None = None
    until: str | None = None

    def __str__(self) -> str:
        options = [("--filter", self.filter), ("--since", self.since), ("--until", self.until)]
        return " ".join(f"{name} {value!r}" for name, value in options if value) or "all documents"


class Plan(Struct, frozen=True):
    """One collection's backfill, as stored in the state store.

    Attributes:
        id: is in the objects' keys, so that another backfill never replaces objects of this one.
        selection: which documents were requested; see ``Selection``.
        lower, upper: where the first split starts and the last one ends; None for the collection's ends.
        bounds: where one split ends and the next one starts.
        order: the field that the splits are ordered by.
        whole: a split is always read from its start, because its keys are not unique.
        documents, size: the collection's estimated count and size in bytes.
        made: when the plan was made, in seconds since 1970.
        finished: when the backfill was finished, likewise; None for not yet.
        read: the number of documents read, once it is finished.
        schema: the version of the collection's schema at that time; None for none.
        since: the cluster time before which nothing of it was read, if it is to be marked as loaded.
        begun: the cluster time before which nothing of it was read; None in plans of earlier versions.
    """

    id: str
    database: str
    collection: str
    selection: Selection
    lower: str | None
    upper: str | None
    bounds: tuple[str, ...]
    documents: int
    size: int
    made: float
    order: str = "_id"
    whole: bool = False
    finished: float | None = None
    read: int = 0
    schema: int | None = None
    since: int | None = None
    begun: int | None = None

    @property
    def namespace(self) -> str:
        """Database and collection, as MongoDB writes them."""
        return f"{self.database}.{self.collection}"

    def has_all_since(self, time: int) -> bool:
        """Whether it loads the whole collection as of this cluster time or later."""
        return self.selection == Selection() and max(self.begun or 0, self.since or 0) >= time

    def splits(self) -> list[SplitSpec]:
        """The splits, in order."""
        edges = (self.lower, *self.bounds, self.upper)
        return [
            SplitSpec(
                split_id(self.database, self.collection, self.id, number),
                self.database,
                self.collection,
                lower,
                upper,
                self.selection.filter,
                self.order,
                self.whole,
            )
            for number, (lower, upper) in enumerate(pairwise(edges))
        ]

    def mark(self) -> MarkSpec | None:
        """The mark, if there is to be one."""
        if self.since is None:
            return None
        stream = split_id(self.database, self.collection, self.id, len(self.bounds) + 1)
        return MarkSpec(stream, self.database, self.collection, self.since)

    def specs(self) -> list[BackfillSpec]:
        """Everything to run: the splits, then the mark."""
        mark = self.mark()
        return [*self.splits(), *([mark] if mark is not None else [])]


def encode_plan(plan: Plan) -> str:
    """A plan as the shared document that holds it."""
    return encode_document(plan)


def decode_plan(text: str) -> Plan:
    """The plan in a shared document.

    Raises:
        ConfigError: it was written by a later version.
        StateLostError: it is damaged.
    """
    return decode_document(text, Plan, _PlanV1)


class _Index(Struct, frozen=True):
    collections: list[str]


def encode_index(namespaces: list[str]) -> str:
    """The list of collections that have plans, as a shared document."""
    return encode_document(_Index(namespaces))


def decode_index(text: str) -> list[str]:
    """The list in a shared document; in format 1 that is a bare list.

    Raises:
        ConfigError: it was written by a later version.
        StateLostError: it is damaged.
    """
    if text.startswith("["):
        try:
            return msgspec.json.decode(text, type=list[str])
        except msgspec.DecodeError as error:
            raise damaged("a shared document", str(error)) from error
    return decode_document(text, _Index, _Index).collections


class _SelectionV1(Struct, frozen=True):
    filter: str = ""
    since: str = ""
    until: str = ""


class _PlanV1(Struct, frozen=True):
    """A plan in format 1."""

    id: str
    database: str
    collection: str
    selection: _SelectionV1
    lower: str
    upper: str
    bounds: tuple[str, ...]
    documents: int
    size: int
    made: float
    order: str = "_id"
    whole: bool = False
    finished: float = 0.0
    read: int = 0
    schema: int = 0
    since: int = 0
    begun: int = 0

    def upgraded(self) -> Plan:
        """The plan in the current format."""
        selected = self.selection
        return Plan(
            self.id,
            self.database,
            self.collection,
            Selection(selected.filter or None, selected.since or None, selected.until or None),
            self.lower or None,
            self.upper or None,
            self.bounds,
            self.documents,
            self.size,
            self.made,
            self.order,
            self.whole,
            self.finished or None,
            self.read,
            self.schema or None,
            self.since or None,
            self.begun or None,
        )


class Progress(Struct, frozen=True):
    """The progress of a collection's backfill over all of its runs, as printed and served.

    Attributes:
        collection: its namespace.
        splits, documents: committed so far.
        bytes: bytes of BSON committed so far, estimated from the documents' mean size.
        documents_total, bytes_total: estimates, made with the plan.
        finished: seconds since 1970; None for not yet.
    """

    collection: str
    splits: int = 0
    splits_total: int = 0
    documents: int = 0
    documents_total: int = 0
    bytes: int = 0
    bytes_total: int = 0
    finished: float | None = None

    def plus(self, documents: int, splits: int = 0) -> Progress:
        """The progress after so many more documents and splits are in the lake."""
        documents += self.documents
        size = documents * self.bytes_total // max(1, self.documents_total)
        return replace(self, documents=documents, splits=self.splits + splits, bytes=size)


def is_end(position: Position | None) -> bool:
    """Whether this is the committed position of a split that is entirely in the lake."""
    return position is not None and position.token == END


def progress_of(plan: Plan, known: Mapping[str, StreamRecord]) -> Progress:
    """The progress that the records of a plan's splits add up to."""
    specs = plan.specs()
    nothing = Progress(plan.namespace, 0, len(specs), 0, plan.documents, 0, plan.size, plan.finished)
    if plan.finished:
        return nothing.plus(plan.read, len(specs))
    records = {spec: known[spec.stream] for spec in specs if spec.stream in known}
    rows = sum(record.rows for spec, record in records.items() if isinstance(spec, SplitSpec))
    return nothing.plus(rows, sum(is_end(record.position) for record in records.values()))


def not_loaded(record: StreamRecord, plans: Mapping[str, Plan]) -> list[str]:
    """The collections that were replaced and have not been loaded by any later plan since."""
    return [
        namespace
        for namespace, time in sorted(record.replaced.items())
        if (plan := plans.get(namespace)) is None or not (plan.finished and plan.has_all_since(time))
    ]


def latest_schema(plan: Plan, known: Mapping[str, StreamRecord]) -> int | None:
    """The latest version of the collection's schema in the records of a plan's splits; None if none has any."""
    name = schema_document(plan.database, plan.collection)
    splits = (known[spec.stream] for spec in plan.splits() if spec.stream in known)
    return max((record.schemas[name] for record in splits if name in record.schemas), default=None)


def left_to_read(plan: Plan, known: Mapping[str, StreamRecord]) -> list[BackfillSpec]:
    """The splits that are not in the lake yet: the one after all bounds first, and the mark last.

    The split after all bounds may be much longer than the others, because servers undersample recent documents. If
    it were started last, it would be read alone.
    """
    *splits, last = plan.splits()
    mark = plan.mark()
    order: list[BackfillSpec] = [last, *splits, *([mark] if mark is not None else [])]
    return [spec for spec in order if spec.stream not in known or not is_end(known[spec.stream].position)]


def thinned(keys: Sequence[str], splits: int) -> tuple[str, ...]:
    """The bounds of this many splits of about equal size, picked from a sorted sample of keys.

    There are fewer if the sample has fewer distinct keys: no two bounds are the same.
    """
    wanted = (keys[len(keys) * number // splits] for number in range(1, splits)) if keys else ()
    return tuple(dict.fromkeys(wanted))
