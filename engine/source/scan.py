"""One split of a collection as raw replies, in the order of its index: opened, read, resumed.

State: the server's cursor, the place behind which it stands, and the places that a replay owes. Owner: the
prefetch thread of one reader.

The server is asked for the documents *behind* a place, so whatever ends a cursor (an election, a timeout while
the sink was slow), the next one goes on where it stood. Places are compared by the server alone (``min`` and
``max`` of the index): it knows the order of BSON's types, and the collection's collation.

A segment that is replayed must hold what lies up to its last place, with it. ``max`` leaves that one out, so it
is asked for by its key afterwards. So is a document whose key is MaxKey: behind a ``min`` the server takes a
missing ``max`` for MaxKey.

The measurements of a time-series collection have no unique key to go on from. Their splits are ranges of time,
each read as a whole, and from its start again when something ends the cursor.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from typing import Any

import bson
import numpy as np
from bson import MaxKey, json_util
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo.errors import OperationFailure, PyMongoError

from engine.core.backfill import END, make_place, split_place
from engine.core.messages import StreamSpec
from engine.core.position import Position, split_time
from engine.errors import ConfigError, HeadraceError, InterruptedScanError, TransientError
from engine.rawbson.elements import UNDEFINED, MalformedBSON, find
from engine.source.failures import is_bad_query, said, translate
from engine.source.pace import Pace
from engine.source.raw_cursor import RawCursor
from engine.source.reply import Reply
from engine.source.session import Members

_FIRST_BATCH = 100
_EMPTY_RANGE = 51175  # min and max are equal in the index's order
_NOT_HEARD_OF = 72  # InvalidOptions: this member has not heard of the split's time yet
_MAX_KEY = bson.encode({"_id": MaxKey()}).hex()
_INT32 = struct.Struct("<i")


class Documents(Reply):
    """A reply's documents.

    Attributes:
        order: the field that is the key.
        count: documents of the split before the first one here.
        counting: False in a replay, whose rows all lie before the place that is owed.
    """

    order = "_id"
    count = 0
    counting = True

    def token_at(self, row: int) -> str:
        """The place of one document."""
        return make_place(self.count + (row + 1 if self.counting else 0), self.key_at(row))

    def key_at(self, row: int) -> str:
        """The key of one document: hexadecimal BSON of a document with nothing else."""
        return key_of(self.data, int(self.offsets[row]), self.order)

    def without_first(self) -> Documents:
        """The same, but for the first document."""
        rest = Documents(self.data, self.offsets[1:], "")
        rest.order = self.order
        return rest


class Mark:
    """The one event of a plan's mark, which no server has: all of the collection has been loaded."""

    unanswered_s = 0.0

    def __init__(self, spec: StreamSpec, start: Position) -> None:
        time = Timestamp(*split_time(spec.closes))
        namespace = {"db": spec.database, "coll": spec.collections[0]}
        self._event = bson.encode({"operationType": "loaded", "clusterTime": time, "ns": namespace, "_id": None})
        self._end = Position(END, start.time)

    def next(self) -> Documents:
        """The reply with it."""
        reply = Documents.of_documents([self._event], Documents(b"", np.zeros(1, np.int64), END))
        reply.position, reply.is_last = self._end, True
        return reply

    def close(self) -> None:
        """Nothing is open."""


