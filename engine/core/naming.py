"""Names of streams and keys of objects.

A key is a function of (stream, seq, database, collection, event-time partition) and of nothing else: no wall
clock, no random part, no host. A replay therefore rewrites the very keys that the first attempt may have made.
The function is injective, and a stream's id follows from what the stream selects: two streams never write one key.

The directories of a key are what Hive calls partitions, ``name=value``. Engines that read the lake make columns of
them, some in place of a column of that name in the files: a field ``year`` of 1909 was read as 2026. So their
names begin with ``cdc_``, and a field that bears one of them gets a column of another name (``core.schema``). They
do not begin with ``_``, which Hive and ``pyarrow.dataset`` pass over, and are in lower case, which Hive and Spark
make of all names. One ``cdc_date`` instead of a year, a month and a day: a range of days is then one comparison.

``~`` never stands in an encoded name. It begins what is added to names: a hash behind one that is too long, the
suffix of a stream's id, and (twice) the collection of an object whose place does not tell it.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple
from urllib.parse import quote

from engine.core.position import split_time

Partitioning = Literal["hour", "day", "collection", "none"]


class Directories(NamedTuple):
    """The names of a key's directories; those of times are patterns of ``strftime``."""

    database: str = "cdc_database"
    collection: str = "cdc_collection"
    day: str = "cdc_date=%Y-%m-%d"
    hour: str = "cdc_hour=%H"


DIRECTORIES = Directories()
# Of earlier versions: they are read, and replays write them.
FORMER_DIRECTORIES = Directories("database", "collection", "year=%Y/month=%m/day=%d", "hour=%H")
PARTITION_NAMES = frozenset(part.partition("=")[0] for part in DIRECTORIES)
_FORMER_KEY = re.compile(rf"([0-9a-f]{{4}}/)?{FORMER_DIRECTORIES.database}=")

# What Hive, Spark and DuckDB read as null: events that concern a whole database or deployment.
NO_NAME = "__HIVE_DEFAULT_PARTITION__"
DEAD_LETTER_PREFIX = "_dead_letter"
_READ = "~read"
# S3 takes 1,024 bytes for a key, file systems 255 for each part of one. A name of 80 CJK characters has 720 when
# encoded, and stands in a key twice. A file's name also gets a number, an ending, and what hides it at first.
_DATABASE_MAX, _COLLECTION_MAX, _STEM_MAX, _OWN_MIN = 60, 100, 200, 26
# What a stream's id has behind the name of what it selects.
_SUFFIX = re.compile(r"(~\d+of\d+|~[0-9a-f]{12}|~read[0-9a-z]+-\d+)?")
_HASH_DIGITS = 16
_SHARED_DIGITS = 12


# What the server itself makes, for $out and for a rename to another database, and renames when it is complete.
_TEMPORARY = re.compile(r"tmp\.agg_out\.[0-9a-f-]+|tmp[0-9A-Za-z]{5}\.renameCollection")


def is_temporary(collection: str) -> bool:
    """Whether a collection is one of the server's own, which has a name of no meaning until it is renamed."""
    return _TEMPORARY.fullmatch(collection) is not None


def safe_name(name: str, most: int = _COLLECTION_MAX) -> str:
    """A database's or collection's name, percent-encoded where a key or Hive would choke, and not too long."""
    encoded = quote(name, safe="").replace("~", "%7E")
    if encoded == NO_NAME:
        encoded = encoded.replace("_", "%5F", 1)
    return _shortened(encoded, most) if name else NO_NAME


def _shortened(text: str, most: int) -> str:
    """``text``, or its beginning and its hash."""
    if len(text) <= most:
        return text
    beginning = re.sub("%.?$", "", text[: most - _HASH_DIGITS - 1])
    return f"{beginning}~{hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]}"


def _file_name(database: str) -> str:
    """A database's name at the begin of a file's: hidden files begin with ``.`` or ``_``, and a ``.`` ends it."""
    encoded = safe_name(database, _DATABASE_MAX).replace(".", "%2E")
    return encoded.replace("_", "%5F", 1) if encoded.startswith("_") else encoded


