"""A seeded writer of inserts, updates, replaces and deletes, as a process of its own: ``URI DATABASE SEED``.

It writes until its standard input is closed, then prints how many writes it made.
"""

from __future__ import annotations

import random
import select
import sys
import time
from typing import Any

from pymongo import MongoClient

PER_SECOND = 400


def main(uri: str, database: str, seed: str, *collections: str) -> None:
    rng = random.Random(seed)
    client: MongoClient[dict[str, Any]] = MongoClient(uri)
    alive: dict[str, list[int]] = {name: [] for name in collections}
    writes = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        name = rng.choice(collections)
        target, keys = client[database][name], alive[name]
        roll = rng.random()
        if roll < 0.5 or not keys:
            target.insert_one({"_id": writes, "text": "x" * rng.randrange(200), "number": rng.random()})
            keys.append(writes)
        elif roll < 0.75:
            target.update_one(
                {"_id": rng.choice(keys)}, {"$set": {"number": rng.random(), f"f{rng.randrange(8)}": writes}}
            )
        elif roll < 0.85:
            target.replace_one({"_id": rng.choice(keys)}, {"text": "replaced", "list": [writes, 2]})
        else:
            target.delete_one({"_id": keys.pop(rng.randrange(len(keys)))})
        writes += 1
        time.sleep(1 / PER_SECOND)
    print(writes)


if __name__ == "__main__":
    main(*sys.argv[1:])
