"""The streams of a configuration, and how collections share them.

Each collection has its own stream as long as there are enough readers; a split collection has one stream per
part. If there are more collections than readers, those that are not split share database-level streams. Which
stream a collection goes to depends only on its name and the number of readers left for them. The first of these
streams also carries events of the database as a whole.

All patterns share one database-level stream, whose events the server selects by name: so it carries a collection
from its first event on, whenever that is created. It leaves out the collections that have streams of their own,
and carries the events of the database as a whole.
"""

from __future__ import annotations

import zlib
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from engine.config.tree import SourceConfig
from engine.core.naming import shared_stream_id, stream_id
from engine.core.patterns import divide, escape, matches, name_of
from engine.core.specs import StreamSpec
from engine.errors import ConfigError

# What the log says of a name for which nothing is found, or cannot be; the cause says which.
IN_DOUBT = "something that the configuration names is in doubt"


def streams_of(source: SourceConfig) -> list[StreamSpec]:
    """The streams of a configuration, one per reader.

    Raises:
        ConfigError: the parts of split collections need more readers than allowed.
    """
    base = StreamSpec(
        stream="",
        level="database",
        database=source.database,
        full_document=source.full_document,
        full_document_before_change=source.full_document_before_change,
        expanded_events=source.expanded_events,
        pipeline=_pipeline_text(source.pipeline),
    )
    selected = tuple(sorted(set(source.collections))), tuple(sorted(set(source.exclude)))
    match source.watch:
        case "deployment":
            base = replace(base, level="deployment", database="")
            if selected == ((), ()):
                return [replace(base, stream=stream_id())]
            return [_by_pattern(base, (), selected[0] or ("*.*",), selected[1])]
        case "database":
            if not source.exclude:
                return [replace(base, stream=stream_id(source.database))]
            return [_by_pattern(base, (), ("*",), selected[1])]
        case "collections":
            return _of_collections(source, base)


def named_collections(source: SourceConfig) -> list[str]:
    """The collections of ``source.database`` that the configuration names, in contrast to its patterns."""
    if source.watch != "collections":
        return []
    names = (name_of(each) for each in source.collections)
    return list(dict.fromkeys(name for name in names if name is not None))


def named_by_database(source: SourceConfig) -> dict[str, list[str]]:
    """The databases that the configuration names, and the collections that it names in each (none: all)."""
    if source.watch != "deployment":
        return {source.database: named_collections(source)}
    found: dict[str, list[str]] = {}
    for name in filter(None, map(name_of, source.collections)):
        database, collection = divide(name)
        found.setdefault(database, []).append(collection)
    return found


def excludes(source: SourceConfig, name: str) -> bool:
    """Whether ``source.exclude`` has a pattern for a collection of ``source.database``."""
    return any(matches(each, name) for each in source.exclude)


def _of_collections(source: SourceConfig, base: StreamSpec) -> list[StreamSpec]:
    split = {name: parts for name, parts in source.split.items() if parts > 1}
    whole = [name for name in named_collections(source) if name not in split]
    patterns = tuple(sorted({each for each in source.collections if name_of(each) is None}))
    remaining = source.max_readers - sum(split.values())
    if remaining < min(1, len(whole) + len(patterns)):
        cause = (
            f"source.split needs {sum(split.values())} readers, and {len(whole) + len(patterns)} collection(s) "
            "need at least one more"
        )
        remedy = f"Raise source.max_readers (it is {source.max_readers}), or split into fewer parts."
        raise ConfigError("plan the streams", cause, remedy)
    streams = [
        replace(
            base,
            stream=stream_id(source.database, name, part, parts),
            level="collection",
            collections=(name,),
            part=part,
            parts=parts,
        )
        for name, parts in split.items()
        for part in range(parts)
    ]
    if patterns:
        remaining -= 1
        shared, whole = ([], whole) if remaining else (whole, [])
        apart = [escape(each) for each in (*split, *whole) if any(matches(pattern, each) for pattern in patterns)]
        exclude = tuple(sorted({*source.exclude, *apart}))
        streams.append(_by_pattern(base, tuple(sorted(shared)), patterns, exclude))
    if len(whole) <= remaining:
        return streams + [
            replace(base, stream=stream_id(source.database, name), level="collection", collections=(name,))
            for name in whole
        ]
    return streams + _sharing(base, whole, remaining, carries_database=not patterns)


def _sharing(base: StreamSpec, names: list[str], readers: int, *, carries_database: bool) -> list[StreamSpec]:
    """Streams that these collections share.

    Args:
        carries_database: whether one of them carries the events that concern the whole database.
    """
    groups: dict[int, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(zlib.crc32(name.encode()) % readers, []).append(name)
    first = min(groups) if carries_database else None
    return [
        replace(
            base,
            stream=shared_stream_id(base.database, names, carries_database=number == first),
            collections=tuple(names),
            carries_database=number == first,
        )
        for number, names in sorted(groups.items())
    ]


def _by_pattern(
    base: StreamSpec, collections: tuple[str, ...], patterns: tuple[str, ...], exclude: tuple[str, ...]
) -> StreamSpec:
    """A stream of what these patterns include, and of some collections by name."""
    carries = base.level == "database"
    return replace(
        base,
        stream=shared_stream_id(
            base.database, collections, carries_database=carries, patterns=patterns, exclude=exclude
        ),
        collections=collections,
        patterns=patterns,
        exclude=exclude,
        carries_database=carries,
    )


def _pipeline_text(stages: list[dict[str, Any]]) -> str:
    """The stages as Extended JSON; a TOML date becomes a BSON date."""

    def extended(value: Any) -> Any:
        if isinstance(value, datetime):
            return {"$date": value.isoformat()}
        raise TypeError(f"source.pipeline: {type(value).__name__} cannot be written as Extended JSON")

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: walk(each) for name, each in value.items()}
        if isinstance(value, list):
            return [walk(each) for each in value]
        return extended(value) if isinstance(value, datetime) else value

    return msgspec.json.encode(walk(stages)).decode()
