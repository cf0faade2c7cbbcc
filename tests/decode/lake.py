"""The inverse of decoding: from the columns of a row back to its document.

It follows what configs/LAKE.md says of columns and of Extended JSON, and shares no code with the decoder. Both
sides of a comparison are *trees*: dicts, lists, None, and tuples that begin with the name of a type. Numbers in
trees are equal if they are numerically equal, because a column of doubles may hold an integer. Fields that are
null or undefined are left out.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from bson.decimal128 import Decimal128

from engine.core.schema import DataType, Field, path_of

Tree = Any
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# --- from BSON -------------------------------------------------------------------------------------------


def tree_of(kind: int, data: bytes) -> Tree:
    """A BSON value as a tree."""
    match kind:
        case 0x01:
            return number(struct.unpack("<d", data)[0])
        case 0x02 | 0x0D | 0x0E:
            return {0x02: "string", 0x0D: "code", 0x0E: "symbol"}[kind], text_or_bytes(data[4:-1])
        case 0x03:
            return document_tree(data)
        case 0x04:
            pairs = list(elements_of(data))
            values = [_item(tree_of(each, value)) for each, _, value in pairs]
            counted = [name for _, name, _ in pairs] == [b"%d" % n for n in range(len(pairs))]
            return values if counted else ("array", [each[1] for each in pairs], values)
        case 0x05:
            inner = data[9:] if data[4] == 2 and data[5:9] == struct.pack("<i", len(data) - 9) else data[5:]
            return ("binary", data[4], inner) if data[4] != 2 or inner != data[5:] else ("binary?", data)
        case 0x06:
            return ("undefined",)
        case 0x07:
            return "oid", data.hex()
        case 0x08:
            return "bool", data[0]
        case 0x09:
            return "date", struct.unpack("<q", data)[0]
        case 0x0A:
            return None
        case 0x0B:
            pattern, options, _ = data.split(b"\0")
            return "regex", text_or_bytes(pattern), text_or_bytes(options)
        case 0x0C:
            return "pointer", text_or_bytes(data[4:-13]), data[-12:].hex()
        case 0x0F:
            size = struct.unpack_from("<i", data, 4)[0]
            return "code", text_or_bytes(data[8 : 7 + size]), document_tree(data[8 + size :])
        case 0x10 | 0x12:
            return number(int.from_bytes(data, "little", signed=True))
        case 0x11:
            return ("timestamp", *struct.unpack("<II", data))
        case 0x13:
            return "decimal", data
        case 0x7F | 0xFF:
            return ("max" if kind == 0x7F else "min",)
    raise AssertionError(kind)


def document_tree(data: bytes) -> Tree:
    """A document: a dict, or a list of its fields if names repeat."""
    pairs = [(text_or_bytes(name), tree_of(kind, value)) for kind, name, value in elements_of(data)]
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names) or any(isinstance(name, bytes) for name in names):
        return "document", pairs
    return {name: value for name, value in pairs if not is_nothing(value)}


def elements_of(data: bytes) -> Any:
    """Type, name and value of each element."""
    at = 4
    while at < len(data) - 1:
        kind = data[at]
        end = data.index(b"\0", at)
        name, value = data[at + 1 : end], end + 1
        fixed = {1: 8, 6: 0, 7: 12, 8: 1, 9: 8, 10: 0, 16: 4, 17: 8, 18: 8, 19: 16, 127: 0, 255: 0}
        if kind in fixed:
            size = fixed[kind]
        elif kind == 0x0B:
            size = data.index(b"\0", data.index(b"\0", value) + 1) + 1 - value
        else:
            extra = {2: 4, 3: 0, 4: 0, 5: 5, 12: 16, 13: 4, 14: 4, 15: 0}[kind]
            size = struct.unpack_from("<i", data, value)[0] + extra
        yield kind, name, data[value : value + size]
        at = value + size


def number(value: float) -> Tree:
    """A number by its value; the sign of a zero and the bits of a NaN matter."""
    if isinstance(value, float) and not math.isfinite(value):
        return "double", struct.pack("<d", value)
    if value == 0:
        return "number", Decimal("-0") if math.copysign(1, value) < 0 else Decimal(0), math.copysign(1, value)
    return "number", Decimal(value)


def text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def is_nothing(value: Tree) -> bool:
    return value is None or value == ("undefined",)


def _item(value: Tree) -> Tree:
    return None if is_nothing(value) else value


# --- from the lake ---------------------------------------------------------------------------------------


def document_of(row: Mapping[str, Any], fields: Sequence[Field]) -> Tree:
    """The document that a row was made from."""
    rescued = json_members(row["_cdc_rescued"]) if row.get("_cdc_rescued") else {}
    if "" in rescued:
        return rescued[""]
    document = _fields_of(row, fields, "")
    for path, value in rescued.items():
        *parents, name = split_path(path)
        place = document
        for parent in parents:
            place = place[parent]
        assert name not in place, path
        if not is_nothing(value):
            place[name] = value
    return document


def _fields_of(row: Mapping[str, Any], fields: Sequence[Field], path: str) -> dict[str, Tree]:
    return {
        field.name: _value_of(row[field.column or field.name], field.type, path_of(path, field.name))
        for field in fields
        if field.type.kind != "drop" and row.get(field.column or field.name) is not None
    }


def _value_of(value: Any, type_: DataType, path: str) -> Tree:
    match type_.kind:
        case "struct":
            return _fields_of(value, type_.fields, path)
        case "list":
            assert type_.item is not None
            return [None if each is None else _value_of(each, type_.item, path) for each in value]
        case "json":
            return json_tree(value)
        case "timestamp":
            return "date", value
        case "object_id" | "object_id_binary":
            return "oid", value if isinstance(value, str) else value.hex()
        case "decimal":
            return "decimal", Decimal128(value).bid
        case "decimal128":
            return "number", value
        case "binary":
            return "binary", type_.subtype, value
        case "uuid":
            return "binary", 4, UUID(value).bytes
        case "bool":
            return "bool", int(value)
        case "string":
            return "string", value
        case _:
            return number(value)


def json_tree(text: str) -> Tree:
    """Relaxed Extended JSON, with ``$bson``."""
    return _from_json(json.loads(text, object_pairs_hook=list_of_pairs))


def json_members(text: str) -> dict[str, Tree]:
    """A JSON object whose names have no special meaning."""
    return {name: _from_json(value) for name, value in json.loads(text, object_pairs_hook=list_of_pairs).pairs}


class Pairs:
    """A JSON object, with its members in order."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def list_of_pairs(pairs: list[tuple[str, Any]]) -> Pairs:
    return Pairs(pairs)


