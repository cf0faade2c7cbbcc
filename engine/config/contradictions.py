"""Problems of a configuration whose keys all have the right types."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from engine.config.streams import excludes, named_collections, streams_of
from engine.config.tree import LAKE, PROTECTIONS, Config, S3Config, SourceConfig, TelemetryConfig, parse_start
from engine.core.patterns import divide
from engine.core.schema import parse_type
from engine.errors import ConfigError

_SHORTEST_KEY = 16
_MAX_TAGS = 10
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
    yield from _of_protection(config)
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
    yield from _of_s3(sink.s3)
    if config.state.url == LAKE:
        if "://" in sink.url and not re.match("(s3|s3a|file)://", sink.url):
            problem = 'state.url: "lake" needs a sink at s3:// or file://; set it to redis:// or sqlite://'
            yield ("state.url", "sink.url"), problem
    elif not re.match(r"(redis|rediss|unix|redis\+sentinel|rediss\+sentinel|sqlite)://", config.state.url):
        yield ("state.url",), 'state.url: expected "lake", redis://, rediss://, redis+sentinel:// or sqlite://'
    yield from _of_tables(config)
    yield from _of_telemetry(config.telemetry)


def _of_tables(config: Config) -> Iterator[Found]:
    table, sink = config.table, config.sink
    if table.format == "none":
        if sink.partition_by == "table":
            yield ("sink.partition_by", "table.format"), 'sink.partition_by: "table" needs table.format'
        if config.mirror.enabled:
            yield ("mirror.enabled", "table.format"), 'mirror.enabled: needs table.format = "iceberg" or "delta"'
        return
    if config.mirror.enabled and config.source.full_document == "default":
        problem = "mirror.enabled: updates would come without their documents; set source.full_document"
        yield ("mirror.enabled", "source.full_document"), problem
    for key, value, wanted in (
        ("partition_by", sink.partition_by, "table"),
        ("prefix_shards", sink.prefix_shards, 0),
        ("format", sink.format, "parquet"),
    ):
        if value != wanted:
            yield (f"sink.{key}", "table.format"), f"sink.{key}: leave it out: tables have a layout of their own"
    if "://" in sink.url and not re.match("(s3|s3a|file)://", sink.url):
        yield ("sink.url", "table.format"), "table.format: needs a sink at s3:// or file://"
    library = {"iceberg": "pyiceberg", "delta": "deltalake"}[table.format]
    if find_spec(library) is None:
        problem = f"table.format: {table.format} needs {library}: pip install 'headrace[{table.format}]'"
        yield ("table.format",), problem
    if table.format == "iceberg" and not table.catalog:
        problem = (
            'table.catalog: Iceberg needs a catalog, such as { type = "rest", uri = "http://localhost:8181" }'
        )
        yield ("table.catalog", "table.format"), problem
    if table.format == "delta" and table.catalog:
        yield ("table.catalog", "table.format"), "table.catalog: Delta tables have no catalog; leave it out"


def _of_telemetry(telemetry: TelemetryConfig) -> Iterator[Found]:
    if telemetry.listen and not re.fullmatch(r".*:\d{1,5}", telemetry.listen):
        yield ("telemetry.listen",), 'telemetry.listen: expected "host:port", or "" for none'
    if telemetry.key_file and not telemetry.certificate_file:
        yield ("telemetry.certificate_file",), "telemetry.key_file: needs telemetry.certificate_file"
    if 0 < len(telemetry.password) < _SHORTEST_KEY:
        problem = f"telemetry.password: expected at least {_SHORTEST_KEY} characters"
        yield ("telemetry.password",), problem
    if ":" in telemetry.username:
        yield ("telemetry.username",), "telemetry.username: a user name of HTTP Basic has no colon"


def _of_s3(s3: S3Config) -> Iterator[Found]:
    if s3.session_token and not (s3.access_key and s3.secret_key):
        keys = ("sink.s3.access_key", "sink.s3.secret_key")
        yield keys, "sink.s3.session_token: needs sink.s3.access_key and sink.s3.secret_key"
    if s3.kms_key_id and s3.encryption != "sse-kms":
        yield ("sink.s3.encryption",), 'sink.s3.kms_key_id: needs sink.s3.encryption = "sse-kms"'
    try:
        if s3.ca_file:
            ssl.create_default_context(cafile=s3.ca_file)
    except OSError as error:
        yield ("sink.s3.ca_file",), f"sink.s3.ca_file: {s3.ca_file} has no certificates that can be read ({error})"
    if s3.accelerate and (s3.endpoint_url or s3.addressing == "path"):
        keys = ("sink.s3.endpoint_url", "sink.s3.addressing")
        yield keys, 'sink.s3.accelerate: has an endpoint of its own: not with endpoint_url or addressing = "path"'
    if len(s3.tags) > _MAX_TAGS:
        yield ("sink.s3.tags",), f"sink.s3.tags: an object takes at most {_MAX_TAGS}"


def _of_protection(config: Config) -> Iterator[Found]:
    schema, key, pipeline = config.schema, "schema.protect", "source.pipeline"
    for path, action in schema.protect.items():
        at = f"{key}.{path!r}"
        if action not in PROTECTIONS:
            yield (key,), f'{at}: got {action!r}; expected one of "drop", "hash", "mask"'
        _, dot, field = path.partition(".")
        if not dot or not all(field.split(".")):
            yield (key,), f"{at}: expected <collection>.<field>, or *.<field> for every collection"
        if any(name == "_id" for name in path.split(".")[1:2]):
            yield (key,), f"{at}: _id cannot be protected: it is in every resume token"
        if (type_ := schema.overrides.get(path, "string")) not in ("string", "json", "drop"):
            yield (key, "schema.overrides"), f"{at}: becomes a string, but schema.overrides makes it {type_}"
    if "hash" in schema.protect.values() and len(schema.protect_key) < _SHORTEST_KEY:
        problem = f"schema.protect_key: needed for hash, of at least {_SHORTEST_KEY} characters"
        yield (key, "schema.protect_key"), problem
    if schema.protect and not all(map(_only_removes, config.source.pipeline)):
        problem = (
            f"{pipeline}: with {key}, only stages that copy no value: $match, $redact, $unset, and $project with "
            "0 and 1"
        )
        yield (key, pipeline), problem


def _only_removes(stage: dict[str, Any]) -> bool:
    """Whether a stage cannot give a value another name."""
    for name, argument in stage.items():
        plain = name == "$project" and isinstance(argument, dict) and _is_plain(argument)
        if name not in ("$match", "$redact", "$unset") and not plain:
            return False
    return True


def _is_plain(projection: dict[str, Any]) -> bool:
    return all(
        _is_plain(each) if isinstance(each, dict) else isinstance(each, bool | int) for each in projection.values()
    ) and not any(name.startswith("$") for name in projection)


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
