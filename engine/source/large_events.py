"""Events past 16 MiB on servers that cannot split them (before 6.0.9).

A server makes an event of what the oplog has and what was asked for beside it, the looked-up document and the one
before the change, and fails when the whole is too large for one BSON document. It would fail at that event for
ever. So the stream is opened once more with a stage behind all others that leaves out of such events, and of no
others, what they can do without, and says so in a field of its own. The event keeps its resume token, its place,
and all that the oplog has of it: only that is the same in every reading, too.
"""

from __future__ import annotations

from typing import Any

from engine.rawbson.elements import STRING, TIMESTAMP, elements, find, read_string
from engine.source.reply import Reply

TOO_LARGE = 10334  # BSONObjectTooLarge
REMEDY = (
    "The event cannot be made smaller here: take large fields away by source.pipeline (a $unset of "
    '"fullDocument.<field>"), or upgrade MongoDB to 6.0.9 or later, which splits such events.'
)
# In ``_cdc_extra``, with the names of what is missing.
_MARK = "truncated"
# A server's documents may be 16 KiB larger than this: that is for the fields that are not measured.
_MOST = 16 * 2**20
_FULL, _BEFORE = "fullDocument", "fullDocumentBeforeChange"


def leave_out_stage() -> dict[str, Any]:
    """The stage that makes events fit: without the former document first, then without the looked-up one."""
    rest: list[Any] = [_size(name) for name in ("_id", "documentKey", "updateDescription", _FULL)]
    no_before = {"$gt": [{"$add": [*rest, _size(_BEFORE)]}, _MOST]}
    is_looked_up = {"$eq": ["$operationType", "update"]}
    no_full = {"$and": [is_looked_up, {"$gt": [{"$add": rest}, _MOST]}]}
    missing = [_if(_and_has(no_before, _BEFORE), [_BEFORE], []), _if(_and_has(no_full, _FULL), [_FULL], [])]
    names = {"$concatArrays": missing}
    return {
        "$set": {
            _BEFORE: _if(no_before, "$$REMOVE", f"${_BEFORE}"),
            _FULL: _if(no_full, "$$REMOVE", f"${_FULL}"),
            _MARK: _if({"$ne": [names, []]}, names, f"${_MARK}"),
        }
    }


def _size(name: str) -> dict[str, Any]:
    """The bytes of a field; 0 where it is no document."""
    field = f"${name}"
    return _if({"$eq": [{"$type": field}, "object"]}, {"$bsonSize": field}, 0)


def _and_has(condition: dict[str, Any], name: str) -> dict[str, Any]:
    return {"$and": [condition, {"$eq": [{"$type": f"${name}"}, "object"]}]}


def _if(condition: Any, then: Any, otherwise: Any) -> dict[str, Any]:
    return {"$cond": [condition, then, otherwise]}


def shortened_events(reply: Reply) -> list[dict[str, object]]:
    """What a log should say of each event in which something was left out."""
    return [
        _described(event) for event in map(reply.document, range(len(reply))) if find(event, 0, _MARK.encode())
    ]


def _described(event: bytes) -> dict[str, object]:
    found: dict[str, object] = {}
    for kind, name, at, _ in elements(event, 0):
        if name == _MARK.encode():
            found["without"] = [
                read_string(event, start) for type_, _, start, _ in elements(event, at) if type_ == STRING
            ]
        elif name == b"ns":
            names = {
                key: read_string(event, start) for type_, key, start, _ in elements(event, at) if type_ == STRING
            }
            found["collection"] = f"{names.get(b'db', '')}.{names.get(b'coll', '')}"
        elif name == b"clusterTime" and kind == TIMESTAMP:
            found["cluster_time"] = int.from_bytes(event[at + 4 : at + 8], "little")
    return found
