"""Realistic collections, seeded; each is difficult in a way of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
from bson.binary import Binary
from bson.code import Code
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.objectid import ObjectId
from bson.regex import Regex
from bson.timestamp import Timestamp

Document = dict[str, Any]
_WORDS = [*"alpha beta gamma delta epsilon zeta eta theta".split(" "), "über", "naïve", "日本", "😀"]  # noqa: SIM905
_START = datetime(2024, 1, 1, tzinfo=UTC)


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(_WORDS, k=count))


def moment(rng: random.Random) -> datetime:
    return _START + timedelta(milliseconds=rng.randrange(10**10))


def orders(rng: random.Random, number: int) -> Document:
    """E-commerce: prices as Decimal128, optional parts, and an older format of some documents."""
    lines = [
        {
            "sku": f"S{rng.randrange(10**6):06}",
            "quantity": rng.randrange(1, 9),
            "price": Decimal128(f"{rng.randrange(10**5)}.{rng.randrange(100):02}"),
            **({"discount": {"code": words(rng, 1), "percent": rng.randrange(50)}} if rng.random() < 0.2 else {}),
        }
        for _ in range(rng.randrange(6))
    ]
    order: Document = {
        "_id": ObjectId(rng.randbytes(12)),
        "placed": moment(rng),
        "customer": {"id": Int64(rng.randrange(2**40)), "email": f"c{number}@example.com"},
        "lines": lines,
        "total": rng.choice((Decimal128("12.50"), 12.5, 12, "12.50")),
        "status": rng.choice(("new", "paid", None)),
        "coupon": [] if rng.random() < 0.5 else [words(rng, 1)],
    }
    if rng.random() < 0.3:
        order["shipping"] = {"street": words(rng, 3), "geo": {"type": "Point", "coordinates": [rng.random(), 5]}}
    if rng.random() < 0.02:
        order["note"] = words(rng, 300)
    return order


def products(rng: random.Random, number: int) -> Document:
    """A catalogue: arrays of variants with arrays inside, attributes that differ by kind."""
    return {
        "_id": f"product-{number}",
        "title": {"en": words(rng, 4), "de": words(rng, 4)},
        "variants": [
            {
                "sku": f"{number}-{n}",
                "options": {rng.choice(("color", "size", "fit")): words(rng, 1)},
                "stock": [{"place": words(rng, 1), "count": rng.randrange(99)} for _ in range(rng.randrange(4))],
                "prices": [rng.random() * 100 for _ in range(rng.randrange(3))],
            }
            for n in range(rng.randrange(1, 7))
        ],
        "attributes": {f"a{rng.randrange(40)}": rng.choice((1, "x", 2.5, True, [1], None)) for _ in range(6)},
    }


def telemetry(rng: random.Random, number: int) -> Document:
    """Dynamic keys: a device id for each reading."""
    return {
        "_id": Binary(rng.randbytes(16), 4),
        "at": moment(rng),
        "readings": {f"device_{rng.randrange(100_000)}": rng.random() for _ in range(8)},
        "by_minute": {str(n): rng.randrange(100) for n in range(rng.randrange(60))},
        f"tag_{rng.randrange(3000)}": number,
    }


def articles(rng: random.Random, number: int) -> Document:
    """A content management system after ten years."""
    return {
        "_id": rng.choice((number, str(number), Int64(number), ObjectId(rng.randbytes(12)))),
        "body": rng.choice((words(rng, 40), {"blocks": [{"type": "p", "text": words(rng, 9)}]}, None, ["a", 1])),
        "author": rng.choice(("anna", {"name": "anna", "id": 1}, ObjectId(rng.randbytes(12)), 7)),
        "tags": rng.choice((["a", "b"], "a,b", [], None, [["a"], ["b"]])),
        "published": rng.choice((moment(rng), "2024-01-01", Timestamp(5, 6), 20240101, True)),
        "pattern": rng.choice((Regex("^a", "i"), "^a", Code("f()"), Code("f()", {"a": 1}))),
        "meta.description": words(rng, 2),
        "$weird": {"$date": "not a date"},
    }


def messages(rng: random.Random, number: int) -> Document:
    """A chat: threads of replies, reactions by emoji."""

    def reply(depth: int) -> Document:
        replies = [reply(depth + 1) for _ in range(rng.randrange(2))] if depth < 12 else []
        return {"by": rng.randrange(99), "text": words(rng, rng.randrange(12)), "replies": replies}

    reactions = {rng.choice(_WORDS): [rng.randrange(99) for _ in range(rng.randrange(3))] for _ in range(3)}
    return {
        "_id": Int64(number),
        **reply(0),
        "reactions": reactions,
        "seen": [rng.randrange(99) for _ in range(40)],
    }


def places(rng: random.Random, number: int) -> Document:
    """GeoJSON: arrays of arrays of arrays, of floats and ints together."""
    ring = [[rng.choice((rng.random(), rng.randrange(9))), rng.random()] for _ in range(rng.randrange(4, 40))]
    shape = rng.choice(("Point", "Polygon", "LineString"))
    coordinates: Any = {"Point": ring[0], "LineString": ring, "Polygon": [ring, ring[:3]]}[shape]
    return {"_id": number, "geometry": {"type": shape, "coordinates": coordinates}, "bbox": [0.5] * 4}


def thousand_fields(rng: random.Random, number: int) -> Document:
    return {"_id": number} | {f"field_{n:04}": rng.choice((n, float(n), str(n))) for n in range(1000)}


def tiny(rng: random.Random, number: int) -> Document:
    return {"_id": number, "v": rng.random(), "ok": rng.random() < 0.5}


def huge(rng: random.Random, number: int) -> Document:
    """16 MB in one document."""
    if number:
        return tiny(rng, number)
    return {
        "_id": 0,
        "text": "x" * 5_000_000,
        "vector": [rng.random() for _ in range(200_000)],
        "parts": [{"n": n, "s": "part"} for n in range(100_000)],
        "words": ["some text"] * 100_000,
    }


COLLECTIONS: dict[str, tuple[Callable[[random.Random, int], Document], int]] = {
    "orders": (orders, 2000),
    "products": (products, 500),
    "telemetry": (telemetry, 800),
    "articles": (articles, 1500),
    "messages": (messages, 400),
    "places": (places, 600),
    "thousand_fields": (thousand_fields, 100),
    "tiny": (tiny, 3000),
    "huge": (huge, 3),
}


def collection(name: str) -> Iterator[bytes]:
    """The documents of one collection."""
    rng = random.Random(name)
    make, count = COLLECTIONS[name]
    return (bson.encode(make(rng, number)) for number in range(count))
