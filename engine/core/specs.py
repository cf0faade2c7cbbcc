"""What is read: a change stream, a split of a backfill, or the mark at the end of one.

A spec defines what its id stands for. It is stored in the stream's record, so that a change of it is noticed.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from engine.core.patterns import SEPARATOR, Glob, divide, escape, have_common, matches, parse

# All names of databases and collections: neither is empty.
_LEGAL: list[Glob] = [(*parse("?*"), SEPARATOR, *parse("?*"))]


class StreamSpec(Struct, frozen=True, tag="stream", tag_field="kind"):
    """A change stream: what it watches, and with which options.

    Attributes:
        stream: the id, see ``naming.stream_id``.
        level: what the server watches.
        database: empty for the whole deployment.
        collections: for the level ``collection``, the one; for ``database``, those to include by name.
        patterns: those to include by pattern (see ``core.patterns``), ``<database>.<collection>`` for the whole
            deployment. Without names and patterns, all are included.
        exclude: patterns of the same form: what the patterns do not include.
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
    patterns: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def coverage(self) -> tuple[object, ...]:
        """What it covers, which determines its id: a stream with another coverage is another stream."""
        names = self.collections, self.patterns, self.exclude
        return self.level, self.database, *names, self.part, self.parts, self.carries_database

    @property
    def named(self) -> tuple[str, ...]:
        """Its collections, if all of them are known by name; else empty."""
        return () if self.patterns else self.collections

    def covers(self, database: str, collection: str) -> bool:
        """Whether the stream carries the events of a collection (all of them, or its part)."""
        if self.level != "deployment" and database != self.database:
            return False
        if collection in self.collections or not (self.collections or self.patterns):
            return True
        included = any(self._matches(each, database, collection) for each in self.patterns)
        return included and not any(self._matches(each, database, collection) for each in self.exclude)

    def _matches(self, pattern: str, database: str, collection: str) -> bool:
        if self.level != "deployment":
            return matches(pattern, collection)
        of_database, of_collection = divide(pattern)
        return matches(of_database, database) and matches(of_collection, collection)

    def meets(self, other: StreamSpec) -> bool:
        """Whether there can be a collection that both carry, in part at least; it need not exist."""
        if self.named and other.named:
            return self.database == other.database and bool(set(self.named) & set(other.named))
        if any(other.covers(self.database, each) for each in self.collections):
            return True
        if any(self.covers(other.database, each) for each in other.collections):
            return True
        if self.named or other.named:
            return False
        selected, excluded = [_LEGAL], []
        for each in (self, other):
            selected.append([each._glob(pattern) for pattern in each.patterns or each._everything])
            excluded += [each._glob(pattern) for pattern in each.exclude]
        return have_common(selected, excluded)

    @property
    def _everything(self) -> tuple[str, ...]:
        return ("*.*",) if self.level == "deployment" else ("*",)

    def _glob(self, pattern: str) -> Glob:
        """A pattern of whole namespaces."""
        of = divide(pattern) if self.level == "deployment" else (escape(self.database), pattern)
        return (*parse(of[0]), SEPARATOR, *parse(of[1]))


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
    def named(self) -> tuple[str, ...]:
        """The same, as the collections that are known by name."""
        return self.collections

    @property
    def patterns(self) -> tuple[str, ...]:
        """None."""
        return ()

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
