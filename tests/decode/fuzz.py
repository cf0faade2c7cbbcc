"""Mutated bytes: ``python -m tests.decode.fuzz [BYTES] [SEED]`` decodes so many of them.

Documents and events of the corpus are broken at random places, a few in each batch. Whatever that does to
them, the decoder neither raises nor hangs, accounts for every row, and decodes the others as if nothing were.
"""

from __future__ import annotations

import random
import sys
import time
from typing import Any

import bson
import numpy as np
import pyarrow as pa

from bench.decode import update_mix
from engine.decode.decoder import Decoder
from engine.decode.schema import SchemaOptions
from tests.decode import corpus, lake

_SLOWEST_S = 20.0


def fuzz(most_bytes: int, seed: int) -> tuple[int, int, int]:
    """Decode so many bytes; how many bytes, rows and dead letters it were."""
    rng = random.Random(seed)
    sources = {name: list(corpus.collection(name))[:200] for name in corpus.COLLECTIONS if name != "huge"}
    sources["events"] = [bson.encode(each) for each in update_mix(200)]
    total = rows = dead = 0
    while total < most_bytes:
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
    """Decode a batch with some rows broken, and compare the others with themselves."""
    offsets = np.zeros(len(mutated) + 1, np.int64)
    np.cumsum([len(each) for each in mutated], out=offsets[1:])
    schemas = lake.Schemas()
    options = SchemaOptions(raw=True)
    whole = [each for number, each in enumerate(found) if number not in broken]
    expected = _rows(_decode(Decoder(schemas, options, ("db", name)), name, whole)) if whole else []
    started = time.perf_counter()
    decoder = Decoder(schemas, options, ("db", name))
    data = b"".join(mutated)
    decoded = decoder.decode(data, offsets) if name == "events" else decoder.decode_documents(data, offsets)
    assert time.perf_counter() - started < _SLOWEST_S
    for each in decoded.batches:
        each.batch.validate(full=True)
    count = sum(each.batch.num_rows for each in decoded.batches)
    assert count + len(decoded.dead_letters) == len(mutated), "a row is lost, or there twice"
    got = {row.pop("_cdc_raw"): row for row in _rows(decoded)}
    for number, row in enumerate(expected):
        raw = row.pop("_cdc_raw")
        assert raw == whole[number] or name == "events"
        kept = {column: value for column, value in got[raw].items() if value is not None}
        assert kept == {column: value for column, value in row.items() if value is not None}, (name, raw)
    return len(decoded.dead_letters)


def _decode(decoder: Decoder, name: str, documents: list[bytes]) -> Any:
    offsets = np.zeros(len(documents) + 1, np.int64)
    np.cumsum([len(each) for each in documents], out=offsets[1:])
    data = b"".join(documents)
    return decoder.decode(data, offsets) if name == "events" else decoder.decode_documents(data, offsets)


def _rows(decoded: Any) -> list[dict[str, Any]]:
    rows = []
    for each in decoded.batches:
        columns = [_comparable(column).to_pylist() for column in each.batch.columns]
        rows += [dict(zip(each.batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]
    return rows


def _comparable(array: pa.Array) -> pa.Array:
    from tests.decode.test_properties import milliseconds

    return milliseconds(array)


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Break a document somewhere, as disks, networks and attackers do."""
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
