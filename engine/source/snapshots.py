"""A collection read at one cluster time after another, to compare it with the lake.

The server keeps the past of a collection for a few minutes only (``minSnapshotHistoryWindowInSeconds``). So a
collection is read in ranges of keys, each with a cursor of its own and at a time of its own. All documents of a
range are those of its time, whatever is written meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo.errors import OperationFailure, PyMongoError

from engine.core.position import Position, make_time, split_time
from engine.core.specs import SplitSpec
from engine.errors import ConfigError, HeadraceError
from engine.rawbson.elements import TIMESTAMP, UNDEFINED, find
from engine.source.failures import translate
from engine.source.reply import Reply
from engine.source.scan import Documents, SplitScan
from engine.source.session import Members

# Each range is read for about this long. One that was too long for the server is continued from where it failed.
RANGE_S = 30.0
REPLY_SIZE = 2**20
# SnapshotTooOld and SnapshotUnavailable: the server no longer has that time, or does not have it yet.
_NO_SNAPSHOT = (239, 246)
_UNSUPPORTED = (72, 2, 40415, 123)
# Where the value begins in a document that has only an _id: after its length, the type and the name.
_VALUE_AT = 9
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)

# The cluster time to read at; None for the server to choose.
At = Callable[[], int | None]


class NoSnapshotError(HeadraceError):
    """The server does not have the collection as it was at that time."""


class CappedCollectionError(ConfigError):
    """MongoDB does not read a capped collection as of a time."""


class SnapshotScan(SplitScan):
    """Reads a range of a collection, at the time that ``at`` gives whenever a cursor is opened.

    Attributes:
        time: the cluster time of the last reply.
    """

    def __init__(self, members: Members, spec: SplitSpec, at: At) -> None:
        super().__init__(members, spec, Position(), reply_size=REPLY_SIZE)
        self._at = at
        self._opened_at = 0.0
        self.time = 0

    def next(self) -> Documents:
        """As of ``SplitScan``; begins a new range when the last one has taken long enough."""
        if self._cursor.is_open and time.monotonic() - self._opened_at > RANGE_S:
            self._cursor.end()
        return super().next()

    def _find(self, query: dict[str, Any], options: dict[str, Any]) -> Documents:
        self._opened_at = time.monotonic()
        command = {"find": self._collection, "filter": query, "batchSize": self._batch_size, **options}
        at = self._at()
        raw = self._cursor.open(command | {"readConcern": _concern(at)})
        reply, time_of_reply = self._documents(raw), _time_of(raw)
        if time_of_reply is None and len(reply):  # of a collection that does not exist it says none
            remedy = "Use MongoDB 5.0 or later, a replica set or a sharded cluster; or use --lake-only."
            raise ConfigError(self._operation, "the server does not say of which time its snapshot is", remedy)
        self.time = time_of_reply or at or 0
        return reply

    def _translated(self, error: PyMongoError) -> HeadraceError:
        return _translated(self._operation, error) or super()._translated(error)


def find_at(
    members: Members, database: str, collection: str, ids: Sequence[bytes], at: int | None
) -> Iterator[bytes]:
    """The documents with these ``_id``s, as they were at a cluster time, or as they are (``at`` is None).

    Args:
        ids: BSON documents with only an ``_id`` each; few enough for one command.

    Raises:
        NoSnapshotError: the server no longer has that time.
        HeadraceError: of the server.
    """
    operation = f"look up documents of {database}.{collection}"
    concern = {"level": "majority"} if at is None else _concern(at)
    try:
        for query in _queries(ids):
            yield from _found(members, database, {"find": collection, "filter": query, "readConcern": concern})
    except PyMongoError as error:
        raise _translated(operation, error) or translate(operation, error) from error


def _queries(ids: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    """With exactly the bytes of the values. Nothing compares to undefined, which is asked for by its type."""
    if any(each[4] == UNDEFINED for each in ids):
        yield {"_id": {"$type": UNDEFINED}}
    defined = [(each[4], each[_VALUE_AT:-1]) for each in ids if each[4] != UNDEFINED]
    if defined:
        elements = (b"%c%d\0%b" % (kind, number, value) for number, (kind, value) in enumerate(defined))
        body = b"".join(elements)
        values = (len(body) + 5).to_bytes(4, "little") + body + b"\0"
        wanted = b"\x04$in\0" + values
        yield {"_id": RawBSONDocument((len(wanted) + 5).to_bytes(4, "little") + wanted + b"\0")}


def _found(members: Members, database: str, command: dict[str, Any]) -> Iterator[bytes]:
    member = members.choose()
    with member.start_session(causal_consistency=False) as session:
        if members.cluster_time is not None:
            session.advance_cluster_time(members.cluster_time)

        def send(each: dict[str, Any]) -> bytes:
            answer = member[database].command(
                each, session=session, codec_options=_RAW, read_preference=members.preference
            )
            return bytes(answer.raw)

        raw = send(command)
        while True:
            reply = Reply.parse(raw)
            yield from (reply.document(row) for row in range(len(reply)))
            cursor = RawBSONDocument(raw)["cursor"]
            if not cursor["id"]:
                return
            raw = send({"getMore": cursor["id"], "collection": command["find"]})


def _concern(at: int | None) -> dict[str, Any]:
    return {"level": "snapshot"} | ({} if at is None else {"atClusterTime": Timestamp(*split_time(at))})


def _time_of(raw: bytes) -> int | None:
    cursor = find(raw, 0, b"cursor")
    found = find(raw, cursor[1], b"atClusterTime") if cursor is not None else None
    if found is None or found[0] != TIMESTAMP:
        return None
    increment, seconds = (int.from_bytes(raw[found[1] + at : found[1] + at + 4], "little") for at in (0, 4))
    return make_time(seconds, increment)


def _translated(operation: str, error: PyMongoError) -> HeadraceError | None:
    if not isinstance(error, OperationFailure):
        return None
    if error.code in _NO_SNAPSHOT and "capped" in str(error).lower():
        cause = "it is a capped collection, which MongoDB does not read as of a time"
        return CappedCollectionError(operation, cause, "Use --lake-only for it.")
    if error.code in _NO_SNAPSHOT:
        return NoSnapshotError(operation, str(error.details.get("errmsg") if error.details else error))
    if error.code in _UNSUPPORTED and "snapshot" in str(error).lower():
        remedy = "Comparing with the source needs MongoDB 5.0 or later; without it, use --lake-only."
        return ConfigError(operation, f"the server cannot read a snapshot: {error}", remedy)
    return None
