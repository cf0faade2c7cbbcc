"""Slabs: a batch of decoded events in shared memory (``engine.shared.arena``).

A slab holds a table of contents, followed by one Arrow IPC stream per record batch. A writer usually copies a
slab's batches out at once, so that the slab is free again before anything is encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import pyarrow as pa
from msgspec import Struct

from engine.core.schema import CollectionSchema

_ALIGNMENT = 64
_LENGTH_BYTES = 4


class Content(Struct, frozen=True):
    """One record batch in a slab; ``offset`` is in bytes from the start of the slab.

    A dead-letter batch has one binary column with the raw events.
    """

    database: str
    collection: str
    offset: int
    size: int
    rows: int
    schema: CollectionSchema = CollectionSchema()
    dead_letters: bool = False


class SlabLayout:
    """The layout of a slab, computed before the slab is requested.

    Args:
        batches: each batch with its description; ``offset`` and ``size`` are filled in here.
    """

    def __init__(self, batches: Sequence[tuple[Content, pa.RecordBatch]]) -> None:
        self._batches = [batch for _, batch in batches]
        sizes = [_ipc_size(batch) for batch in self._batches]
        # The offsets are in the table of contents, whose length shifts them: reserve space for the longest table.
        reserved = _LENGTH_BYTES + len(_encode([_placed(content, 2**40, 2**40) for content, _ in batches]))
        at = _aligned(reserved)
        self._contents: list[Content] = []
        for (content, _), size in zip(batches, sizes, strict=True):
            self._contents.append(_placed(content, at, size))
            at = _aligned(at + size)
        self.size = at

    def write(self, slab: memoryview) -> None:
        """Write the batches to a slab of ``size`` bytes."""
        table = _encode(self._contents)
        slab[:_LENGTH_BYTES] = len(table).to_bytes(_LENGTH_BYTES, "little")
        slab[_LENGTH_BYTES : _LENGTH_BYTES + len(table)] = table
        for content, batch in zip(self._contents, self._batches, strict=True):
            region = slab[content.offset : content.offset + content.size]
            sink = pa.FixedSizeBufferWriter(pa.py_buffer(region))
            with sink, pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)


def read_slab(slab: memoryview, *, copied: bool = True) -> Iterator[tuple[Content, pa.RecordBatch]]:
    """The batches of a slab: copies, or views of it that are valid until it is freed."""
    length = int.from_bytes(slab[:_LENGTH_BYTES], "little")
    for content in _decode(slab[_LENGTH_BYTES : _LENGTH_BYTES + length]):
        region = slab[content.offset : content.offset + content.size]
        with pa.ipc.open_stream(pa.py_buffer(bytes(region) if copied else region)) as stream:
            yield content, stream.read_next_batch()


def _placed(content: Content, offset: int, size: int) -> Content:
    return msgspec.structs.replace(content, offset=offset, size=size)


def _ipc_size(batch: pa.RecordBatch) -> int:
    counter = pa.MockOutputStream()
    with pa.ipc.new_stream(counter, batch.schema) as stream:
        stream.write_batch(batch)
    return int(counter.size())


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Content]).decode
