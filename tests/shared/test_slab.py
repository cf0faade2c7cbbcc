"""Batches read from a slab are copies, independent of the slab."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from engine.core.schema import CollectionSchema, DataType, Field
from engine.shared.arena import Arena
from engine.shared.slab import Content, SlabLayout, read_slab

SCHEMA = CollectionSchema(3, (Field("x", DataType("int64"), 1),))


def batch(rows: int) -> pa.RecordBatch:
    columns = [pa.array(range(rows), pa.int64()), pa.array([f"é{n}" if n % 3 else None for n in range(rows)])]
    return pa.record_batch(columns, names=["x", "s"])


@pytest.mark.parametrize("sizes", [[0], [1], [1000], [1, 0, 5000, 7]])
def test_batches_survive_a_round_trip(sizes: list[int]) -> None:
    arena = Arena.create(1 << 20)
    given = [(Content("d", f"c{n}", 0, 0, size, SCHEMA), batch(size)) for n, size in enumerate(sizes)]
    layout = SlabLayout(given)
    slab = arena.slab(4096, layout.size)
    layout.write(slab)
    found = list(read_slab(slab))
    slab[:] = bytes(len(slab))
    assert [(c.collection, c.rows, c.schema) for c, _ in found] == [
        (c.collection, c.rows, SCHEMA) for c, _ in given
    ]
    for (_, before), (_, after) in zip(given, found, strict=True):
        assert after.equals(before)


def test_a_slice_takes_only_its_own_space() -> None:
    whole = batch(10_000)
    part = SlabLayout([(Content("d", "c", 0, 0, 10), whole.slice(5000, 10))])
    assert part.size < 8192


def test_the_arena_is_shared_by_its_descriptor_and_has_no_name() -> None:
    before = set(Path("/dev/shm").iterdir())
    arena = Arena.create(1 << 20)
    arena.slab(100, 5)[:] = b"hello"
    script = (
        "import sys; from engine.shared.arena import Arena; "
        "print(bytes(Arena(int(sys.argv[1]), 1 << 20).slab(100, 5)))"
    )
    os.set_inheritable(arena.fd, True)
    done = subprocess.run(
        [sys.executable, "-c", script, str(arena.fd)],
        pass_fds=[arena.fd],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "b'hello'"
    assert set(Path("/dev/shm").iterdir()) == before
