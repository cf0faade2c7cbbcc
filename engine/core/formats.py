"""The format of what is kept in the state store, and how the formats before it are read.

Stream records have a field ``format``, shared documents a member of that name; without it, they are of format 1
(versions up to 0.2). A stream's record is written anew in the present format when its lease is taken, a shared
document when it is next changed. What a later version has written is refused: it may mean something else.

| format | what it is like |
|---|---|
| 1 | change streams, splits and marks are one type of spec; ``""`` and ``0`` stand for "none" |
| 2 | each of them is a type of its own (``core.specs``); "none" is null |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from engine.core.specs import MarkSpec, Spec, SplitSpec, StreamSpec
from engine.errors import ConfigError

FORMAT = 2
# Ids of streams that collections shared, before these were made of what they share.
_NUMBERED = re.compile(r"~(\d+of\d+)?$")
_T = TypeVar("_T")


class _Head(Struct):
    format: int = 1


def format_of_record(fields: Mapping[str, str]) -> int:
    """The format of a stream's record.

    Raises:
        ConfigError: a later version has written it.
    """
    return _known(int(fields.get("format", "1")))


def encode_document(value: Struct) -> str:
    """A shared document in the present format."""
    members = {name: getattr(value, name) for name in value.__struct_fields__}
    return msgspec.json.encode({"format": FORMAT, **members}).decode()


def decode_document(text: str, type_: type[_T], former: type[Any]) -> _T:
    """A shared document of any format.

    Args:
        former: the type that format 1 had, which has a method ``upgraded``; the same type where nothing has
            changed.

    Raises:
        ConfigError: a later version has written it.
    """
    format_ = _known(msgspec.json.decode(text, type=_Head).format)
    if format_ == FORMAT or former is type_:
        return msgspec.json.decode(text, type=type_)
    upgraded: _T = msgspec.json.decode(text, type=former).upgraded()
    return upgraded


def _known(format_: int) -> int:
    if format_ > FORMAT:
        cause = f"it was written by a later version (format {format_}; this one reads formats up to {FORMAT})"
        raise ConfigError(
            "read the state", cause, "Upgrade this engine, or use another state.prefix and sink.url."
        )
    return format_


class SpecV1(Struct, frozen=True):
    """A spec in format 1."""

    stream: str
    level: Literal["collection", "database", "deployment", "split"]
    database: str = ""
    collections: tuple[str, ...] = ()
    part: int = 0
    parts: int = 1
    carries_database: bool = False
    full_document: str = "default"
    full_document_before_change: str = "off"
    expanded_events: bool = False
    pipeline: str = "[]"
    lower: str = ""
    upper: str = ""
    filter: str = ""
    order: str = "_id"
    whole: bool = False
    closes: int = 0

    def upgraded(self) -> Spec:
        """The spec in the present format."""
        if self.level != "split":
            return self.upgraded_stream()
        (collection,) = self.collections
        if self.closes:
            return MarkSpec(self.stream, self.database, collection, self.closes)
        return SplitSpec(
            self.stream,
            self.database,
            collection,
            self.lower or None,
            self.upper or None,
            self.filter or None,
            self.order,
            self.whole,
        )

    def upgraded_stream(self) -> StreamSpec:
        """The spec in the present format, of a change stream."""
        assert self.level != "split"
        numbered = self.level == "database" and self.collections and _NUMBERED.search(self.stream)
        return StreamSpec(
            self.stream,
            self.level,
            self.database,
            self.collections,
            self.part,
            self.parts,
            self.part == 0 if numbered else self.carries_database,
            self.full_document,
            self.full_document_before_change,
            self.expanded_events,
            self.pipeline,
        )
