"""Problems of a configuration whose keys all have the right types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec

from engine.config.streams import excludes, named_collections, streams_of
from engine.config.tree import LAKE, Config, SourceConfig, parse_start
from engine.core.patterns import divide
from engine.core.schema import parse_type
from engine.errors import ConfigError

# The keys that a problem depends on, and the problem.
Found = tuple[tuple[str, ...], str]


def contradictions(config: Config) -> Iterator[Found]:
    """Problems of values that types do not cover, and between keys.

    A key that could not be read has its default here, or an empty value: the caller ignores problems that depend
    on such a key.
    """
    yield from _of_source(config.source)
    for key, text in config.schema.overrides.items():
        try:
            parse_type(text)
        except ValueError as error:
            yield ("schema.overrides",), f"schema.overrides.{key!r}: {error}"
        if "." not in key.strip("."):
            yield ("schema.overrides",), f"schema.overrides.{key!r}: expected <collection>.<field>"
    sink = config.sink
    if "://" not in sink.url:
        yield ("sink.url",), "sink.url: expected a URL such as s3://bucket/prefix or file:///data/lake"
    how = ("sink.format", "sink.compression")
    if sink.format != "parquet" and sink.compression in ("snappy", "lz4"):
        yield how, f'sink.compression: {sink.format} takes "zstd", "gzip" or "none"'
    if sink.format == "avro" and find_spec("fastavro") is None:
        yield ("sink.format",), "sink.format: avro needs fastavro: pip install 'headrace[avro]'"
    if sink.compression == "gzip" and sink.compression_level > 9:
        yield (*how, "sink.compression_level"), "sink.compression_level: gzip takes 1 to 9"
    if config.state.url == LAKE:
        if "://" in sink.url and not re.match("(s3|s3a|file)://", sink.url):
            problem = 'state.url: "lake" needs a sink at s3:// or file://; set it to redis:// or sqlite://'
            yield ("state.url", "sink.url"), problem
    elif not re.match(r"(redis|rediss|unix|redis\+sentinel|rediss\+sentinel|sqlite)://", config.state.url):
        yield ("state.url",), 'state.url: expected "lake", redis://, rediss://, redis+sentinel:// or sqlite://'
    if config.telemetry.listen and not re.fullmatch(r".*:\d{1,5}", config.telemetry.listen):
        yield ("telemetry.listen",), 'telemetry.listen: expected "host:port", or "" for none'


def _of_source(source: SourceConfig) -> Iterator[Found]:
    watch, names, parts = "source.watch", "source.collections", "source.split"
    if not re.match(r"mongodb(\+srv)?://", source.uri):
        yield ("source.uri",), "source.uri: expected mongodb:// or mongodb+srv://"
    if source.watch != "deployment" and not source.database:
        yield (watch, "source.database"), f'source.database: missing; needed for watch = "{source.watch}"'
    if source.watch == "collections" and not source.collections:
        yield (watch, names), 'source.collections: missing; name them, or set source.watch = "database"'
    if source.watch == "database" and (source.collections or source.split):
        problem = 'source.collections, source.split: not used with watch = "database"; remove them'
        yield (watch, names, parts), problem
    if source.watch == "deployment" and source.split:
        yield (watch, parts), 'source.split: not used with watch = "deployment"; remove it'
    named = named_collections(source)
    for name, count in source.split.items():
        if source.watch == "collections" and name not in named:
            yield (watch, names, parts), f"source.split: {name} is not in source.collections"
        if count < 1:
            yield (parts,), f"source.split.{name}: expected an integer of at least 1"
    if len(set(source.collections)) < len(source.collections):
        yield (names,), "source.collections: duplicate name"
    yield from _of_patterns(source, named)
    try:
        parse_start(source.start)
    except ValueError:
        expected = 'expected "now", "snapshot", "earliest", or an RFC 3339 time such as "2026-05-01T00:00:00Z"'
        yield ("source.start",), f"source.start: got {source.start!r}; {expected}"
    if source.watch == "collections" and all(name in named for name in source.split):
        try:
            streams_of(source)
        except ConfigError as error:
            yield (watch, names, parts, "source.max_readers"), f"{error.cause}. {error.remedy}"


def _of_patterns(source: SourceConfig, named: list[str]) -> Iterator[Found]:
    keys = ("source.watch", "source.collections", "source.exclude")
    if source.watch == "deployment":
        for key, patterns in (("collections", source.collections), ("exclude", source.exclude)):
            for each in patterns:
                if not all(divide(each)):
                    yield keys, f"source.{key}: got {each!r}; expected <database>.<collection>"
        return
    if source.watch == "collections" and source.exclude and len(named) == len(source.collections):
        yield (
            keys,
            "source.exclude: there is no pattern in source.collections from which it could exclude anything",
        )
    for name in named:
        if excludes(source, name):
            yield keys, f"source.exclude: it excludes {name!r}, which source.collections names"
