"""The form in which the documents of one collection are compared, by its configuration."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from engine.config.tree import SchemaConfig
from engine.core.schema import path_of
from engine.decode.protect import paths_in
from engine.decode.schema import SchemaOptions
from engine.lake.documents import elements as el
from engine.lake.documents.comparison import normal_form


def normal_of(config: SchemaConfig, collection: str) -> Callable[[bytes], bytes]:
    """A function from documents, as BSON, to their normal form, as BSON.

    Fields that ``schema.overrides`` drops are left out, on both sides: the lake may still have them inside JSON.
    So are those that ``schema.protect`` keeps out of the lake.
    """
    overrides = SchemaOptions.of(config).overridden(collection)
    dropped = {path for path, type_ in overrides.items() if type_.kind == "drop"}
    dropped |= {path for key in config.protect for path in paths_in(key, collection)}
    decimals = any(type_.kind == "decimal128" for type_ in overrides.values())
    compared = partial(normal_form, decimals=decimals)
    return (lambda document: compared(without(document, dropped))) if dropped else compared


def without(document: bytes, dropped: Collection[str], parent: str = "") -> bytes:
    """A document without the fields of these paths, also inside arrays.

    Raises:
        ValueError: it is not BSON.
    """
    kept = []
    for name, value in el.fields(document):
        path = path_of(parent, name.decode(errors="replace"))
        if path not in dropped:
            kept.append(el.element(name, _inside(value, dropped, path)))
    return el.framed(kept)


def _inside(value: el.Value, dropped: Collection[str], path: str) -> el.Value:
    kind, data = value
    if kind == el.DOCUMENT:
        return kind, without(data, dropped, path)
    if kind == el.ARRAY:
        items = (el.element(number, _inside(each, dropped, path)) for number, each in el.fields(data))
        return kind, el.framed(items)
    return value
