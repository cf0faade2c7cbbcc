"""A fuzzer: ``python -m tests.decode.fuzz [BYTES] [SEED]`` decodes that many mutated bytes.

Documents and events of the corpus are broken at random places, a few in each batch. Whatever that does to
them, the decoder must neither raise nor hang, account for every row, and decode all others as usual.
"""

from __future__ import annotations

import random
import sys
import time
from typing import Any

import bson
import numpy as np

from bench.decode import Schemas, update_mix
from engine.decode.decoder import Decoder
from engine.decode.schema import SchemaOptions
from tests.decode import corpus, lake
from tests.decode.test_properties import rows_of

_SLOWEST_S = 20.0


def fuzz(bytes_min: int, seed: int) -> tuple[int, int, int]:
    """Decode at least so many bytes; the number of bytes, rows and dead letters."""
    rng = random.Random(seed)
    sources = {name: list(corpus.collection(name))[:200] for name in corpus.COLLECTIONS if name != "huge"}
    sources["events"] = [bson.encode(each) for each in update_mix(200)]
    total = rows = dead = 0
    while total < bytes_min:
        name = rng.choice(sorted(sources))
        found = rng.choices(sources[name], k=rng.randrange(1, 60))
        broken = {rng.randrange(len(found)) for _ in range(rng.randrange(1, 6))}
        mutated = [mutate(rng, each) if number in broken else each for number, each in enumerate(found)]
        letters = check(name, found, mutated, broken)
        total += sum(map(len, mutated))
        rows += len(found)
        dead += letters
    return total, rows, dead


def check(name: str, found: list[bytes], mutated: list[bytes], broken: set[int]) -> int:
    """Decode a batch with some broken rows, and check the others."""
    offsets = np.zeros(len(mutated) + 1, np.int64)
    np.cumsum([len(each) for each in mutated], out=offsets[1:])
    schemas = Schemas()
    decoder = Decoder(schemas, SchemaOptions(raw=True), ("db", name))
    data = b"".join(mutated)
    started = time.perf_counter()
    decoded = decoder.decode(data, offsets) if name == "events" else decoder.decode_documents(data, offsets)
    assert time.perf_counter() - started < _SLOWEST_S
    got: dict[bytes, tuple[dict[str, Any], Any]] = {}
    for each in decoded.batches:
        each.batch.validate(full=True)
        fields = schemas.get(each.database, each.collection).fields
        got |= {row["_cdc_raw"]: (row, fields) for row in rows_of(each.batch)}
    count = sum(each.batch.num_rows for each in decoded.batches)
    assert count + len(decoded.dead_letters) == len(mutated), "a row is missing or duplicated"
    for number, document in enumerate(found):
        if number not in broken:
            row, fields = got[document]
            tree = lake.document_tree(document)
            if name == "events":
                assert (row["_cdc_op"], row["_cdc_token"]) == (tree["operationType"][1], tree["_id"]["_data"][1])
                tree = tree.get("fullDocument", tree["documentKey"])
            assert lake.document_of(row, fields) == tree, (name, document)
    return len(decoded.dead_letters)


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Corrupt a document somewhere."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        at = rng.randrange(len(found)) if found else 0
        match rng.randrange(7):
            case 0:
                found[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                found[at : at + 1] = bytes([found[at] ^ 1 << rng.randrange(8)]) if found else b""
            case 2:
                found[at : at + 4] = rng.choice((-1, 0, 1, 5, 2**31 - 1, -(2**31), len(data))).to_bytes(
                    4, "little", signed=True
                )
            case 3:
                del found[at:]
            case 4:
                del found[at : at + rng.randrange(9)]
            case 5:
                found[at:at] = rng.randbytes(rng.randrange(9))
            case 6:
                found[at : at + 1] = bytes([rng.choice((0, 1, 2, 3, 4, 5, 0x0B, 0x0C, 0x0F, 0x13, 0x7F, 0xFF))])
    return bytes(found)


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    started = time.perf_counter()
    size, count, letters = fuzz(wanted, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    took = time.perf_counter() - started
    print(
        f"{size:,} bytes in {count:,} rows, {letters:,} of them dead letters: no crash, no lost row, {took:.0f} s"
    )
