"""Seeded documents for benchmarks: the same seed gives the same documents.

| workload | a document |
|---|---|
| orders | 330 bytes, 11 fields: scalars, one nested document, one array of strings |
| tiny | 50 bytes, 4 fields |
| nested | 2 KB: a product with an array of variants, and an array and a document inside each |
| wide | 200 optional fields of four types, each present half of the time |
| mixed | 10 fields, of which four hold two to four different types |
| fat | 100 KB: a long text, a vector of 1,536 doubles, some hundreds of sub-documents |
| text-N | a number and a text of N bytes |
| columns-N | N integers |

``change`` makes a mix of updates, inserts, replaces and deletes of orders instead (the workload ``updates``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from pymongo import DeleteOne, InsertOne, ReplaceOne, UpdateOne
from pymongo.collection import Collection

Document = dict[str, Any]
_TEXT = (
    "please leave the parcel with a neighbour ring twice call before delivery fragile gift wrap no invoice "
    "express standard morning evening weekend office reception garage second floor thank you"
)
_WORDS = _TEXT.split(" ")
_NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def orders(rng: random.Random, number: int) -> Document:
    """330 bytes, 11 fields: one nested document, one array."""
    return {
        "order_no": number,
        "customer": f"cust-{rng.randrange(200_000):06}",
        "status": rng.choice(("new", "paid", "shipped", "done", "cancelled")),
        "total": round(rng.random() * 500, 2),
        "quantity": rng.randrange(1, 20),
        "created": _NEW_YEAR + timedelta(seconds=rng.randrange(10_000_000)),
        "paid": rng.random() < 0.5,
        "note": " ".join(rng.choices(_WORDS, k=9)),
        "address": {
            "street": f"Main street {rng.randrange(999)}",
            "city": rng.choice(("Berlin", "Paris", "Rome")),
            "zip": f"{rng.randrange(100_000):05}",
        },
        "tags": [rng.choice(("gift", "express", "promo", "b2b")) for _ in range(3)],
    }


def tiny(rng: random.Random, number: int) -> Document:
    """50 bytes."""
    return {"n": number, "v": rng.random(), "ok": rng.random() < 0.5}


def nested(rng: random.Random, number: int) -> Document:
    """2 KB: a product, its variants with their attributes and their stock by location."""
    return {
        "sku": f"P{number:08}",
        "name": " ".join(rng.choices(_WORDS, k=5)),
        "updated": _NEW_YEAR + timedelta(seconds=rng.randrange(10_000_000)),
        "brand": {"name": rng.choice(_WORDS), "country": rng.choice(("DE", "FR", "IT"))},
        "variants": [
            {
                "sku": f"P{number:08}-{n}",
                "price": round(rng.random() * 100, 2),
                "attributes": {"color": rng.choice(("red", "blue", "green")), "size": rng.choice("SML")},
                "stock": [
                    {"place": f"W{place}", "count": rng.randrange(100)} for place in range(rng.randrange(1, 5))
                ],
                "images": [f"https://cdn.example.com/{rng.randrange(2**32):08x}.jpg" for _ in range(2)],
            }
            for n in range(rng.randrange(4, 9))
        ],
    }


def wide(rng: random.Random, number: int) -> Document:
    """200 optional fields, each present half of the time."""
    document: Document = {"n": number}
    for field in range(200):
        if rng.random() < 0.5:
            kind = field % 4
            document[f"field_{field:03}"] = (
                rng.randrange(1_000_000)
                if kind == 0
                else rng.random()
                if kind == 1
                else rng.choice(_WORDS)
                if kind == 2
                else rng.random() < 0.5
            )
    return document


def mixed(rng: random.Random, number: int) -> Document:
    """A content management system that grew: one field, several types."""
    value: Any = rng.choice((rng.randrange(1000), str(rng.randrange(1000)), rng.random(), None))
    return {
        "n": number,
        "title": " ".join(rng.choices(_WORDS, k=4)),
        "slug": f"page-{number}",
        "value": value,
        "price": rng.choice((rng.randrange(1000), round(rng.random() * 500, 2))),
        "author": {"name": rng.choice(_WORDS), "id": number % 97} if rng.random() < 0.7 else rng.choice(_WORDS),
        "published": _NEW_YEAR + timedelta(seconds=rng.randrange(10_000_000)),
        "rank": number % 1000 if rng.random() < 0.9 else str(number % 1000),
        "tags": [rng.choice(_WORDS) for _ in range(rng.randrange(4))],
    }


def fat(rng: random.Random, number: int) -> Document:
    """100 KB: a text, an embedding, a history."""
    return {
        "n": number,
        "text": " ".join(rng.choices(_WORDS, k=9000)),
        "embedding": [rng.random() for _ in range(1536)],
        "history": [{"at": _NEW_YEAR, "by": rng.choice(_WORDS), "count": n} for n in range(300)],
    }


def text_of(size: int, rng: random.Random, number: int) -> Document:
    """A number, and a text of about so many bytes."""
    return {"n": number, "text": " ".join(rng.choices(_WORDS, k=max(1, size // 7)))}


def columns_of(count: int, rng: random.Random, number: int) -> Document:
    """So many integers."""
    return {f"f{place:04}": rng.randrange(1000) for place in range(count)}


# Those that are named with a number: text-1000, columns-100.
_FAMILIES: dict[str, Callable[[int, random.Random, int], Document]] = {"text": text_of, "columns": columns_of}

WORKLOADS: dict[str, Callable[[random.Random, int], Document]] = {
    "orders": orders,
    "tiny": tiny,
    "nested": nested,
    "wide": wide,
    "mixed": mixed,
    "fat": fat,
}


# Documents in one insert command.
_BATCH = {"orders": 5000, "tiny": 10_000, "nested": 2000, "wide": 2000, "mixed": 5000, "fat": 100}


def documents(workload: str, count: int, seed: int = 1) -> Iterator[Document]:
    """``count`` documents of a workload, the same for the same seed."""
    rng = random.Random(seed)
    family, _, size = workload.partition("-")
    make = partial(_FAMILIES[family], int(size)) if size else WORKLOADS[workload]
    return (make(rng, number) for number in range(count))


def insert(collections: Sequence[Collection[Document]], workload: str, count: int, seed: int = 1) -> None:
    """Insert ``count`` documents in batches, into the collections in turn, several batches into each."""
    batch: list[Document] = []
    size = min(_BATCH.get(workload, 500), max(1, count // (4 * len(collections))))
    for number, document in enumerate(documents(workload, count, seed), 1):
        batch.append(document)
        if len(batch) == size or number == count:
            collections[number // size % len(collections)].insert_many(batch, ordered=False)
            batch = []


def change(collection: Collection[Document], count: int, seed: int = 1) -> None:
    """``count`` changes to orders: 60 % updates of some fields, 25 % inserts, 5 % replaces, 10 % deletes."""
    rng = random.Random(seed)
    fresh = documents("orders", count, seed)
    living: list[int] = []
    requests: list[Any] = []
    for number in range(count):
        kind = rng.choices(("update", "insert", "replace", "delete"), (60, 25, 5, 10))[0] if living else "insert"
        if kind == "insert":
            requests.append(InsertOne({"_id": number, **next(fresh)}))
            living.append(number)
            continue
        place = rng.randrange(len(living))
        key = {"_id": living[place]}
        if kind == "update":
            values = {"status": rng.choice(("paid", "done")), "total": rng.random(), "quantity": number}
            requests.append(UpdateOne(key, {"$set": values}))
        elif kind == "replace":
            requests.append(ReplaceOne(key, next(fresh)))
        else:
            living[place] = living[-1]
            living.pop()
            requests.append(DeleteOne(key))
        if len(requests) >= 1000:
            collection.bulk_write(requests)
            requests = []
    if requests:
        collection.bulk_write(requests)
