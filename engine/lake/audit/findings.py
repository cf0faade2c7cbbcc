"""What a verification finds."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from msgspec import Struct

Kind = Literal[
    # of objects and segments
    "unreadable",
    "misplaced",
    "foreign",
    "object_missing",
    "object_doubled",
    "segment_missing",
    "segment_beyond",
    "no_record",
    "token_order",
    "token_outside",
    "token_twice",
    "rows_lost",
    "wrong_stamp",
    # of documents
    "document_missing",
    "document_extra",
    "document_different",
    # of tables
    "table_rows",
    "mirror_missing",
    "mirror_extra",
    "mirror_different",
]

MEANINGS: dict[Kind, str] = {
    "unreadable": "objects that cannot be read as they were written",
    "misplaced": "objects under a key that is not theirs",
    "foreign": "files that the engine did not write, where queries take them for objects",
    "object_missing": "segments that lack some of their objects",
    "object_doubled": "segments with an object too many",
    "segment_missing": "segments of which there is no object",
    "segment_beyond": "segments that the state store does not know of",
    "no_record": "streams that the state store does not know of",
    "token_order": "segments whose events are not later than those of the one before",
    "token_outside": "objects with events outside their segment's range",
    "token_twice": "segments with an event that is in the stream twice",
    "rows_lost": "objects with fewer or more rows than were written",
    "wrong_stamp": "objects whose rows name another segment",
    "document_missing": "documents of the source that are not in the lake",
    "document_extra": "documents of the lake that are not in the source",
    "document_different": "documents that are not the same in lake and source",
    "table_rows": "segments of which a table has other rows than the lake",
    "mirror_missing": "documents of the lake that a mirror does not have",
    "mirror_extra": "documents of a mirror that the lake does not have",
    "mirror_different": "documents that are not the same in a mirror and the lake",
}


class Finding(Struct, frozen=True):
    """One difference.

    Attributes:
        where: the segment or the collection.
        what: a sentence.
        key: the object's key below ``sink.url``, or the document's ``_id`` as Extended JSON.
        lake, source: the two documents that differ, as Extended JSON, cut short.
    """

    kind: Kind
    where: str
    what: str
    key: str = ""
    lake: str = ""
    source: str = ""


class Findings:
    """Counts findings, and keeps the first ``limit`` of each kind."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.counts: Counter[Kind] = Counter()
        self.examples: list[Finding] = []

    def add(self, finding: Finding) -> None:
        """Count one."""
        self.counts[finding.kind] += 1
        if self.counts[finding.kind] <= self._limit:
            self.examples.append(finding)

    @property
    def documents(self) -> int:
        """How many of them are of documents."""
        return sum(count for kind, count in self.counts.items() if kind.startswith("document_"))

    def __bool__(self) -> bool:
        return bool(self.counts)
