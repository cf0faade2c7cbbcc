"""The streams of a configuration, and how collections share them.

Each collection has its own stream as long as there are enough readers; a split collection has one stream per
part. If there are more collections than readers, those that are not split share database-level streams. Which
stream a collection goes to depends only on its name and the number of readers left for them. The first of these
streams also carries events of the database as a whole.
"""

from __future__ import annotations

import zlib
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from engine.config.tree import SourceConfig
from engine.core.naming import shared_stream_id, stream_id
from engine.core.specs import StreamSpec
from engine.errors import ConfigError


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
    match source.watch:
        case "deployment":
            return [replace(base, stream=stream_id(), level="deployment", database="")]
        case "database":
            return [replace(base, stream=stream_id(source.database))]
        case "collections":
            return _of_collections(source, base)


def _of_collections(source: SourceConfig, base: StreamSpec) -> list[StreamSpec]:
    split = {name: parts for name, parts in source.split.items() if parts > 1}
    whole = [name for name in source.collections if name not in split]
    remaining = source.max_readers - sum(split.values())
    if remaining < min(1, len(whole)):
        cause = (
            f"source.split needs {sum(split.values())} readers, and {len(whole)} collection(s) need at least one "
            "more"
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
    if len(whole) <= remaining:
        return streams + [
            replace(base, stream=stream_id(source.database, name), level="collection", collections=(name,))
            for name in whole
        ]
    groups: dict[int, list[str]] = {}
    for name in sorted(whole):
        groups.setdefault(zlib.crc32(name.encode()) % remaining, []).append(name)
    return streams + [
        replace(
            base,
            stream=shared_stream_id(source.database, names, carries_database=number == min(groups)),
            collections=tuple(names),
            carries_database=number == min(groups),
        )
        for number, names in sorted(groups.items())
    ]


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
