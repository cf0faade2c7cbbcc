"""One split of a collection as raw replies, in index order: opening, reading and resuming it.

State: the server's cursor, the place up to which it has read, and the places at which replayed segments end.
Owner: the prefetch thread of one reader.

The server is asked for the documents *after* a place, so whatever ends a cursor (an election, a timeout while the
sink was slow), the next one continues from there. Only the server compares places (``min`` and ``max`` of the
index): it knows the order of BSON types, and the collection's collation.

A replayed segment must contain everything up to and including its last place. ``max`` excludes that document, so
it is read by its key afterwards. So is a document whose key is MaxKey: with a ``min``, the server takes a missing
``max`` for MaxKey.

The measurements of a time-series collection have no unique key to resume from. Their splits are time ranges, each
read as a whole, and again from its start if the cursor is lost.
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
from engine.core.position import Position, split_time
from engine.core.specs import MarkSpec, SplitSpec
from engine.errors import ConfigError, HeadraceError, InterruptedScanError, TransientError
from engine.rawbson.elements import UNDEFINED, MalformedBSON, find
from engine.source.failures import is_bad_query, summary, translate
from engine.source.pace import Pace
from engine.source.raw_cursor import RawCursor
from engine.source.reply import Reply
from engine.source.session import Members

_FIRST_BATCH = 100
_EMPTY_RANGE = 51175  # min and max are equal in the index's order
_UNKNOWN_TIME = 72  # InvalidOptions: this member does not know of the split's time yet
_MAX_KEY = bson.encode({"_id": MaxKey()}).hex()
_INT32 = struct.Struct("<i")


class Documents(Reply):
    """The documents of a reply.

    Attributes:
        order: the name of the key field.
        count: documents of the split before the first one here.
        counting: False in a replay, whose rows are all before the place at which its segment ends.
    """

    order = "_id"
    count = 0
    counting = True

    def token_at(self, row: int) -> str:
        """The place of one document."""
        return make_place(self.count + (row + 1 if self.counting else 0), self.key_at(row))

    def key_at(self, row: int) -> str:
        """The key of one document: hexadecimal BSON of a document with only the key field."""
        return key_of(self.data, int(self.offsets[row]), self.order)

    def without_first(self) -> Documents:
        """The same without the first document."""
        rest = Documents(self.data, self.offsets[1:], "")
        rest.order = self.order
        return rest


class Mark:
    """The single, synthetic event of a plan's mark: the whole collection has been loaded.

    It is not given again after a start position that has it: whoever committed it may have died before the end.
    """

    unanswered_s = 0.0

    def __init__(self, spec: MarkSpec, start: Position) -> None:
        time = Timestamp(*split_time(spec.time))
        namespace = {"db": spec.database, "coll": spec.collection}
        event = bson.encode({"operationType": "loaded", "clusterTime": time, "ns": namespace, "_id": None})
        self._events = [] if split_place(start.token)[0] else [event]
        self._end = Position(END, start.time)

    def next(self) -> Documents:
        """The reply with that event, if it is still to be given."""
        reply = Documents.of_documents(self._events, Documents(b"", np.zeros(1, np.int64), END))
        reply.position, reply.is_last = self._end, True
        return reply

    def close(self) -> None:
        """Nothing to close."""


class SplitScan:
    """Reads one split from the given position on.

    Args:
        members: where to choose the member to read, at first and after every error.
        replay: the last places of the segments that must first be read again exactly as they were cut.
        reply_size: approximate bytes of a reply.
    """

    def __init__(
        self,
        members: Members,
        spec: SplitSpec,
        start: Position,
        replay: Sequence[str] = (),
        *,
        reply_size: int,
        pace: Pace | None = None,
    ) -> None:
        self._spec = spec
        self._time = start.time
        self._count, self._after = split_place(start.token)
        self._replay_ends = deque(replay)
        self._step = self._read  # what the next call does
        self._reply_size = reply_size
        self._pace = pace or Pace()
        self._batch_size = self._pace.max_documents(_FIRST_BATCH)
        self._cursor = RawCursor(
            members, spec.database, lambda: {"batchSize": self._batch_size}, self._may_ask_ahead
        )
        self._has_read = False
        self._collection = spec.collection
        self._filter: dict[str, Any] = json_util.loads(spec.filter) if spec.filter else {}
        self._operation = f"read {spec.database}.{self._collection}"

    def next(self) -> Documents:
        """The next reply, empty while throttled; opens or reopens the cursor first if needed.

        Raises:
            TransientError: worth another call, which continues after the last reply that was returned.
            InterruptedScanError: a split that is read as a whole must be read again from its start.
            ConfigError: the filter is bad, or the user's rights do not suffice.
        """
        try:
            if not self._pace.may_read(self._cursor.member):
                return self._nothing()
            reply = self._step()
        except PyMongoError as error:
            self._cursor.forget()
            raise self._translated(error) from error
        if len(reply):
            size = int(reply.offsets[-1] - reply.offsets[0])
            self._pace.spend(len(reply), size)
            self._batch_size = self._pace.max_documents(max(1, int(self._reply_size * len(reply) / size)))
        return reply

    @property
    def unanswered_s(self) -> float:
        """How long the current request has been unanswered."""
        return self._cursor.unanswered_s

    def close(self) -> None:
        """Kill the cursor on the server, if there is one."""
        self._cursor.close()

    # --- what is read ------------------------------------------------------------------------------------

    def _read(self) -> Documents:
        """The next documents of the current range; at its end, decides what to read next."""
        has_min = bool(self._after or self._spec.lower)
        reply = self._documents(self._cursor.more()) if self._cursor.is_open else self._open()
        self._has_read = True
        reply.count, reply.counting = self._count, not self._replay_ends
        if len(reply) and not self._spec.whole:
            self._after = reply.key_at(len(reply) - 1)
        if not self._replay_ends and len(reply):
            self._count += len(reply)
            reply.token = make_place(self._count, self._after)
            reply.position = Position(reply.token, self._time)
        if self._cursor.is_open:
            return reply
        if self._replay_ends and not self._spec.whole:
            self._step = self._read_replay_end
        elif has_min and not self._spec.upper and not self._spec.whole:
            self._step = self._read_top
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

    def _read_replay_end(self) -> Documents:
        """The document at which the replayed segment ends, if it still exists."""
        key = split_place(self._replay_ends[0])[1]
        reply = self._find_one(key)
        if len(reply) and reply.key_at(0) != key:
            reply = self._nothing()  # equal in index order, but not the same key: it is read next
        reply.count, reply.counting = self._count, False
        token = self._replay_ends.popleft()
        self._step, self._after, self._count = self._read, key, split_place(token)[0]
        reply.token, reply.position = token, Position(token, self._time)
        return reply

    # --- the cursor --------------------------------------------------------------------------------------

    def _open(self) -> Documents:
        if self._spec.whole:
            if self._has_read:
                cause = "its cursor was lost in the middle of a split that can only be read as a whole"
                raise InterruptedScanError(self._operation, cause)
            between = [
                {self._spec.order: operand(operator, key)}
                for operator, key in (("$gte", self._spec.lower), ("$lt", self._spec.upper))
                if key
            ]
            return self._find({"$and": [self._filter, *between]}, {})
        lower = self._after or self._spec.lower
        upper = split_place(self._replay_ends[0])[1] if self._replay_ends else self._spec.upper
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
        # The member must have everything up to the time at which the split was started: the change stream covers
        # what came after.
        concern = {"level": "majority", "afterClusterTime": Timestamp(*split_time(self._time))}
        command = {"find": self._collection, "filter": query, "batchSize": self._batch_size, **options}
        return self._documents(self._cursor.open(command | {"readConcern": concern}))

    def _may_ask_ahead(self) -> bool:
        """Not while throttled, not before the size of documents is known, and not if each is a reply by itself."""
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
            if self._spec.filter and error.code != _UNKNOWN_TIME:
                return ConfigError(self._operation, summary(error), "Check --filter.")
            return TransientError(self._operation, summary(error))  # nothing else in the query is the user's
        return translate(self._operation, error)


def key_of(data: bytes, start: int, order: str) -> str:
    """The key of the document at ``start``: hexadecimal BSON of a document with only the key field.

    Raises:
        MalformedBSON: it has no such field.
    """
    name = order.encode()
    found = find(data, start, name)
    if found is None:
        raise MalformedBSON(f"a document without {order}")
    kind, at, end = found
    return _document(kind, name, data[at:end]).hex()


def operand(operator: str, key: str) -> RawBSONDocument:
    """``{operator: value of the key}``, with exactly the value's bytes."""
    raw = bytes.fromhex(key)
    value = raw.index(b"\0", 5) + 1
    return RawBSONDocument(_document(raw[4], operator.encode(), raw[value:-1]))


def _document(kind: int, name: bytes, value: bytes) -> bytes:
    element = bytes([kind]) + name + b"\0" + value
    return _INT32.pack(len(element) + 5) + element + b"\0"


def _raw(key: str) -> RawBSONDocument:
    return RawBSONDocument(bytes.fromhex(key))
