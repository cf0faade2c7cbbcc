"""The plan of a backfill: how a collection is divided into splits, and how far they have come.

A *split* is a range of a collection in the order of an index: of ``_id``, whatever types it has, or of the
time field of a time-series collection. It is run as a stream is: with a lease, a record, segments and intents
of its own. Its positions are places in that order instead of resume tokens.

When a whole collection has been loaded into a lake that may hold older rows of it, one row more is written: the
*mark*, with the operation ``loaded`` and the cluster time at which the plan was made. It voids the older rows:
what was still there has been read since, and has rows that are not older. The mark is run as one more split, which
is begun when all others are committed, and has no documents to read.

Bounds and places are hexadecimal BSON of a document with the key alone, ``{"_id": ...}``, so that every type
keeps its exact value. Only the server compares them: it knows the order across types, and the collation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from msgspec import Struct
from msgspec.structs import replace

from engine.core.messages import StreamSpec
from engine.core.naming import split_id
from engine.core.position import Position
from engine.core.records import StreamRecord, schema_document

# The position behind a split's last document: greater than every place.
END = "~"


def plan_document(namespace: str) -> str:
    """The name of the shared document that holds a collection's plan."""
    return f"backfill:{namespace}"


def make_place(count: int, key: str) -> str:
    """A place as a token: how many documents of the split lie up to it, and the key of the last of them.

    The count makes the order of places the order of their text.
    """
    return f"{count:016d}:{key}"


def split_place(token: str) -> tuple[int, str]:
    """A place's two parts; ``(0, "")`` for the start of a split."""
    count, _, key = token.partition(":")
    return int(count or "0"), key


class Selection(Struct, frozen=True):
    """Which documents of a collection are wanted.

    Attributes:
        filter: a query as Extended JSON; empty for all.
        since, until: RFC 3339 times, the second one excluded; empty for none.
    """

    filter: str = ""
    since: str = ""
    until: str = ""

    def __str__(self) -> str:
        parts = [("--filter", self.filter), ("--since", self.since), ("--until", self.until)]
        return " ".join(f"{name} {value!r}" for name, value in parts if value) or "all documents"


class Plan(Struct, frozen=True):
    """One collection's backfill, as it is kept in the state store.

    Attributes:
        id: is part of the objects' keys, so that another backfill never replaces objects of this one.
        selection: which documents were asked for; see ``Selection``.
        lower, upper: where the first split begins and the last one ends; empty for the collection's ends.
        bounds: where one split ends and the next one begins.
        order: the field in whose order the splits lie.
        whole: a split is read from its start each time, because its order has equal keys.
        documents, size: estimates of what there is, in bytes for ``size``.
        made, finished: seconds since 1970; 0 for not yet.
        read: documents that were read, once it is finished.
        schema: the version of the collection's schema by then; 0 for none.
        since: the cluster time before which nothing of it was read, when it is to be marked as loaded; else 0.
        begun: the cluster time before which nothing of it was read; 0 in plans of earlier versions.
    """

    id: str
    database: str
    collection: str
    selection: Selection
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

    @property
    def namespace(self) -> str:
        """Database and collection, as MongoDB writes them."""
        return f"{self.database}.{self.collection}"

    def has_all_since(self, time: int) -> bool:
        """Whether it loads the whole collection as it was at this cluster time or later."""
        return self.selection == Selection() and max(self.begun, self.since) >= time

    def splits(self) -> list[StreamSpec]:
        """What is to be read, in order; then the mark, if it is to get one."""
        edges = (self.lower, *self.bounds, self.upper)
        splits = [
            StreamSpec(
                stream=split_id(self.database, self.collection, self.id, number),
                level="split",
                database=self.database,
                collections=(self.collection,),
                lower=lower,
                upper=upper,
                filter=self.selection.filter,
                order=self.order,
                whole=self.whole,
            )
            for number, (lower, upper) in enumerate(pairwise(edges))
        ]
        if self.since:
            stream = split_id(self.database, self.collection, self.id, len(splits))
            splits.append(StreamSpec(stream, "split", self.database, (self.collection,), closes=self.since))
        return splits


class Progress(Struct, frozen=True):
    """How far a collection's backfill has come, over all of its runs; also as it is printed and served.

    Attributes:
        collection: its namespace.
        splits, documents: committed so far.
        bytes: of BSON, committed so far, by the documents' mean size.
        documents_total, bytes_total: estimates, made with the plan.
        finished: seconds since 1970; 0 for not yet.
    """

    collection: str
    splits: int = 0
    splits_total: int = 0
    documents: int = 0
    documents_total: int = 0
    bytes: int = 0
    bytes_total: int = 0
    finished: float = 0.0

    def plus(self, documents: int, splits: int = 0) -> Progress:
        """With so many more documents and splits in the lake."""
        documents += self.documents
        size = documents * self.bytes_total // max(1, self.documents_total)
        return replace(self, documents=documents, splits=self.splits + splits, bytes=size)


def is_end(position: Position | None) -> bool:
    """Whether all of a split whose committed position this is is in the lake."""
    return position is not None and position.token == END


def progress_of(plan: Plan, known: Mapping[str, StreamRecord]) -> Progress:
    """What the records of a plan's splits add up to."""
    splits = plan.splits()
    nothing = Progress(plan.namespace, 0, len(splits), 0, plan.documents, 0, plan.size, plan.finished)
    if plan.finished:
        return nothing.plus(plan.read, len(splits))
    records = {spec: known[spec.stream] for spec in splits if spec.stream in known}
    rows = sum(record.rows for spec, record in records.items() if not spec.closes)
    return nothing.plus(rows, sum(is_end(record.position) for record in records.values()))


def not_loaded(record: StreamRecord, plans: Mapping[str, Plan]) -> list[str]:
    """The collections that were replaced, and of which no plan that was made later has been carried out."""
    return [
        namespace
        for namespace, time in sorted(record.replaced.items())
        if (plan := plans.get(namespace)) is None or not (plan.finished and plan.has_all_since(time))
    ]


def latest_schema(plan: Plan, known: Mapping[str, StreamRecord]) -> int:
    """The version of the collection's schema that the records of a plan's splits tell of."""
    name = schema_document(plan.database, plan.collection)
    splits = (known[spec.stream] for spec in plan.splits() if spec.stream in known)
    return max((record.schemas.get(name, 0) for record in splits), default=0)


def left_to_read(plan: Plan, known: Mapping[str, StreamRecord]) -> list[StreamSpec]:
    """The splits that are not in the lake yet, the one behind all bounds first, and the mark last.

    The former may be much longer than the others: servers sample what has come last too rarely. Begun last, it
    would be read alone.
    """
    splits = plan.splits()
    last = len(plan.bounds)
    return [
        spec
        for spec in (splits[last], *splits[:last], *splits[last + 1 :])
        if spec.stream not in known or not is_end(known[spec.stream].position)
    ]


def thinned(keys: Sequence[str], parts: int) -> tuple[str, ...]:
    """Bounds of so many parts, about equal, out of a sample of keys in their order.

    Fewer where the sample has fewer different keys: no two bounds are the same.
    """
    wanted = (keys[len(keys) * number // parts] for number in range(1, parts)) if keys else ()
    return tuple(dict.fromkeys(wanted))