class SplitScan:
    """Reads one split from a position on.

    Args:
        members: whom to read from; chosen anew after every error.
        replay: the last places of the segments that must be read again first, as they were cut.
        reply_size: bytes of a reply, about.
    """

    def __init__(
        self,
        members: Members,
        spec: StreamSpec,
        start: Position,
        replay: Sequence[str] = (),
        *,
        reply_size: int,
        pace: Pace | None = None,
    ) -> None:
        self._spec = spec
        self._time = start.time
        self._count, self._after = split_place(start.token)
        self._owed = deque(replay)
        self._turn = self._read  # what the next call does
        self._reply_size = reply_size
        self._pace = pace or Pace()
        self._batch_size = self._pace.most_documents(_FIRST_BATCH)
        self._cursor = RawCursor(
            members, spec.database, lambda: {"batchSize": self._batch_size}, self._may_ask_ahead
        )
        self._has_read = False
        self._collection = spec.collections[0]
        self._filter: dict[str, Any] = json_util.loads(spec.filter) if spec.filter else {}
        self._operation = f"read {spec.database}.{self._collection}"

    def next(self) -> Documents:
        """The next reply, empty while the source is spared; opens or reopens the cursor first where needed.

        Raises:
            TransientError: worth another call, which goes on behind the last reply that was handed out.
            InterruptedScanError: a split that is read whole must be read from its start.
            ConfigError: the filter or the rights do not serve.
        """
        try:
            if not self._pace.may_read(self._cursor.member):
                return self._nothing()
            reply = self._turn()
        except PyMongoError as error:
            self._cursor.forget()
            raise self._translated(error) from error
        if len(reply):
            size = int(reply.offsets[-1] - reply.offsets[0])
            self._pace.spend(len(reply), size)
            self._batch_size = self._pace.most_documents(max(1, int(self._reply_size * len(reply) / size)))
        return reply

    @property
    def unanswered_s(self) -> float:
        """How long the server has owed an answer."""
        return self._cursor.unanswered_s

    def close(self) -> None:
        """End the cursor on the server, if it is there."""
        self._cursor.close()

    # --- what is read ------------------------------------------------------------------------------------

    def _read(self) -> Documents:
        """The next documents of the range that is being read; and at its end, what that means."""
        behind_min = bool(self._after or self._spec.lower)
        reply = self._documents(self._cursor.more()) if self._cursor.is_open else self._open()
        self._has_read = True
        reply.count, reply.counting = self._count, not self._owed
        if len(reply) and not self._spec.whole:
            self._after = reply.key_at(len(reply) - 1)
        if not self._owed and len(reply):
            self._count += len(reply)
            reply.token = make_place(self._count, self._after)
            reply.position = Position(reply.token, self._time)
        if self._cursor.is_open:
            return reply
        if self._owed and not self._spec.whole:
            self._turn = self._read_owed
        elif behind_min and not self._spec.upper and not self._spec.whole:
            self._turn = self._read_top
        else:
            self._end(reply)
        return reply

    def _end(self, reply: Documents) -> None:
        reply.token, reply.position, reply.is_last = END, Position(END, self._time), True

    def _read_top(self) -> Documents:
        """The document whose key is MaxKey, if there is one."""
        reply = self._find_one(_MAX_KEY)
        if len(reply) and reply.key_at(0) == self._after:
            reply = self._nothing()
        reply.count = self._count
        self._end(reply)
        return reply

    def _read_owed(self) -> Documents:
        """The document at the place that is owed, if it is still there."""
        key = split_place(self._owed[0])[1]
        reply = self._find_one(key)
        if len(reply) and reply.key_at(0) != key:
            reply = self._nothing()  # equal in the index's order, but another one: it is read next
        reply.count, reply.counting = self._count, False
        token = self._owed.popleft()
        self._turn, self._after, self._count = self._read, key, split_place(token)[0]
        reply.token, reply.position = token, Position(token, self._time)
        return reply

    # --- the cursor --------------------------------------------------------------------------------------

    def _open(self) -> Documents:
        if self._spec.whole:
            if self._has_read:
                cause = "its cursor was lost in the middle of a split that can only be read whole"
                raise InterruptedScanError(self._operation, cause)
            between = [
                {self._spec.order: operand(operator, key)}
                for operator, key in (("$gte", self._spec.lower), ("$lt", self._spec.upper))
                if key
            ]
            return self._find({"$and": [self._filter, *between]}, {})
        lower = self._after or self._spec.lower
        upper = split_place(self._owed[0])[1] if self._owed else self._spec.upper
        if lower and lower == upper:
            return self._nothing()
        bounds = {name: _raw(key) for name, key in (("min", lower), ("max", upper)) if key}
        try:
            reply = self._find(self._filter, {"hint": {"_id": 1}, "sort": {"_id": 1}, **bounds})
        except OperationFailure as error:
            if error.code != _EMPTY_RANGE:
                raise
            return self._nothing()
        if self._after and len(reply) and reply.key_at(0) == self._after:
            return reply.without_first()
        return reply

    def _find_one(self, key: str) -> Documents:
        """The document with this key, if there is one that passes the filter."""
        wanted = {"$type": UNDEFINED} if bytes.fromhex(key)[4] == UNDEFINED else operand("$eq", key)
        return self._find({"$and": [self._filter, {"_id": wanted}]}, {"limit": 1, "singleBatch": True})

    def _find(self, query: dict[str, Any], options: dict[str, Any]) -> Documents:
        # Whoever answers must know at least what was known when the split was begun: the change stream brings
        # what came after.
        concern = {"level": "majority", "afterClusterTime": Timestamp(*split_time(self._time))}
        command = {"find": self._collection, "filter": query, "batchSize": self._batch_size, **options}
        return self._documents(self._cursor.open(command | {"readConcern": concern}))

    def _may_ask_ahead(self) -> bool:
        """Not while the pace is limited, not before the size of documents is known, nor where each is a reply."""
        return self._has_read and not self._pace.is_limited and self._batch_size > 1

    def _documents(self, raw: bytes) -> Documents:
        reply = Documents.parse(raw)
        reply.order = self._spec.order
        return reply

    def _nothing(self) -> Documents:
        reply = Documents(b"", np.zeros(1, np.int64), "")
        reply.order = self._spec.order
        return reply

    def _translated(self, error: PyMongoError) -> HeadraceError:
        if isinstance(error, OperationFailure) and is_bad_query(error):
            if self._spec.filter and error.code != _NOT_HEARD_OF:
                return ConfigError(self._operation, said(error), "Check --filter.")
            return TransientError(self._operation, said(error))  # nothing else in it is the user's
        return translate(self._operation, error)


def key_of(data: bytes, start: int, order: str) -> str:
    """The key of the document at ``start``: hexadecimal BSON of a document with nothing else.

    Raises:
        MalformedBSON: it has none.
    """
    name = order.encode()
    found = find(data, start, name)
    if found is None:
        raise MalformedBSON(f"a document without {order}")
    kind, at, end = found
    return _document(kind, name, data[at:end]).hex()


def operand(operator: str, key: str) -> RawBSONDocument:
    """``{operator: value of the key}``, byte by byte the value."""
    raw = bytes.fromhex(key)
    value = raw.index(b"\0", 5) + 1
    return RawBSONDocument(_document(raw[4], operator.encode(), raw[value:-1]))


def _document(kind: int, name: bytes, value: bytes) -> bytes:
    element = bytes([kind]) + name + b"\0" + value
    return _INT32.pack(len(element) + 5) + element + b"\0"


def _raw(key: str) -> RawBSONDocument:
    return RawBSONDocument(bytes.fromhex(key))
