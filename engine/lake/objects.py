"""The objects of a lake, and what their footers say.

An object belongs to the lake if its key is one that ``core.naming`` makes, of any version and under any setting of
``sink.partition_by``, ``sink.prefix_shards`` and ``sink.format``. Everything else below ``sink.url`` is ignored.
Only Parquet files have a footer; it is read without the rest of the object.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from engine.config.tree import RetryConfig, SinkConfig
from engine.core.messages import Replaced
from engine.core.naming import (
    LAYOUTS,
    KeyParts,
    collection_directory,
    is_split,
    parts_of,
    stream_id,
)
from engine.core.position import Position, make_token, position_at
from engine.errors import ConfigError, HeadraceError
from engine.lake.times import in_milliseconds, schema_in_milliseconds
from engine.rawbson.elements import STRING, MalformedBSON, find
from engine.retries import retrying
from engine.sink.lake import all_shards
from engine.sink.objects import Sink

PARQUET = ".parquet"
# How many footers are read at once. Each takes one request of 64 KiB, and the memory of its decoded metadata.
THREADS = 16
# Objects up to this size are read in one request, instead of one for each run of columns.
_WHOLE_BYTES = 4 * 2**20
# Rows that are decoded at once, approximately.
_BATCH_BYTES = 8 * 2**20


class Stored(Protocol):
    """What can be read: something with a key below ``sink.url``, and a size in bytes."""

    @property
    def key(self) -> str:
        """Below ``sink.url``."""

    @property
    def size(self) -> int:
        """In bytes."""


class LakeObject(Struct, frozen=True):
    """An object of the lake: its key below ``sink.url``, what the key shows, and the size in bytes."""

    key: str
    parts: KeyParts
    size: int

    @property
    def has_footer(self) -> bool:
        """Whether its format has a footer."""
        return self.parts.suffix == PARQUET


class Footer(Struct, frozen=True):
    """What the footer of an object says.

    Attributes:
        stream, seq: the segment that the object is of.
        first_token, last_token: the tokens of the segment's first and last events, as in ``core.position``, or the
            places of a split (``core.backfill``); ``first_token`` is empty for a segment without events.
        rows: the number of rows that the file has.
        rows_written: the number that was written; None in objects of version 0.2 and before.
        objects: how many objects the segment was published as, dead letters included; None likewise.
        line: how often the stream had been rewound before.
        schema_version: the version of the collection's schema.
        version: the engine's version.
        after: the position that the segment follows; None in objects of version 0.2 and before.
        replaced: the collections that were replaced up to there and whose content had not been loaded.
        database, collection: whose rows it holds; None likewise.
        schema: the collection's schema, see ``core.schemas.packed_schema``; None likewise.
    """

    stream: str
    seq: int
    first_token: str
    last_token: str
    rows: int
    rows_written: int | None = None
    objects: int | None = None
    line: int = 0
    schema_version: int = 0
    version: str = ""
    after: Position | None = None
    replaced: tuple[Replaced, ...] = ()
    database: str | None = None
    collection: str | None = None
    schema: str | None = None


class UnreadableError(Exception):
    """An object is not what the engine writes: damaged, cut short, or without the engine's metadata."""