def stream_id(database: str = "", collection: str = "", part: int = 0, parts: int = 1) -> str:
    """The id of a stream: ``shop.orders``, ``shop.orders~0of2``, ``shop``, ``deployment~``.

    Two streams that select differently by level or split have different ids.
    """
    if not database and not collection:
        return "deployment~"
    base = f"{_file_name(database)}.{safe_name(collection)}" if collection else _file_name(database)
    return f"{base}~{part}of{parts}" if parts > 1 else base


def shared_stream_id(database: str, collections: Sequence[str], *, carries_database: bool) -> str:
    """The id of a stream that some collections share: ``shop~1f3a5c7e9b2d``.

    Args:
        carries_database: whether it also brings what concerns the whole database.
    """
    selected = "\0".join([str(int(carries_database)), *sorted(collections)])
    return f"{stream_id(database)}~{hashlib.sha256(selected.encode()).hexdigest()[:_SHARED_DIGITS]}"


def split_prefix(database: str, collection: str, plan: str | None = None) -> str:
    """How the ids of a collection's splits begin: of one plan, or of all."""
    return f"{stream_id(database, collection)}{_READ}{plan or ''}"


def split_id(database: str, collection: str, plan: str, number: int) -> str:
    """The id of a split of a backfill: ``shop.orders~read1f3a5c7e-000012``."""
    return f"{split_prefix(database, collection, plan)}-{number:06d}"


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
    directories: Directories = DIRECTORIES,
) -> str:
    """The key of one object below ``sink.url``.

    Args:
        partition: what ``partition_of`` gave for the object's rows.
        shards: ``sink.prefix_shards``.
        suffix: the format's file name ending.
        dead_letter: whether the object holds raw events that no decoder took.
        directories: as ``partition`` has them.
    """
    stem = stream
    if partition == "none" and not dead_letter:
        # No directory tells the collections apart, so the name must, where the stream's id does not.
        own = stream_id(database, collection)
        if not (stream.startswith(own) and _SUFFIX.fullmatch(stream, len(own))):
            stem = f"{stream}~~{_shortened(own, max(_OWN_MIN, _STEM_MAX - len(stream) - 2))}"
    name = f"{stem}-{seq:012d}{suffix}"
    if dead_letter:
        return f"{DEAD_LETTER_PREFIX}/{name}"
    directory = "" if partition == "none" else collection_directory(database, collection, directories)
    times = "" if partition in ("none", "collection") else f"{partition}/"
    shard = f"{zlib.crc32(f'{directory}{times}{name}'.encode()) % shards:04x}/" if shards else ""
    return f"{shard}{directory}{times}{name}"


def number_in(key: str, stream: str) -> int | None:
    """The number of the segment that an object is of; None for an object of another stream."""
    stem, _, rest = key.rpartition("/")[2].rpartition("-")
    number = rest.partition(".")[0]
    own = stem.removeprefix(f"{stream}~~")
    is_own = stem == stream or (own != stem and not own.startswith("~"))
    return int(number) if is_own and number.isdecimal() else None


def directories_of(keys: Iterable[str]) -> Directories:
    """Which directories these keys of one segment have."""
    return FORMER_DIRECTORIES if any(_FORMER_KEY.match(key) for key in keys) else DIRECTORIES


def collection_directory(database: str, collection: str, directories: Directories = DIRECTORIES) -> str:
    """Where the objects of a collection lie, unless ``sink.partition_by`` is ``none``."""
    outer = f"{directories.database}={safe_name(database, _DATABASE_MAX)}"
    return f"{outer}/{directories.collection}={safe_name(collection)}/"


def partition_of(cluster_time: int, partitioning: Partitioning, directories: Directories = DIRECTORIES) -> str:
    """The event-time part of a key: ``cdc_date=2026-05-01/cdc_hour=07``, in UTC.

    ``"collection"`` and ``"none"`` have no such part and give themselves.
    """
    if partitioning in ("collection", "none"):
        return partitioning
    seconds = split_time(cluster_time)[0]
    return partition_of_seconds(seconds, partitioning, directories)


def partition_of_seconds(seconds: int, partitioning: Partitioning, directories: Directories = DIRECTORIES) -> str:
    """``partition_of`` for a time in whole seconds since 1970."""
    from datetime import UTC, datetime

    time = datetime.fromtimestamp(seconds, UTC)
    day = time.strftime(directories.day)
    return f"{day}/{time.strftime(directories.hour)}" if partitioning == "hour" else day
