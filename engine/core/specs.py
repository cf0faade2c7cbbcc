"""What is read: a change stream, a split of a backfill, or the mark at the end of one.

A spec defines what its id stands for. It is stored in the stream's record, so that a change of it is noticed.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class StreamSpec(Struct, frozen=True, tag="stream", tag_field="kind"):
    """A change stream: what it watches, and with which options.

    Attributes:
        stream: the id, see ``naming.stream_id``.
        level: what the server watches.
        database: empty for the whole deployment.
        collections: for the level ``collection``, the one; for ``database``, those to include (empty: all).
        part, parts: which share of the documents, by a hash of ``_id``.
        carries_database: for a stream shared by several collections: it also carries the events that concern the
            whole database.
        pipeline: additional stages, as the Extended JSON text of a list.
    """

    stream: str
    level: Literal["collection", "database", "deployment"]
    database: str = ""
    collections: tuple[str, ...] = ()
    part: int = 0
    parts: int = 1
    carries_database: bool = False
    full_document: str = "default"
    full_document_before_change: str = "off"
    expanded_events: bool = False
    pipeline: str = "[]"

    @property
    def coverage(self) -> tuple[object, ...]:
        """What it covers, which determines its id: a stream with another coverage is another stream."""
        return self.level, self.database, self.collections, self.part, self.parts, self.carries_database

    def covers(self, database: str, collection: str) -> bool:
        """Whether the stream carries the events of a collection (all of them, or its part)."""
        if self.level == "deployment":
            return True
        return database == self.database and (not self.collections or collection in self.collections)


class _CollectionSpec(Struct, frozen=True, tag_field="kind"):
    stream: str
    database: str
    collection: str

    @property
    def namespace(self) -> str:
        """The collection, as MongoDB writes it."""
        return f"{self.database}.{self.collection}"

    @property
    def collections(self) -> tuple[str, ...]:
        """The one collection, in the form that a stream has it."""
        return (self.collection,)

    @property
    def coverage(self) -> tuple[object, ...]:
        """The whole spec: a split is never read in another way."""
        return (self,)

    def covers(self, database: str, collection: str) -> bool:
        """Whether this is the collection."""
        return (database, collection) == (self.database, self.collection)


class SplitSpec(_CollectionSpec, frozen=True, tag="split", tag_field="kind"):
    """A split of a backfill: a range of a collection, see ``core.backfill``.

    Attributes:
        stream: the id, see ``naming.split_id``.
        lower, upper: the first key, and the key after the last one; None for the ends of the collection.
        filter: a query as Extended JSON; None for all documents.
        order: the field in whose order it is read.
        whole: it is one segment, always read from its start, because its keys are not unique.
    """

    lower: str | None = None
    upper: str | None = None
    filter: str | None = None
    order: str = "_id"
    whole: bool = False


class MarkSpec(_CollectionSpec, frozen=True, tag="mark", tag_field="kind"):
    """The mark of a backfill, the row that voids a collection's older rows; see ``core.backfill``.

    Attributes:
        time: the cluster time at which the plan was made.
    """

    time: int


def one_collection(spec: Spec) -> str:
    """The collection that all events of a stream belong to; empty if they may belong to several."""
    is_shared = isinstance(spec, StreamSpec) and spec.level != "collection"
    return "" if is_shared else spec.collections[0]


BackfillSpec = SplitSpec | MarkSpec
Spec = StreamSpec | SplitSpec | MarkSpec
