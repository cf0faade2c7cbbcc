"""The collections' schemas in the state store: who waits for one, and which versions the store must have.

A reader that finds new fields asks for the schema with these added. It is a shared document, which only grows. A
version that objects were written under must not be lost: the records of streams contain these versions, and so do
the plans of finished backfills. If there is no schema yet, and this engine does not know of one, the records are
read before it is created.

State: the versions that the store has returned, and the readers that wait. Owner: the coordinator.
"""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from engine.core.actions import Child, GrowSchema, ReadState, Send
from engine.core.backfill import decode_plan, plan_document
from engine.core.decisions import Decision
from engine.core.formats import decode_document, encode_document
from engine.core.messages import Intent, SchemaGiven, SchemaWanted
from engine.core.records import schema_document, schema_version
from engine.core.schema import CollectionSchema, grow
from engine.core.store import SchemaRead, StateRead
from engine.core.stream import Stream
from engine.errors import StateLostError


class _Wanted(Struct):
    """The request of a waiting reader.

    Attributes:
        step: ``asked`` of the store; ``absent`` there, so that the records are being read; or being created.
    """

    message: SchemaWanted
    step: Literal["asked", "absent", "created"] = "asked"

    @property
    def name(self) -> str:
        return schema_document(self.message.database, self.message.collection)


class Schemas:
    """The schemas that an engine's readers ask for."""

    def __init__(self, max_fields: int, streams: Mapping[str, Stream], *, plain: bool = False) -> None:
        self._max_fields = max_fields
        self._plain = plain
        self._streams = streams
        self._versions: dict[str, int] = {}
        self._wanted: dict[Child, _Wanted] = {}

    def is_waiting(self, reader: Child) -> bool:
        """Whether the reader waits for a schema."""
        return reader in self._wanted

    def forget(self, reader: Child) -> None:
        """The reader is dead: drop its request."""
        self._wanted.pop(reader, None)

    def wanted(self, reader: Child, message: SchemaWanted) -> list[Decision]:
        """A reader asks for a schema with some fields added."""
        self._wanted[reader] = wanted = _Wanted(message)
        return [self._grow(reader, wanted, self._known_version(wanted.name), creates=False)]

    def _grow(self, reader: Child, wanted: _Wanted, min_version: int, *, creates: bool) -> GrowSchema:
        message = wanted.message
        return GrowSchema(
            reader,
            message.database,
            message.collection,
            message.fields,
            min_version,
            creates,
            self._max_fields,
            self._plain,
        )

    def read(self, answer: SchemaRead, *, is_ready: bool) -> list[Decision]:
        """The store's answer, which may be to a question that the reader has given up since.

        Args:
            is_ready: whether the reader is still alive.
        """
        name = schema_document(answer.database, answer.collection)
        schema = CollectionSchema() if answer.text is None else decode_schema(answer.text)
        if schema.version:
            self._versions[name] = schema.version
        wanted = self._wanted.get(answer.reader)
        if wanted is None or wanted.name != name:
            return []
        if answer.text is None and wanted.step != "created":
            if wanted.step == "absent":
                return []
            wanted.step = "absent"
            return [ReadState(name, plan_document(f"{answer.database}.{answer.collection}"))]
        if grow(schema, wanted.message.fields, self._max_fields) is not schema:
            return []  # an answer from before the question, which has one of its own to come
        del self._wanted[answer.reader]
        return [Send(answer.reader, SchemaGiven(answer.database, answer.collection, schema))] if is_ready else []

    def state_read(self, answer: StateRead) -> list[Decision]:
        """All records, and the plan of the collection: with the version that they require, it may be created."""
        versions = [schema_version(fields, answer.about) for fields, _ in answer.records.values()]
        if answer.document is not None:
            versions.append(decode_plan(answer.document).schema or 0)
        version = max([self._known_version(answer.about), *versions])
        absent = {
            reader: wanted
            for reader, wanted in self._wanted.items()
            if wanted.step == "absent" and wanted.name == answer.about
        }
        for wanted in absent.values():
            wanted.step = "created"
        return [self._grow(reader, wanted, version, creates=True) for reader, wanted in absent.items()]

    def _known_version(self, name: str) -> int:
        """The version of a schema that the store is known to have; 0 for none."""
        recorded = (stream.schemas.get(name, 0) for stream in self._streams.values())
        return max(self._versions.get(name, 0), *recorded, 0)

    def grown_for(self, stream: Stream, intent: Intent) -> dict[str, int]:
        """The schema versions that the segment's objects were written under and that the record does not have."""
        names = {schema_document(each.database, each.collection) for each in intent.objects}
        known = {name: self._versions[name] for name in sorted(names & self._versions.keys())}
        grown = {name: version for name, version in known.items() if version > stream.schemas.get(name, 0)}
        stream.schemas |= grown
        return grown


def decode_schema(text: str) -> CollectionSchema:
    """The schema in a shared document.

    Raises:
        ConfigError: it was written by a later version.
        StateLostError: it is damaged.
    """
    return decode_document(text, CollectionSchema, CollectionSchema)


def packed_schema(schema: CollectionSchema) -> str:
    """A schema for a file's footer: its shared document, zlib-compressed, in base64.

    As it is, the document of a wide schema would be a sixth of a small file.
    """
    return b64encode(zlib.compress(encode_document(schema).encode())).decode()


def unpacked_schema(text: str) -> CollectionSchema:
    """The schema in a file's footer.

    Raises:
        ConfigError: it was written by a later version.
        StateLostError: it is damaged.
        ValueError: it cannot be unpacked.
    """
    try:
        document = zlib.decompress(b64decode(text, validate=True)).decode()
    except zlib.error as error:
        raise ValueError(f"a damaged schema: {error}") from error
    return decode_schema(document)


def grown_document(asked: GrowSchema, version: int, text: str) -> str | None:
    """The schema's shared document with the requested fields added; None to leave it as it is.

    Args:
        version, text: the current ones; ``(0, "")`` if there is none.

    Raises:
        StateLostError: it is older than what objects were written under.
    """
    if version < asked.min_version:
        cause = f"the state store has lost the schema of {asked.database}.{asked.collection}"
        found = f"it is at version {version}, and objects were written under version {asked.min_version}"
        raise StateLostError("settle the types of new fields", f"{cause}: {found}")
    if not text and not asked.creates:
        return None
    known = decode_schema(text) if text else CollectionSchema()
    grown = grow(known, asked.fields, asked.max_fields, plain=asked.plain)
    return None if grown is known else encode_document(grown)
