"""Documents that differ at first sight, looked at exactly: both sides as of one cluster time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from engine.lake.against_source.digests import digest
from engine.lake.against_source.shown import differing, extended_json, id_of
from engine.lake.against_source.sides import Sides, identity
from engine.lake.audit.findings import Finding, Findings, Kind
from engine.lake.folding.fold import PARTITIONS, Current, Fold, partition_of
from engine.source.snapshots import NoSnapshotError

FOLD_BYTES = 64 * 2**20
# How many bytes of documents are kept of each side, to be shown.
SHOWN_BYTES = 8 * 2**20
ROUNDS = 5
# What may have been read after the row's time, and so may be newer.
_READ_LATER = ("update", "read")


class _Document(NamedTuple):
    """One side of a difference: a hash of the document's normal form, and this itself if there was room for it.

    Nothing else of a document is ever shown: in the normal form there are no protected values.
    """

    digest: bytes
    normal: bytes | None


class _Difference(NamedTuple):
    """A difference.

    Attributes:
        may_pass: the lake's side may be newer than the source's.
        is_written: the document was written, or read by a backfill, after that time.
    """

    kind: Kind
    key: bytes
    lake: _Document | None
    source: _Document | None
    may_pass: bool = False
    is_written: bool = False


class Settling:
    """Decides about documents.

    Attributes:
        pending: how many cannot be compared, because the lake has only the changes of their updates.
        unsettled: how many are in the lake from a later time only, that the streams have not passed.
    """

    def __init__(self, sides: Sides, findings: Findings) -> None:
        self._sides = sides
        self._findings = findings
        self.pending = self.unsettled = 0

    def settle(self, wanted: Mapping[str, bytes]) -> None:
        """Decide about these documents, by ``_cdc_id``, each with a document that has only its ``_id``.

        Raises:
            ConfigError: the lake is too far behind.
        """
        at, left = self._sides.at(), dict(wanted)
        for attempt in range(1, ROUNDS + 1):
            try:
                found = self._differences(left, at)
            except NoSnapshotError as error:
                at = self._sides.advance(at, error)
                continue
            passing = {id_: each for id_, each in found.items() if each.may_pass}
            later = self._sides.beyond(at) if passing and attempt < ROUNDS else at
            is_last = later == at
            for id_, each in found.items():
                if id_ not in passing or (is_last and not each.is_written):
                    self._count(each)
            if not passing or is_last:
                self.unsettled += sum(each.is_written for each in passing.values())
                return
            at, left = later, {id_: left[id_] for id_ in passing}

    # --- comparing ---------------------------------------------------------------------------------------

    def _differences(self, wanted: Mapping[str, bytes], at: int | None) -> dict[str, _Difference]:
        source = self._source(list(wanted.values()), at)
        found = {}
        numbers = {partition_of(id_) for id_ in wanted}
        without = set(range(PARTITIONS)) - numbers
        by_partition: defaultdict[int, list[str]] = defaultdict(list)
        for id_ in wanted:
            by_partition[partition_of(id_)].append(id_)
        room = SHOWN_BYTES
        with Fold(at=at, memory=FOLD_BYTES, without=without) as fold:
            for rows in self._rows(wanted):
                fold.add(rows)
            for partition in fold.partitions():
                missing = set(by_partition[partition.number])
                for each in partition.documents:
                    if each.id not in missing:
                        continue
                    missing.remove(each.id)
                    difference = self._compared(each, wanted[each.id], source.get(each.id), room)
                    if difference is not None:
                        found[each.id] = difference
                        room -= len(difference.lake.normal or b"") if difference.lake else 0
                late = set(partition.unknown)
                for id_ in missing & source.keys():
                    # The lake may have it from a later time alone, as a row of a backfill or as the last update.
                    is_late = id_ in late
                    found[id_] = _Difference(
                        "document_missing", wanted[id_], None, source[id_], is_late, is_written=is_late
                    )
        return self._without_newer(found)

    def _source(self, keys: list[bytes], at: int | None) -> dict[str, _Document]:
        room, found = SHOWN_BYTES, {}
        for document in self._sides.look_up(keys, at):
            room -= len(document)
            found[identity(document)[0]] = self._document(document, keep=room >= 0)
        return found

    def _document(self, document: bytes, *, keep: bool) -> _Document:
        normal = self._sides.normal(document)
        return _Document(digest(normal), normal if keep else None)

    def _rows(self, wanted: Mapping[str, bytes]) -> Iterator[pa.RecordBatch]:
        ids = pa.array(wanted, pa.string())
        for rows in self._sides.rows():
            if "_cdc_id" in rows.schema.names:  # version 0.1 has none, and then the fold takes the row's key
                column = rows.column("_cdc_id")
                rows = rows.filter(pc.or_(pc.is_in(column, ids), pc.is_null(column)))  # noqa: PLW2901
            yield rows

    def _compared(self, lake: Current, key: bytes, source: _Document | None, room: int) -> _Difference | None:
        if lake.pending and (source is not None or lake.document is None):
            self.pending += 1
            return None
        assert lake.document is not None
        mine = self._document(lake.document, keep=room > 0)
        if source is not None and source.digest == mine.digest:
            return None
        kind: Kind = "document_extra" if source is None else "document_different"
        return _Difference(kind, key, mine, source, lake.operation in _READ_LATER, lake.next is not None)

    def _without_newer(self, found: dict[str, _Difference]) -> dict[str, _Difference]:
        """Without the documents of which the lake has what the source has now."""
        keys = [each.key for each in found.values() if each.may_pass and each.lake]
        now = self._source(keys, None) if keys else {}
        return {
            id_: each
            for id_, each in found.items()
            if not (each.lake and id_ in now and each.may_pass and now[id_].digest == each.lake.digest)
        }

    # --- reporting ---------------------------------------------------------------------------------------

    def _count(self, found: _Difference) -> None:
        self._findings.add(
            Finding(
                found.kind,
                self._sides.name,
                _sentence(found),
                id_of(found.key),
                *(extended_json(each) if each else "" for each in _parts(found)),
            )
        )


def _parts(found: _Difference) -> tuple[bytes | None, bytes | None]:
    """The lake's and the source's document, reduced to what differs if both are there."""
    lake = found.lake.normal if found.lake else None
    source = found.source.normal if found.source else None
    if lake is None or source is None:
        return lake, source
    return differing(lake, source)[1:]


def _sentence(found: _Difference) -> str:
    match found.kind:
        case "document_missing":
            return "the source has it, and the lake does not"
        case "document_extra":
            return "the lake has it, and the source does not"
    lake = found.lake.normal if found.lake else None
    source = found.source.normal if found.source else None
    if lake is None or source is None:
        return "its fields differ"
    return f"it differs in {', '.join(differing(lake, source)[0])}"
