"""A collection in the lake compared with its source, document by document, while writers go on.

What differs is looked at twice, for a reason:

1. *Broadly*, here. The source is read range by range, each as of a cluster time that the lake has already passed;
   the lake is folded to its end. Documents that are the same need no second look. The others may only have
   changed between the range's time and the lake's end.
2. *Exactly* (``settling``). The others are looked up as of one cluster time, and the lake is folded to that time.

What the lake has under ``update_lookup`` is the document as it was a little after the event, and a document that a
backfill read is one from a little after its row's time. A difference in such a document counts only if it is still
there some time later, and if the lake does not have what the source has by then.

The documents are compared as documents: those of the lake are made from its columns by
``documents.inverse``, those of the source are as the server sent them, and both are brought into the form of
``documents.comparison``. The decoder that wrote the lake has no part in that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from engine.core.specs import SplitSpec
from engine.lake.against_source.candidates import Candidates
from engine.lake.against_source.digests import Digests, Partition, digest
from engine.lake.against_source.settling import Settling
from engine.lake.against_source.sides import Sides, id_text, identity
from engine.lake.audit.findings import Findings
from engine.lake.audit.segments import Window
from engine.lake.documents.inverse import documents
from engine.lake.folding.fold import PARTITIONS, Current, Fold
from engine.source.snapshots import SnapshotScan

FOLD_BYTES = 96 * 2**20
# Documents that are looked at exactly at once: their ids and hashes are in memory.
CHUNK = 50_000
# With so many differences, the rest of the collection is not looked at exactly.
ENOUGH = 100_000
_MATCH_ROWS = 1024


class Compared(Struct):
    """What was compared.

    Attributes:
        source, lake: how many documents each has.
        again: how many of them were looked at exactly.
        pending: documents that cannot be compared, because the lake has only the changes of their updates.
        unsettled: documents that changed, or were loaded, after the time that the streams have passed.
        first, last: the cluster times of the first and the last range; 0 for none.
        complete: False if there were so many differences that the rest was not looked at.
    """

    source: int = 0
    lake: int = 0
    again: int = 0
    pending: int = 0
    unsettled: int = 0
    first: int = 0
    last: int = 0
    complete: bool = True


class Comparison:
    """Compares one collection. State: what has been counted. Owner: the command.

    Args:
        watch: called with what is being done, how much of it is done, and of how much.
    """

    def __init__(self, sides: Sides, findings: Findings, watch: Callable[[str, int, int], None]) -> None:
        self._sides = sides
        self._findings = findings
        self._watch = watch
        self._settling = Settling(sides, findings)
        self._compared = Compared()

    def everything(self, expected: int) -> Compared:
        """Compare all documents; ``expected`` is about how many there are.

        Raises:
            ConfigError: the lake is too far behind.
            HeadraceError: of a server.
        """
        with Candidates() as candidates:
            with Digests() as digests, Fold(memory=FOLD_BYTES) as fold:
                self._read_source(digests, expected)
                for rows in self._sides.rows():
                    fold.add(rows)
                    self._watch("lake", fold.rows, 0)
                for partition in fold.partitions():
                    self._match(partition.documents, digests.partition(partition.number), candidates)
                    self._watch("compare", partition.number + 1, PARTITIONS)
            return self._exactly(candidates)

    def changed(self, window: Window) -> Compared:
        """Compare the documents that have rows of these cluster times.

        Raises:
            ConfigError, HeadraceError: as ``everything``.
        """
        with Candidates() as candidates:
            for rows in self._sides.rows():
                for document in documents(rows.filter(_is_within(rows, window))):
                    candidates.add(*identity(document))
                self._watch("lake", len(candidates), 0)
            self._compared.source = self._compared.lake = len(candidates)
            return self._exactly(candidates)

    def _read_source(self, digests: Digests, expected: int) -> None:
        spec = SplitSpec("", self._sides.database, self._sides.collection)
        scan = SnapshotScan(self._sides.members, spec, self._sides.at)
        try:
            is_last = False
            while not is_last:
                reply = self._sides.fresh(scan.next)
                is_last = reply.is_last
                self._compared.first = self._compared.first or scan.time
                self._compared.last = scan.time or self._compared.last
                for document in map(reply.document, range(len(reply))):
                    digests.add(*identity(document), self._sides.normal(document))
                self._watch("source", digests.documents, expected)
        finally:
            scan.close()
        self._compared.source = digests.documents

    def _match(self, lake: Iterator[Current], source: Partition, candidates: Candidates) -> None:
        while chunk := list(islice(lake, _MATCH_ROWS)):
            self._compared.lake += len(chunk)
            found = source.match([self._digests(each) for each in chunk])
            for each, matched in zip(chunk, found, strict=True):
                if each.pending and (matched != "absent" or each.document is None):
                    self._compared.pending += 1
                elif matched != "same" and each.document is not None:
                    candidates.add(each.id, identity(each.document)[1])
        for key in source.unmatched():
            candidates.add(id_text(key), key)

    def _digests(self, each: Current) -> tuple[bytes, bytes]:
        return digest(each.id.encode()), digest(self._sides.normal(each.document or b""))

    def _exactly(self, candidates: Candidates) -> Compared:
        total = len(candidates)
        for chunk in candidates.chunks(CHUNK):
            if self._findings.documents >= ENOUGH:
                self._compared.complete = False
                break
            self._settling.settle(chunk)
            self._compared.again += len(chunk)
            self._watch("exactly", self._compared.again, total)
        self._compared.pending += self._settling.pending
        self._compared.unsettled += self._settling.unsettled
        return self._compared


def _is_within(rows: pa.RecordBatch, window: Window) -> pa.Array:
    """Which rows are of documents, and of these times; or of a time that a pipeline has removed."""
    milliseconds = rows.column("_cdc_cluster_time").cast(pa.int64())
    since = 0 if window.since is None else window.since * 1000
    until = 2**62 if window.until is None else window.until * 1000
    is_in = pc.and_(pc.greater_equal(milliseconds, since), pc.less(milliseconds, until))
    return pc.and_(pc.fill_null(is_in, True), pc.is_valid(rows.column("_cdc_key")))