class Objects:
    """Lists and reads the objects of a lake.

    Args:
        retry: with it, reads are tried again while the store is away.

    Raises (by every method):
        ConfigError, TransientError: of the store; see ``Sink``.
    """

    def __init__(self, config: SinkConfig, retry: RetryConfig | None = None) -> None:
        self._sink = Sink(config)
        self._retry = retrying(retry, what="the sink") if retry is not None else None

    def all(self, *, dead_letters: bool = False) -> Iterator[LakeObject]:
        """Every object of the lake, in the order of keys."""
        return (each for each in self.below("") if dead_letters or not each.parts.dead_letter)

    def everything(self) -> Iterator[LakeObject | str]:
        """Every object below ``sink.url``, in the order of keys; of what is not the lake's, the key."""
        for key, size in self._sink.entries(""):
            parts = parts_of(key)
            yield key if parts is None else LakeObject(key, parts, size)

    def of_stream(self, stream: str, *, dead_letters: bool = False) -> Iterator[LakeObject]:
        """The objects of one stream; lists the whole lake, since they may be of any collection."""
        return (each for each in self.all(dead_letters=dead_letters) if each.parts.stream == stream)

    def of_collection(self, database: str, collection: str) -> Iterator[LakeObject]:
        """The objects with rows of one collection, without dead letters; lists only where they can be."""
        for shard in all_shards(self._sink):
            for directories in LAYOUTS:
                yield from self.below(shard + collection_directory(database, collection, directories))
            # Without directories, files have the name of their stream, then that of the collection.
            for prefix in (stream_id(database), stream_id()):
                for each in self.below(shard + prefix):
                    if each.parts.partition == "none" and is_of(each, database, collection):
                        yield each

    def parquet_of(self, database: str, collection: str, remedy: str) -> Iterator[LakeObject]:
        """The objects with rows of one collection, all of which must be Parquet.

        Args:
            remedy: for the error.

        Raises:
            ConfigError: one is not.
        """
        for each in self.of_collection(database, collection):
            if not each.has_footer:
                cause = f"{each.key} is not Parquet, and only that can be read back"
                raise ConfigError(f"read {database}.{collection} in the lake", cause, remedy)
            yield each

    def below(self, prefix: str, after: str = "") -> Iterator[LakeObject]:
        """The objects whose keys start with ``prefix`` and sort after ``after``, in the order of keys."""
        for key, size in self._sink.entries(prefix, after):
            parts = parts_of(key)
            if parts is not None:
                yield LakeObject(key, parts, size)

    def footers(self, objects: Iterable[LakeObject]) -> Iterator[tuple[LakeObject, Footer | UnreadableError]]:
        """The footers of these objects, in their order, as far as they have one; at most ``THREADS`` are held."""
        wanted = (each for each in objects if each.has_footer)
        with ThreadPoolExecutor(THREADS, thread_name_prefix="footers") as pool:
            begun: deque[tuple[LakeObject, Future[Footer | UnreadableError]]] = deque()
            try:
                for each in wanted:
                    begun.append((each, pool.submit(self._footer, each)))
                    if len(begun) == THREADS:
                        done, answer = begun.popleft()
                        yield done, answer.result()
                while begun:
                    done, answer = begun.popleft()
                    yield done, answer.result()
            finally:
                for _, answer in begun:
                    answer.cancel()

    def _footer(self, object_: LakeObject) -> Footer | UnreadableError:
        try:
            return self.footer(object_)
        except UnreadableError as error:
            return error

    def footer(self, object_: LakeObject) -> Footer:
        """The footer of one object.

        Raises:
            UnreadableError: it has none that can be read.
        """
        with _damage_told(KeyError):
            metadata = pq.read_metadata(self.open(object_))
            return read_footer(metadata.metadata or {}, metadata.num_rows)

    def batches(
        self,
        object_: Stored,
        rows: int,
        *,
        checked: bool = False,
        columns: Callable[[pq.RowGroupMetaData, list[str]], list[str]] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a Parquet object, so many at once, or fewer large ones; a row group is in memory.

        Times are in milliseconds, whatever the file has.

        Args:
            checked: compare the checksum of every page.
            columns: chooses the columns to read of a row group, given the names of all; by default all.

        Raises:
            UnreadableError: it is damaged.
        """
        with _damage_told():
            file = pq.ParquetFile(self._opened(object_), page_checksum_verification=checked, pre_buffer=True)
            names = list(file.schema_arrow.names)
            as_they_are = schema_in_milliseconds(file.schema_arrow) == file.schema_arrow
            for number in range(file.num_row_groups):  # one after the other: what is requested at once is held
                group = file.metadata.row_group(number)
                row_bytes = max(1, group.total_byte_size // max(1, group.num_rows))
                size = max(1, min(rows, _BATCH_BYTES // row_bytes))
                chosen = names if columns is None else columns(group, names)
                read = file.iter_batches(size, row_groups=[number], columns=chosen, use_threads=False)
                yield from read if as_they_are else map(in_milliseconds, read)

    def schema(self, object_: Stored) -> pa.Schema:
        """The columns of a Parquet object, as ``batches`` gives them.

        Raises:
            UnreadableError: it is damaged.
        """
        with _damage_told():
            return schema_in_milliseconds(pq.read_schema(self.open(object_)))

    def _opened(self, object_: Stored) -> Any:
        if object_.size > _WHOLE_BYTES:
            return self.open(object_)
        return pa.BufferReader(self._read(object_.key, 0, object_.size) if object_.size else b"")

    def open(self, object_: Stored) -> io.RawIOBase:
        """The object as a file, each read of which is a request of its own."""
        return _Ranged(object_, self._read)

    def _read(self, key: str, start: int, stop: int) -> bytes:
        if self._retry is None:
            return self._sink.read(key, start, stop)
        found: bytes = self._retry(self._sink.read, key, start, stop)
        return found


@contextmanager
def _damage_told(*more: type[Exception]) -> Iterator[None]:
    """What a library raises about an object's content, and ``more``, as ``UnreadableError``."""
    try:
        yield
    except HeadraceError:
        raise
    except (pa.ArrowException, OSError, ValueError, *more) as error:
        raise UnreadableError(f"{type(error).__name__}: {error}") from error


class _Ranged(io.RawIOBase):
    """A file whose reads are ranged requests."""

    def __init__(self, object_: Stored, read: Callable[[str, int, int], bytes]) -> None:
        self._object = object_
        self._read = read
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._object.size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        stop = self._object.size if size < 0 else min(self._object.size, self._at + size)
        if stop <= self._at:
            return b""
        data = self._read(self._object.key, self._at, stop)
        self._at += len(data)
        return data


def read_footer(metadata: Mapping[bytes, bytes], rows: int) -> Footer:
    """A footer from its key-value metadata and the file's number of rows.

    Raises:
        KeyError, ValueError: something is missing or cannot be read.
    """
    text = {name.decode(): value.decode() for name, value in metadata.items() if name.startswith(b"headrace.")}
    stream = text["headrace.stream"]
    optional = {
        name: int(text[key]) if key in text else None
        for name, key in (("rows_written", "headrace.rows"), ("objects", "headrace.objects"))
    }
    return Footer(
        stream=stream,
        seq=int(text["headrace.seq"]),
        first_token=_token(text["headrace.first_token"], stream),
        last_token=_token(text["headrace.last_token"], stream),
        rows=rows,
        line=int(text.get("headrace.line", "0")),
        schema_version=int(text["headrace.schema_version"]),
        version=text["headrace.version"],
        after=_after(text, stream),
        replaced=msgspec.json.decode(text.get("headrace.replaced", "[]"), type=tuple[Replaced, ...]),
        database=text.get("headrace.database"),
        collection=text.get("headrace.collection"),
        schema=text.get("headrace.schema"),
        **optional,
    )


def _after(text: Mapping[str, str], stream: str) -> Position | None:
    if "headrace.after_token" not in text:
        return None
    return position_at(_token(text["headrace.after_token"], stream), int(text["headrace.after_time"]))


def _token(text: str, stream: str) -> str:
    """A footer's token as in ``core.position``: it is the whole token as BSON, in hexadecimal, or a place.

    Version 0.1 wrote ``_data`` alone.
    """
    if not text or is_split(stream):
        return text
    document = bytes.fromhex(text)
    if int.from_bytes(document[:4], "little") != len(document):
        return text
    try:
        data = find(document, 0, b"_data")
    except MalformedBSON as error:
        raise ValueError(f"a damaged token: {text}") from error
    is_text = data is not None and data[0] == STRING
    return make_token(document[data[1] + 4 : data[2] - 1].decode() if data and is_text else None, document)


def is_of(object_: LakeObject, database: str, collection: str) -> bool:
    """Whether this key is one that an object of this collection has."""
    return object_.key.removeprefix(object_.parts.shard) == object_.parts.key_for(database, collection)
