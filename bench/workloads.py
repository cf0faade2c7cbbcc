"""Seeded documents to measure with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

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


WORKLOADS: dict[str, Callable[[random.Random, int], Document]] = {"orders": orders}


def documents(workload: str, count: int, seed: int = 1) -> Iterator[Document]:
    """So many documents of a workload, the same for the same seed."""
    rng = random.Random(seed)
    make = WORKLOADS[workload]
    return (make(rng, number) for number in range(count))


def insert(collection: Collection[Document], workload: str, count: int, seed: int = 1) -> None:
    """Insert them, in batches."""
    batch: list[Document] = []
    for document in documents(workload, count, seed):
        batch.append(document)
        if len(batch) == 5000:
            collection.insert_many(batch, ordered=False)
            batch = []
    if batch:
        collection.insert_many(batch, ordered=False)
