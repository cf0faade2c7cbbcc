"""Segments being built: their objects, each with the rows collected for it and the file that they go into.

State: what has been collected and not written. Owner: the writer's loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.config.tree import Config
from engine.core import messages as msg
from engine.core.naming import (
    Directories,
    Partitioning,
    is_split,
    layout_of,
    object_key,
    partition_of_seconds,
)
from engine.core.position import split_time, token_document, token_time
from engine.core.schema import CollectionSchema
from engine.core.schemas import packed_schema
from engine.encode.formats import DEAD_LETTER_SUFFIX, Encoder, open_file, suffix_of
from engine.footprint import arrays_bytes, joined
from engine.processes.figures import work_since
from engine.shared.slab import Content
from engine.sink.objects import Sink, Upload

# Collected batches are put together when they take so much more than twice their values.
_SCATTERED_BYTES = 4 * 2**20


class Outflow:
    """Passes an object's bytes from its encoder to its upload, and counts them.

    The encoder gets this rather than the build that owns it: Arrow holds its file where the garbage collector
    cannot see it, so a reference back to the build would leak the build.
    """

    def __init__(self, upload: Upload) -> None:
        self._upload: Upload | None = upload
        self.size = 0
        self.uploading: msg.Work | None = None

    def write(self, data: bytes) -> int:
        """Add bytes to the upload; called by the encoder."""
        self.size += len(data)
        if self._upload is None:
            return len(data)
        with self.timed():
            return self._upload.write(data)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count what is done here as uploading."""
        began = time.monotonic()
        yield
        self.uploading = work_since(began).plus(self.uploading)

    @property
    def uploading_s(self) -> float:
        """How long uploading has taken so far."""
        return 0.0 if self.uploading is None else self.uploading.busy_s

    def cut(self) -> None:
        """Ignore further writes: an encoder that is dropped still writes the end of its file."""
        self._upload = None