def _from_json(value: Any) -> Tree:
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool", int(value)
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, str):
        return "string", value
    if isinstance(value, list):
        return [_item(_from_json(each)) for each in value]
    members = dict(value.pairs)
    assert len(members) == len(value.pairs), "a repeated name"
    match members:
        case {"$bson": text}:
            frame = base64.b64decode(text)
            assert frame[5] == 0
            return tree_of(frame[4], frame[6:-1])
        case {"$oid": text}:
            return "oid", text
        case {"$date": str() as text}:
            return "date", round((datetime.fromisoformat(text) - _EPOCH).total_seconds() * 1000)
        case {"$date": Pairs(pairs=[("$numberLong", text)])}:
            return "date", int(text)
        case {"$numberDouble": text}:
            return "double", struct.pack("<d", float(text))
        case {"$numberDecimal": text}:
            return "decimal", Decimal128(text).bid
        case {"$binary": Pairs() as inner}:
            found = dict(inner.pairs)
            return "binary", int(found["subType"], 16), base64.b64decode(found["base64"])
        case {"$undefined": True}:
            return ("undefined",)
        case {"$regularExpression": Pairs() as inner}:
            found = dict(inner.pairs)
            return "regex", found["pattern"], found["options"]
        case {"$dbPointer": Pairs() as inner}:
            found = dict(inner.pairs)
            return "pointer", found["$ref"], dict(found["$id"].pairs)["$oid"]
        case {"$code": text, "$scope": scope}:
            return "code", text, _from_json(scope)
        case {"$code": text}:
            return "code", text
        case {"$symbol": text}:
            return "symbol", text
        case {"$timestamp": Pairs() as inner}:
            found = dict(inner.pairs)
            return "timestamp", found["i"], found["t"]
        case {"$minKey": 1}:
            return ("min",)
        case {"$maxKey": 1}:
            return ("max",)
    found = {name: _from_json(each) for name, each in members.items()}
    return {name: each for name, each in found.items() if not is_nothing(each)}


def split_path(path: str) -> list[str]:
    """The names in a path."""
    names = [""]
    characters = iter(path)
    for character in characters:
        if character == "\\":
            following = next(characters)
            names[-1] += "" if following == "0" else following
        elif character == ".":
            names.append("")
        else:
            names[-1] += character
    return names
