"""The two sides of a comparison: a collection's rows in the lake, and its documents in the source."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import TypeVar

import pyarrow as pa

from engine.config.tree import RetryConfig
from engine.core.position import split_time
from engine.decode.identity import merge_key
from engine.errors import ConfigError
from engine.lake.audit.findings import Finding, Findings
from engine.lake.documents import elements as el
from engine.lake.objects import LakeObject, Objects, UnreadableError
from engine.lake.rows import rows_of
from engine.rawbson.elements import MalformedBSON
from engine.retries import retrying
from engine.source.scan import key_of
from engine.source.session import Members
from engine.source.snapshots import At, NoSnapshotError, find_at

# How long to wait for the lake to get further. An idle stream commits every few seconds.
ADVANCE_S = 30.0
_POLL_S = 0.5
# Documents are looked up this many at once, or fewer if their ``_id``s are long.
_LOOKUP_IDS, _LOOKUP_BYTES = 1000, 2**20
# Where the value begins in a document that has only an ``_id``.
_VALUE_AT = 9
_T = TypeVar("_T")


class Sides:
    """Reads both sides of one collection.

    Args:
        at: gives the newest cluster time that the lake has passed; None if no change stream covers the collection.
        normal: brings a document into the form in which it is compared.
    """

    def __init__(
        self,
        objects: Objects,
        members: Members,
        namespace: tuple[str, str],
        at: At,
        normal: Callable[[bytes], bytes],
        retry: RetryConfig,
        findings: Findings,
    ) -> None:
        self.members = members
        self.database, self.collection = namespace
        self.name = ".".join(namespace)
        self.at = at
        self._objects = objects
        self._normal = normal
        self._retry = retrying(retry, what="MongoDB")
        self._findings = findings
        self._unreadable: set[str] = set()

    def normal(self, document: bytes) -> bytes:
        """The normal form; of what is not BSON a hash, as a document: what is protected in it is not known."""
        try:
            return self._normal(document)
        except ValueError:
            told = el.text(sha256(document).hexdigest().encode())
            return el.framed([el.element(b"SHA-256 of malformed BSON", told)])

    def rows(self) -> Iterator[pa.RecordBatch]:
        """All rows of the collection in the lake."""
        return rows_of(self._objects, self.database, self.collection, self._skip)

    def _skip(self, object_: LakeObject, error: UnreadableError) -> None:
        if object_.key not in self._unreadable:
            self._unreadable.add(object_.key)
            self._findings.add(Finding("unreadable", self.name, str(error), object_.key))

    def look_up(self, keys: Sequence[bytes], at: int | None) -> Iterator[bytes]:
        """The source's documents with these ``_id``s, as of a cluster time or, if it is None, as they are.

        Args:
            keys: BSON documents with only an ``_id`` each.

        Raises:
            NoSnapshotError: the server no longer has that time.
        """
        chunk: list[bytes] = []
        size = 0
        for key in keys:
            if chunk and (len(chunk) == _LOOKUP_IDS or size + len(key) > _LOOKUP_BYTES):
                yield from self._found(chunk, at)
                chunk, size = [], 0
            chunk.append(key)
            size += len(key)
        if chunk:
            yield from self._found(chunk, at)

    def _found(self, keys: Sequence[bytes], at: int | None) -> list[bytes]:
        found = self._retry(lambda: list(find_at(self.members, self.database, self.collection, keys, at)))
        return list(found)

    def fresh(self, call: Callable[[], _T]) -> _T:
        """The result of a call that reads at ``at()``, once the server has that time.

        Raises:
            ConfigError: it will not have it.
        """
        while True:
            at = self.at()
            try:
                return self._retry(call)
            except NoSnapshotError as error:
                self.advance(at, error)

    def advance(self, at: int | None, error: NoSnapshotError) -> int | None:
        """A later time than one that the server does not have.

        Raises:
            ConfigError: the lake does not get any further.
        """
        later = self.beyond(at)
        if at is not None and later == at:
            behind = f"the lake stands at {when(at)}, and the server does not have the collection as of then"
            remedy = (
                "Start the engine, or run it with --until-caught-up, and verify within five minutes of that (or "
                "raise minSnapshotHistoryWindowInSeconds on the server)."
            )
            raise ConfigError(f"compare {self.name} with its source", f"{behind}: {error.cause}", remedy)
        return later

    def beyond(self, at: int | None) -> int | None:
        """A time after ``at`` that the lake has passed, or ``at`` if it does not get any further."""
        deadline = time.monotonic() + ADVANCE_S
        while True:
            now = self.at()
            if now is None or at is None:
                time.sleep(_POLL_S)
                return now
            if now > at or time.monotonic() > deadline:
                return now
            time.sleep(_POLL_S)


def identity(document: bytes) -> tuple[str, bytes]:
    """The ``_cdc_id`` of a document, and a document with only its ``_id``."""
    key = bytes.fromhex(key_of(document, 0, "_id"))
    return id_text(key), key


def id_text(key: bytes) -> str:
    """The ``_cdc_id`` of a document that has only an ``_id``.

    Only for telling documents apart: they are compared with their ``_id``s, so a fault in it would be found.
    """
    try:
        return merge_key(key, key[4], _VALUE_AT, len(key) - 1)
    except MalformedBSON:  # it is not in the lake either
        return key.hex()


def when(at: int) -> str:
    """A cluster time, for a sentence."""
    seconds, increment = split_time(at)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(seconds))} ({seconds}, {increment})"
