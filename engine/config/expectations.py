"""Which values a key takes, in words, from its annotation."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Struct
from msgspec.structs import FieldInfo

from engine.quantities import Duration, Size, format_duration, format_size


def keys_of(kind: type[Struct]) -> list[FieldInfo]:
    """The fields of a section that are keys."""
    return [each for each in msgspec.structs.fields(kind) if not unwrap(each.type)[1].get("internal")]


def unwrap(annotation: Any) -> tuple[Any, dict[str, Any]]:
    """The type inside ``Annotated``, and its ``Meta``: ``description``, ``min``, ``ge``, ``le``."""
    if get_origin(annotation) is not Annotated:
        return annotation, {}
    base, *metas = get_args(annotation)
    facts: dict[str, Any] = {}
    for meta in metas:
        facts |= {name: getattr(meta, name) for name in ("description", "ge", "le", "min_length")}
        facts |= meta.extra or {}
    return base, {name: fact for name, fact in facts.items() if fact is not None}


def expectation(annotation: Any) -> str:
    """Which values a key takes, in words: ``"expected an integer from 1 to 64"``."""
    base, facts = unwrap(annotation)
    if get_origin(base) is Literal:
        return "expected one of " + ", ".join(f'"{choice}"' for choice in get_args(base))
    if base is Size:
        minimum = f", at least {format_size(facts['min'])}" if "min" in facts else ""
        return f'expected a size such as "64MiB"{minimum}'
    if base is Duration:
        minimum = f", at least {format_duration(facts['min'])}" if "min" in facts else ""
        return f'expected a duration such as "30s" or "5m"{minimum}'
    if base is int:
        low, high = facts.get("ge"), facts.get("le")
        bounds = f" from {low} to {high}" if high is not None else f" of at least {low}" if low is not None else ""
        return f"expected an integer{bounds}"
    if base is bool:
        return "expected true or false"
    if isinstance(base, type) and issubclass(base, str):
        return "expected a non-empty string" if facts.get("min_length") else "expected a string"
    origin = get_origin(base)
    if origin is list:
        return "expected a list of strings" if get_args(base)[0] is str else "expected a list of tables"
    assert origin is dict, base
    return f"expected a table of {'integers' if get_args(base)[1] is int else 'strings'}"
