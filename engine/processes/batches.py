"""From the rows of a reply to what goes into a slab: decoded, and within its share of the shared memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from engine.core.schema import CollectionSchema
from engine.core.specs import Spec, SplitSpec, one_collection
from engine.decode.decoder import Decoded, Decoder
from engine.errors import FatalError
from engine.processes.assignment import Assignment
from engine.shared.slab import Content, SlabLayout
from engine.source.reply import Reply

CHUNK_ROWS = 16_384
LARGE_DOCUMENT = 2**14
CHUNK_BYTES = 2**22
ARENA_SHARE = 8


class Batches:
    """Makes a reader's batches.

    State: how much larger rows are as columns than as BSON, as last measured. Owner: the reader's loop.

    Args:
        known: the schemas that the decoder has used, by database and collection.
        arena_size: bytes of shared memory for all slabs together.
        beat: called before each decoding, which may take a while.
    """

    def __init__(
        self,
        known: Mapping[tuple[str, str], CollectionSchema],
        arena_size: int,
        beat: Callable[[], None],
    ) -> None:
        self._known = known
        self._arena_size = arena_size
        self._beat = beat
        self._growth = 1.0

    def batch(
        self, decoder: Decoder, assignment: Assignment, reply: Reply, row: int, stop: int
    ) -> tuple[SlabLayout, Decoded, int]:
        """The rows as columns, as many as fit their share of the arena, and where they end.

        Documents that each have only a few of a collection's many fields are much larger as columns than as BSON.

        Raises:
            FatalError: one event alone is larger than the arena.
        """
        share = self._arena_size // ARENA_SHARE
        while True:
            self._beat()
            offsets = reply.offsets[row : stop + 1]
            if isinstance(assignment.spec, SplitSpec):
                decoded = decoder.decode_documents(reply.data, offsets, assignment.read_at)
            else:
                decoded = decoder.decode(reply.data, offsets)
            layout = SlabLayout(self._contents(assignment.spec, decoded))
            raw_bytes = int(reply.offsets[stop] - reply.offsets[row])
            self._growth = max(1.0, layout.size / raw_bytes)
            if layout.size <= 2 * share or stop == row + 1:
                break
            stop = row + max(1, int((stop - row) * share / layout.size))
        if layout.size > self._arena_size:
            cause = f"an event takes {layout.size} bytes, but all slabs together have only {self._arena_size}"
            raise FatalError("hand a batch to a writer", cause, "Raise memory.limit.")
        return layout, decoded, stop

    def chunk_rows(self, reply: Reply, row: int) -> int:
        """How many rows from here on may be decoded together, so that they fit their share of the arena.

        Large documents have long arrays, whose elements take several times their size while being located.
        """
        max_bytes = int(self._arena_size / ARENA_SHARE / self._growth)
        if int(reply.offsets[-1] - reply.offsets[0]) > LARGE_DOCUMENT * len(reply):
            max_bytes = min(max_bytes, CHUNK_BYTES)
        budget = int(reply.offsets[row]) + max_bytes
        return min(CHUNK_ROWS, max(1, int(np.searchsorted(reply.offsets, budget)) - 1 - row))

    def _contents(self, spec: Spec, decoded: Decoded) -> list[tuple[Content, pa.RecordBatch]]:
        contents = []
        for batch in decoded.batches:
            schema = self._known[batch.database, batch.collection]
            rows = batch.batch.num_rows
            contents.append((Content(batch.database, batch.collection, 0, 0, rows, schema), batch.batch))
        if decoded.dead_letters:
            letters = pa.record_batch([pa.array(decoded.dead_letters, pa.binary())], names=["event"])
            content = Content(spec.database, one_collection(spec), 0, 0, letters.num_rows, dead_letters=True)
            contents.append((content, letters))
        return contents
