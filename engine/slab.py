"""Shared memory between readers and writers: one arena per engine, slabs inside it.

The arena is anonymous memory (``memfd_create``) that the supervisor makes and its children inherit as a file
descriptor. It has no name, so there is nothing to clean up after any exit, nothing of another engine to step
on, and no ``/dev/shm`` of 64 MiB in a container to run out of. Where there is no memfd, an unlinked temporary
file serves.

Which bytes are whose is the coordinator's to say (``core.grants``). A slab holds what a reader made of some
events: a table of contents, then an Arrow IPC stream for each record batch. A writer copies what it needs out
of a slab at once, so that the slab is free again before anything is encoded.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence

import msgspec
import pyarrow as pa
from msgspec import Struct

from engine.core.schema import CollectionSchema

_ALIGNMENT = 64
_LENGTH_BYTES = 4


class Content(Struct, frozen=True):
    """One record batch in a slab; ``offset`` counts from the slab's begin, in bytes.

    A dead letter batch has one binary column with the raw events.
    """

    database: str
    collection: str
    offset: int
    size: int
    rows: int
    schema: CollectionSchema = CollectionSchema()
    dead_letters: bool = False


class Arena:
    """The shared memory; a context manager would be of no use, because it lives as long as its process."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._map = mmap.mmap(fd, size)

    @classmethod
    def create(cls, size: int) -> Arena:
        """New shared memory of ``size`` bytes; nothing is resident before it is touched."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("headrace-slabs", os.MFD_CLOEXEC)
        else:
            fd = os.dup(tempfile.TemporaryFile().fileno())  # noqa: SIM115 - the duplicate keeps it alive
        os.ftruncate(fd, size)
        return cls(fd, size)

    def close(self) -> None:
        """Give the memory back, once nobody looks at a slab any more."""
        self._map.close()
        os.close(self.fd)

    def slab(self, offset: int, size: int) -> memoryview:
        """The bytes of one slab."""
        return memoryview(self._map)[offset : offset + size]


class SlabPlan:
    """What is to go into a slab, measured before there is one.

    Args:
        batches: each batch with what it is; ``offset`` and ``size`` are filled in here.
    """

    def __init__(self, batches: Sequence[tuple[Content, pa.RecordBatch]]) -> None:
        self._batches = [batch for _, batch in batches]
        sizes = [_ipc_size(batch) for batch in self._batches]
        # The table of contents holds the offsets, and its length moves them: so room is left for the longest.
        room = _LENGTH_BYTES + len(_encode([_placed(content, 2**40, 2**40) for content, _ in batches]))
        at = _aligned(room)
        self._contents: list[Content] = []
        for (content, _), size in zip(batches, sizes, strict=True):
            self._contents.append(_placed(content, at, size))
            at = _aligned(at + size)
        self.size = at

    def write(self, slab: memoryview) -> None:
        """Fill a slab of ``size`` bytes."""
        table = _encode(self._contents)
        slab[:_LENGTH_BYTES] = len(table).to_bytes(_LENGTH_BYTES, "little")
        slab[_LENGTH_BYTES : _LENGTH_BYTES + len(table)] = table
        for content, batch in zip(self._contents, self._batches, strict=True):
            part = slab[content.offset : content.offset + content.size]
            sink = pa.FixedSizeBufferWriter(pa.py_buffer(part))
            with sink, pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)


def read_slab(slab: memoryview) -> Iterator[tuple[Content, pa.RecordBatch]]:
    """The batches of a slab, copied out of it."""
    length = int.from_bytes(slab[:_LENGTH_BYTES], "little")
    for content in _decode(slab[_LENGTH_BYTES : _LENGTH_BYTES + length]):
        copied = pa.py_buffer(bytes(slab[content.offset : content.offset + content.size]))
        with pa.ipc.open_stream(copied) as stream:
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
