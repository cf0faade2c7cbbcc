"""Names of streams and keys of objects.

A key is a function of (stream, seq, database, collection, event-time partition) and of nothing else: no wall
clock, no random part, no host. A replay therefore rewrites the very keys that the first attempt may have made.
"""

from __future__ import annotations

import zlib
from typing import Literal
from urllib.parse import quote

from engine.core.position import split_time

Partitioning = Literal["hour", "day", "collection", "none"]

# What Hive, Spark and DuckDB read as null: events that concern a whole database or deployment.
NO_NAME = "__HIVE_DEFAULT_PARTITION__"
DEAD_LETTER_PREFIX = "_dead_letter"
_READ = "~read"


def safe_name(name: str) -> str:
    """A database's or collection's name, percent-encoded where a key or Hive would choke.

    ``~`` is encoded too, so that a stream's suffix can never be part of a name.
    """
    return quote(name, safe="").replace("~", "%7E") if name else NO_NAME


def stream_id(database: str = "", collection: str = "", part: int = 0, parts: int = 1) -> str:
    """The id of a stream: ``shop.orders``, ``shop.orders~0of2``, ``shop``, ``shop~1of3``, ``deployment~``.

    Two streams that select differently by level or split have different ids.
    """
    base = ".".join(safe_name(name) for name in (database, collection) if name) or "deployment~"
    return f"{base}~{part}of{parts}" if parts > 1 else base


def split_id(database: str, collection: str, plan: str, number: int) -> str:
    """The id of a split of a backfill: ``shop.orders~read1f3a5c7e-000012``."""
    return f"{stream_id(database, collection)}{_READ}{plan}-{number:06d}"


def plan_of_split(stream: str) -> str:
    """The id of the plan that a split is of."""
    return stream.partition(_READ)[2].partition("-")[0]


def is_split(stream: str) -> bool:
    """Whether this is the id of a split."""
    return _READ in stream


def object_key(
    stream: str,
    seq: int,
    database: str,
    collection: str,
    partition: str,
    *,
    shards: int = 0,
    suffix: str = ".parquet",
    dead_letter: bool = False,
) -> str:
    """The key of one object below ``sink.url``.

    Args:
        partition: what ``partition_of`` gave for the object's rows.
        shards: ``sink.prefix_shards``.
        suffix: the format's file name ending.
        dead_letter: whether the object holds raw events that no decoder took.
    """
    name = f"{stream}-{seq:012d}{suffix}"
    if dead_letter:
        return f"{DEAD_LETTER_PREFIX}/{name}"
    if partition == "none":
        # No directory tells the collections apart, so the name must, where the stream's id does not.
        own = stream_id(database, collection)
        directory = "" if stream == own or stream.startswith(f"{own}~") else f"{own}-"
    else:
        directory = f"database={safe_name(database)}/collection={safe_name(collection)}/"
    times = "" if partition in ("none", "collection") else f"{partition}/"
    shard = f"{zlib.crc32(f'{directory}{times}{name}'.encode()) % shards:04x}/" if shards else ""
    return f"{shard}{directory}{times}{name}"


def partition_of(cluster_time: int, partitioning: Partitioning) -> str:
    """The event-time part of a key: ``year=2026/month=05/day=01/hour=07``, in UTC.

    ``"collection"`` and ``"none"`` have no such part and give themselves.
    """
    if partitioning in ("collection", "none"):
        return partitioning
    seconds = split_time(cluster_time)[0]
    return partition_of_seconds(seconds, partitioning)


def partition_of_seconds(seconds: int, partitioning: Partitioning) -> str:
    """``partition_of`` for a time in whole seconds since 1970."""
    from datetime import UTC, datetime

    time = datetime.fromtimestamp(seconds, UTC)
    day = f"year={time:%Y}/month={time:%m}/day={time:%d}"
    return f"{day}/hour={time:%H}" if partitioning == "hour" else day
