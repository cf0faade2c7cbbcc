"""Events over 16 MiB on servers that cannot split them (before 6.0.9).

A server builds an event from the oplog entry and the documents requested with it, the looked-up one and the one
before the change, and fails if the whole is too large for one BSON document. It would fail at that event every
time. So the stream is reopened with a final stage that drops dispensable documents from such events, and only from
them, and says so in a field of its own. The event keeps its resume token, its position and everything from the
oplog, which is also the only part of it that is the same whenever it is read.
"""

from __future__ import annotations

from typing import Any

from engine.rawbson.elements import STRING, TIMESTAMP, elements, find, read_string
from engine.source.reply import Reply

TOO_LARGE = 10334  # BSONObjectTooLarge
REMEDY = (
    "The event cannot be made smaller here: remove large fields by source.pipeline (a $unset of "
    '"fullDocument.<field>"), or upgrade MongoDB to 6.0.9 or later, which splits such events.'
)
# The field in ``_cdc_extra`` with the names of the missing documents.
_MARK = "truncated"
# A server's internal documents may be 16 KiB larger, which leaves space for the fields that are not measured.
_MAX_BYTES = 16 * 2**20
_FULL, _BEFORE = "fullDocument", "fullDocumentBeforeChange"


def truncate_stage() -> dict[str, Any]:
    """The stage that makes events fit: drops the document before the change first, then the looked-up one."""
    rest: list[Any] = [_size(name) for name in ("_id", "documentKey", "updateDescription", _FULL)]
    no_before = {"$gt": [{"$add": [*rest, _size(_BEFORE)]}, _MAX_BYTES]}
    is_looked_up = {"$eq": ["$operationType", "update"]}
    no_full = {"$and": [is_looked_up, {"$gt": [{"$add": rest}, _MAX_BYTES]}]}
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
    """The size of a field in bytes; 0 if it is not a document."""
    field = f"${name}"
    return _if({"$eq": [{"$type": field}, "object"]}, {"$bsonSize": field}, 0)


def _and_has(condition: dict[str, Any], name: str) -> dict[str, Any]:
    return {"$and": [condition, {"$eq": [{"$type": f"${name}"}, "object"]}]}


def _if(condition: Any, then: Any, otherwise: Any) -> dict[str, Any]:
    return {"$cond": [condition, then, otherwise]}


def truncated_events(reply: Reply) -> list[dict[str, object]]:
    """What to log of each event from which a document was dropped."""
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