class ObjectBuild:
    """One object being built: the rows collected for the next row group, and the file they go to."""

    def __init__(
        self,
        name: msg.ObjectName,
        segment: tuple[str, int],
        upload: Upload,
        schema: CollectionSchema,
        config: Config,
    ) -> None:
        self.name = name
        self.segment = segment
        self.upload = upload
        self.schema = schema
        self._config = config
        self._outflow = Outflow(upload)
        self._file: Encoder | None = None
        self._pending: list[pa.RecordBatch] = []
        self._values_bytes = self._arrays_bytes = 0  # of what is collected
        self.rows = 0
        self.encoding: msg.Work | None = None

    @property
    def uploading(self) -> msg.Work | None:
        """When its bytes were uploaded."""
        return self._outflow.uploading

    @property
    def size(self) -> int:
        """Bytes of the object so far."""
        return self._outflow.size

    @property
    def pending_bytes(self) -> int:
        """About how much memory the collected rows take."""
        return self._values_bytes + self._arrays_bytes

    def add(self, batch: pa.RecordBatch) -> None:
        """Collect rows for the next row group."""
        self.rows += batch.num_rows
        self._collect(batch)
        if self._arrays_bytes > self._values_bytes + _SCATTERED_BYTES:
            batches = joined(self._pending)  # many of a few rows take far more than their values
            self._forget_pending()
            for each in batches:
                self._collect(each)

    def _collect(self, batch: pa.RecordBatch) -> None:
        self._pending.append(batch)
        self._values_bytes += batch.nbytes
        self._arrays_bytes += arrays_bytes(batch.schema)

    def flush(self) -> None:
        """Write the collected rows as a row group."""
        if not self._pending:
            return
        with self._encoding():
            self._open().write([self._stamped(batch) for batch in self._pending])
        self._forget_pending()

    @contextmanager
    def _encoding(self) -> Iterator[None]:
        """Count what is done here as encoding, except for the uploads in it."""
        began, before_s = time.monotonic(), self._outflow.uploading_s
        yield
        self.encoding = work_since(began, self._outflow.uploading_s - before_s).plus(self.encoding)

    def spill(self) -> None:
        """Upload what is held of a sealed object."""
        with self._outflow.timed():
            self.upload.spill()

    def _forget_pending(self) -> None:
        self._pending = []
        self._values_bytes = self._arrays_bytes = 0

    def _stamped(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows with the segment that they belong to."""
        if self.name.dead_letter:
            return batch
        stream, seq = self.segment
        batch = batch.append_column("_cdc_stream", pa.repeat(pa.scalar(stream), batch.num_rows))
        return batch.append_column("_cdc_seq", pa.repeat(pa.scalar(seq), batch.num_rows))

    def _open(self) -> Encoder:
        if self._file is None:
            raw = self._config.schema.raw
            self._file = open_file(self.name.key, self._outflow, self.schema, self._config.sink, raw=raw)
        return self._file

    def seal(self, facts: dict[str, str]) -> None:
        """Write everything including the footer, without making it visible."""
        self.flush()
        own = {
            "headrace.database": self.name.database,
            "headrace.collection": self.name.collection,
            "headrace.schema_version": str(self.schema.version),
            "headrace.schema": packed_schema(self.schema),
            "headrace.rows": str(self.rows),
        }
        with self._encoding():
            self._open().close(facts | own)
        self._file = None  # a sealed object may wait long to be published, and should hold little memory
        with self._outflow.timed():
            self.upload.seal()

    def discard(self) -> None:
        """Leave nothing behind."""
        self._outflow.cut()
        self._file = None
        self._forget_pending()
        self.upload.discard()


class SegmentBuild:
    """One segment being built: its objects by key."""

    def __init__(
        self,
        stream: str,
        seq: int,
        sink: Sink,
        config: Config,
        directories: Directories | None = None,
        *,
        epoch: int = 0,
    ) -> None:
        self.epoch = epoch
        self._directories = directories or layout_of(config.sink.partition_by)
        self._stream = stream
        self._seq = seq
        self._sink = sink
        self._config = config
        self.objects: dict[str, ObjectBuild] = {}

    def add(self, content: Content, batch: pa.RecordBatch) -> None:
        """Add the rows of one collection to the objects of their partitions."""
        if content.dead_letters:
            name = self._name(content.database, content.collection, "none", dead_letter=True)
            self._object(name, content.schema).add(batch)
            return
        for partition, part in _by_partition(batch, self._config.sink.partition_by, self._directories):
            name = self._name(content.database, content.collection, partition)
            self._object(name, content.schema).add(part)

    def _name(
        self, database: str, collection: str, partition: str, *, dead_letter: bool = False
    ) -> msg.ObjectName:
        key = object_key(
            self._stream,
            self._seq,
            database,
            collection,
            partition,
            shards=self._config.sink.prefix_shards,
            suffix=DEAD_LETTER_SUFFIX if dead_letter else suffix_of(self._config.sink),
            dead_letter=dead_letter,
            directories=self._directories,
        )
        return msg.ObjectName(key, database, collection, dead_letter)

    def _object(self, name: msg.ObjectName, schema: CollectionSchema) -> ObjectBuild:
        build = self.objects.get(name.key)
        if build is None:
            segment = self._stream, self._seq
            build = ObjectBuild(name, segment, self._sink.open(name.key), schema, self._config)
            self.objects[name.key] = build
        assert build.schema.version == schema.version or name.dead_letter, "the reader cuts when a schema grows"
        return build

    def pending(self) -> Iterator[ObjectBuild]:
        """The objects with collected rows."""
        return (build for build in self.objects.values() if build.pending_bytes)

    def work(self) -> tuple[msg.Work | None, msg.Work | None]:
        """When its objects were encoded, and when uploaded."""
        encoding = uploading = None
        for build in self.objects.values():
            encoding = build.encoding.plus(encoding) if build.encoding else encoding
            uploading = build.uploading.plus(uploading) if build.uploading else uploading
        return encoding, uploading

    def seal(self, sealed: msg.Seal, version: str) -> None:
        """Finish all objects, with an empty one for each other that an earlier attempt may have made."""
        intent, after = sealed.intent, sealed.after
        for name in intent.objects:
            if name.key not in self.objects:
                self._object(name, CollectionSchema())
        facts = {
            "headrace.stream": self._stream,
            "headrace.seq": str(self._seq),
            "headrace.first_token": self._footer_token(intent.first_token),
            "headrace.last_token": self._footer_token(intent.end.token),
            "headrace.after_token": self._footer_token(after.token),
            "headrace.after_time": str(after.time),
            "headrace.line": str(sealed.line),
            "headrace.version": version,
            # Published one by one: without their number, a partly published segment looks like a whole one.
            "headrace.objects": str(len(self.objects)),
        }
        if sealed.replaced:
            facts["headrace.replaced"] = msgspec.json.encode(sealed.replaced).decode()
        for build in self.objects.values():
            build.seal(facts)

    def _footer_token(self, token: str | None) -> str:
        """A whole resume token as the hex of its BSON; a position in a split as it is."""
        if not token:
            return ""
        return token if is_split(self._stream) else token_document(token).hex()

    def discard(self) -> None:
        """Leave nothing behind."""
        for build in self.objects.values():
            build.discard()


def _by_partition(
    batch: pa.RecordBatch, partition_by: Partitioning, directories: Directories
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The rows of each event-time partition, in stream order."""
    if partition_by in ("collection", "none"):
        yield partition_by, batch
        return
    unit_s = 3600 if partition_by == "hour" else 86400
    buckets = _event_seconds(batch) // unit_s
    values = np.unique(buckets)
    for bucket in values.tolist():
        partition = partition_of_seconds(bucket * unit_s, partition_by, directories)
        yield partition, batch if len(values) == 1 else batch.filter(pa.array(buckets == bucket))


def _event_seconds(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """The cluster time of each row, in seconds since 1970; from the token if a pipeline removed the field."""
    names = batch.schema.names
    times = batch.column("_cdc_cluster_time") if "_cdc_cluster_time" in names else None
    if times is not None and not times.null_count:
        return np.asarray(times.cast(pa.int64()).to_numpy()) // 1000
    tokens = batch.column("_cdc_token").to_pylist()
    given = times.cast(pa.int64()).to_pylist() if times is not None else [None] * len(tokens)
    seconds = [
        split_time(token_time(token or "") or 0)[0] if milliseconds is None else milliseconds // 1000
        for token, milliseconds in zip(tokens, given, strict=True)
    ]
    return np.array(seconds, np.int64)
