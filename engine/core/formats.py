"""The format of what the state store holds, and how older formats are read.

Stream records have a field ``format``, shared documents a member of that name; without it, they are in format 1
(versions up to 0.2). A stream's record is rewritten in the current format when its lease is taken, a shared
document when it is next changed. Anything written by a later version is refused: it may mean something else.

| format | description |
|---|---|
| 1 | change streams, splits and marks are one type of spec; ``""`` and ``0`` stand for "none" |
| 2 | each of them is a type of its own (``core.specs``); "none" is null; streams may select by pattern |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from engine.core.specs import MarkSpec, Spec, SplitSpec, StreamSpec
from engine.errors import ConfigError, StateLostError

FORMAT = 2
# Ids of streams shared by collections, from before such an id was derived from the collections.
_NUMBERED = re.compile(r"~(\d+of\d+)?$")
_T = TypeVar("_T")


class _Head(Struct):
    format: int = 1


def format_of_record(fields: Mapping[str, str]) -> int:
    """The format of a stream's record.

    Raises:
        ConfigError: it was written by a later version.
        StateLostError: it is damaged.
    """
    text = fields.get("format", "1")
    if not text.isdecimal():
        raise damaged("a stream's record", f"its format is {text!r}")
    return _known(int(text))


def encode_document(value: Struct) -> str:
    """A shared document in the current format."""
    members = {name: getattr(value, name) for name in value.__struct_fields__}
    return msgspec.json.encode({"format": FORMAT, **members}).decode()


def decode_document(text: str, type_: type[_T], type_v1: type[Any]) -> _T:
    """A shared document in any format.

    Args:
        type_v1: its type in format 1, with a method ``upgraded``; the same type if nothing has changed.

    Raises:
        ConfigError: it was written by a later version.
        StateLostError: it is damaged.
    """
    try:
        format_ = _known(msgspec.json.decode(text, type=_Head).format)
        if format_ == FORMAT or type_v1 is type_:
            return msgspec.json.decode(text, type=type_)
        upgraded: _T = msgspec.json.decode(text, type=type_v1).upgraded()
    except msgspec.DecodeError as error:
        raise damaged("a shared document", str(error)) from error
    return upgraded


def damaged(what: str, cause: str, remedy: str = "") -> StateLostError:
    """The failure for what the state store holds and this engine cannot have written."""
    return StateLostError("read the state", f"{what} in the state store is damaged: {cause}", remedy)


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
        """The spec in the current format."""
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
        """The spec of a change stream in the current format."""
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
