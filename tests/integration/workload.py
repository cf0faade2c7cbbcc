"""A seeded process that inserts, updates, replaces and deletes: ``URI DATABASE SEED COLLECTION...``.

``_id``s, values and names are drawn from everything that MongoDB accepts: every BSON type, deprecated ones
included, numbers of all widths, strings of all lengths, nested documents. It writes until its standard input is
closed, and then prints the number of writes. A write that fails because the server goes away, or is no longer the
primary, may have been made or not.
"""

from __future__ import annotations

import random
import select
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from bson import (
    Binary,
    Code,
    DBRef,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
)
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.errors import ConnectionFailure, DuplicateKeyError, WriteConcernError

PER_SECOND = 400
_DIGITS = "0123456789"
_TEXTS = [
    "",
    "a",
    "naïve",
    "日本語",
    "\U0001f600",
    "with \0 NUL",
    "x" * 300,
    '{"$oid": 1}',
    "82",
    "~",
    "line\nend",
]
_NAMES = [
    "text",
    "number",
    "Number",
    "list",
    "nested",
    "ünïcode",
    "with space",
    "a-b",
    "year",
    "x" * 60,
    "_cdc_op",
]


def an_id(rng: random.Random) -> Any:
    """An ``_id`` of any type that MongoDB accepts."""
    return rng.choice(_IDS)(rng)


def a_value(rng: random.Random, depth: int = 0) -> Any:
    """A value of any type, nested to some depth."""
    return rng.choice(_VALUES if depth < 3 else _SCALARS)(rng, depth)


def a_document(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A document with some fields."""
    return {name: a_value(rng, depth) for name in rng.sample(_NAMES, rng.randrange(1, 5))}


def _decimal(rng: random.Random) -> Decimal128:
    digits = "".join(rng.choice(_DIGITS) for _ in range(rng.randrange(1, 30)))
    return Decimal128(rng.choice([f"{digits}E-{rng.randrange(1, 20)}", digits, f"-{digits}.50", f"{digits}.500"]))


def _date(rng: random.Random) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=rng.randrange(-(2**42), 2**42))


def _text(rng: random.Random) -> str:
    return rng.choice(_TEXTS) + rng.randbytes(rng.choice((2, 4, 8))).hex()


_IDS: list[Callable[[random.Random], Any]] = [
    lambda rng: rng.randrange(-(2**31), 2**31),
    lambda rng: Int64(rng.randrange(1000)),
    lambda rng: Int64(rng.randrange(-(2**63), 2**63)),
    lambda rng: rng.uniform(-1e6, 1e6),
    lambda rng: float(rng.randrange(2**53)),
    lambda rng: rng.choice((float("inf"), float("-inf"), float("nan"), 5e-324, 0.5, -0.0)),
    _decimal,
    _text,
    lambda rng: "k" * rng.randrange(1500) + _text(rng),
    lambda rng: ObjectId(rng.randbytes(12)),
    _date,
    lambda rng: DatetimeMS(rng.randrange(-(2**62), 2**62)),
    lambda rng: Binary(rng.randbytes(16), 4),
    lambda rng: Binary(rng.randbytes(rng.randrange(20)), rng.choice((0, 5, 128))),
    lambda rng: rng.choice((True, False, None, MinKey(), MaxKey())),
    lambda rng: Timestamp(rng.randrange(2**32), rng.randrange(2**32)),
    lambda rng: Code(f"function() {{ return {rng.random()} }}"),
    lambda rng: {"a": Int64(rng.randrange(2**62)), "b": rng.choice((1, 1.5, "x"))},
    lambda rng: {
        "region": _text(rng),
        "at": _date(rng),
        "inner": {"n": _decimal(rng), "list": [1, Int64(2), 3.5]},
    },
]
_SCALARS: list[Callable[[random.Random, int], Any]] = [
    *(lambda rng, _, make=make: make(rng) for make in _IDS[:17]),  # type: ignore[misc]
    lambda rng, _: Regex(_text(rng).replace("\0", ""), rng.choice(("", "i", "mx"))),
    lambda rng, _: Code("f()", {"scope": rng.randrange(9)}),
    lambda rng, _: DBRef("other", ObjectId(rng.randbytes(12)), "elsewhere"),
    lambda rng, _: rng.choice((float("nan"), -0.0, 1e308, 2**53 + 1)),
    lambda rng, _: _raw(0x0E, _string(_text(rng))),  # symbol
    lambda rng, _: _raw(0x06, b""),  # undefined
    lambda rng, _: _raw(0x0C, _string("db.c") + rng.randbytes(12)),  # DBPointer
]
_VALUES: list[Callable[[random.Random, int], Any]] = [
    *_SCALARS,
    lambda rng, depth: a_document(rng, depth + 1),
    lambda rng, depth: [a_value(rng, depth + 1) for _ in range(rng.randrange(4))],
    lambda rng, _: [rng.random() for _ in range(rng.randrange(5))],
    lambda rng, _: {},
]


def _string(text: str) -> bytes:
    raw = text.encode() + b"\0"
    return struct.pack("<i", len(raw)) + raw


def _raw(kind: int, value: bytes) -> RawBSONDocument:
    """A document with one value of a type that the driver no longer writes."""
    element = bytes([kind]) + b"old\0" + value
    return RawBSONDocument(struct.pack("<i", len(element) + 5) + element + b"\0")


def main(uri: str, database: str, seed: str, *collections: str) -> None:
    rng = random.Random(seed)
    client: MongoClient[dict[str, Any]] = MongoClient(uri)
    alive: dict[str, list[Any]] = {name: [] for name in collections}
    writes = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        name = rng.choice(collections)
        with suppress(DuplicateKeyError, ConnectionFailure, WriteConcernError):
            write(client[database][name], alive[name], rng, writes)
            writes += 1
        time.sleep(1 / PER_SECOND)
    print(writes)


def write(target: Collection[dict[str, Any]], keys: list[Any], rng: random.Random, number: int) -> None:
    """One write to a collection that has documents with these keys."""
    roll = rng.random()
    if roll < 0.5 or not keys:
        key = an_id(rng)
        target.insert_one({"_id": key} | a_document(rng))
        keys.append(key)
    elif roll < 0.75:
        changed = {"changed": a_value(rng), f"f{rng.randrange(8)}": number}
        target.update_one({"_id": {"$eq": rng.choice(keys)}}, {"$set": changed})
    elif roll < 0.85:
        target.replace_one({"_id": {"$eq": rng.choice(keys)}}, a_document(rng))
    else:
        target.delete_one({"_id": {"$eq": keys.pop(rng.randrange(len(keys)))}})


if __name__ == "__main__":
    main(*sys.argv[1:])
