"""Names of streams and keys of objects.

A key is a function of (stream, seq, database, collection, event-time partition) and of nothing else: no wall
clock, no random element, no host. A replay therefore rewrites exactly the keys that the first attempt may have
written. The function is injective, and a stream's id follows from what the stream selects, so no two streams write
the same key.

The directories of a key are what Hive calls partitions, ``name=value``. Engines that read the lake turn them into
columns, some of them in place of a column of that name in the files: a field ``year`` of 1909 was read as 2026. So
their names start with ``cdc_``, and a field that has one of these names gets a column of another name
(``core.schema``). They do not start with ``_``, because Hive and ``pyarrow.dataset`` skip such directories, and
are in lower case, because Hive and Spark lower-case all names. There is one ``cdc_date`` instead of a year, a
month and a day, so that a range of days is one comparison.

``~`` never occurs in an encoded name. It starts what is appended to names: the hash of one that is too long, the
suffix of a stream's id, and (doubled) the collection of an object whose directory does not show it.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple
from urllib.parse import quote

from engine.core.position import split_time

Partitioning = Literal["hour", "day", "collection", "none", "table"]


class Directories(NamedTuple):
    """A layout: the names of a key's directories; those of times are patterns of ``strftime``.

    Attributes:
        database, collection: what a name is put behind.
        suffix: what follows a collection's name.
        escape: what stands for the ``%`` of an encoded name.
    """

    database: str = "cdc_database="
    collection: str = "cdc_collection="
    day: str = "cdc_date=%Y-%m-%d"
    hour: str = "cdc_hour=%H"
    suffix: str = ""
    escape: str = "%"


DIRECTORIES = Directories()
# Those of earlier versions: they are read, and replays still write them.
OLD_DIRECTORIES = Directories("database=", "collection=", "year=%Y/month=%m/day=%d", "hour=%H")
# The roots of tables: ``shop/orders_changes/``. Readers would take ``name=value`` above a root for a column, and
# some decode a root as a URL.
TABLE_SUFFIX = "_changes"
TABLE_DIRECTORIES = Directories("", "", suffix=TABLE_SUFFIX, escape="~")
LAYOUTS = (DIRECTORIES, OLD_DIRECTORIES, TABLE_DIRECTORIES)


def layout_of(partitioning: Partitioning) -> Directories:
    """The layout of new objects."""
    return TABLE_DIRECTORIES if partitioning == "table" else DIRECTORIES


def mirror_name(changes: str) -> str:
    """The name of a collection's mirror, from that of its changelog table: no other table has it."""
    name = changes.removesuffix(TABLE_SUFFIX)
    return f"{name[:-1]}{TABLE_DIRECTORIES.escape}73" if name.endswith(TABLE_SUFFIX) else name


PARTITION_NAMES = frozenset(name.partition("=")[0] for name in DIRECTORIES if name)
_OLD_KEY = re.compile(rf"([0-9a-f]{{4}}/)?{OLD_DIRECTORIES.database}")

# What Hive, Spark and DuckDB read as null: events that concern a whole database or deployment.
NO_NAME = "__HIVE_DEFAULT_PARTITION__"
DEAD_LETTER_PREFIX = "_dead_letter"
_READ = "~read"
# S3 allows 1,024 bytes for a key, file systems 255 for each component. A name of 80 CJK characters has 720 when
# encoded, and occurs in a key twice. A file's name also gets a number, an extension, and a prefix that hides it at
# first.
_DATABASE_MAX, _COLLECTION_MAX, _STEM_MAX, _OWN_MIN = 60, 100, 200, 26
# What follows the name of the selection in a stream's id.
_SUFFIX = re.compile(r"(~\d+of\d+|~[0-9a-f]{12}|~read[0-9a-z]+-\d+)?")
# Keys as ``object_key`` writes them. A stream's id has no ``~~``, and a name after one does not begin with ``~``.
_DEAD_LETTER_SUFFIX = ".bson.zst"
_KEY = re.compile(
    rf"(?P<dead>{DEAD_LETTER_PREFIX}/)?(?P<shard>[0-9a-f]{{4}}/)?"
    rf"(?:(?P<new>{DIRECTORIES.database}[^/]+/{DIRECTORIES.collection}[^/]+/)"
    r"(?P<new_time>cdc_date=\d{4}-\d\d-\d\d/(?:cdc_hour=\d\d/)?)?"
    rf"|(?P<old>{OLD_DIRECTORIES.database}[^/]+/{OLD_DIRECTORIES.collection}[^/]+/)"
    r"(?P<old_time>year=\d{4}/month=\d\d/day=\d\d/(?:hour=\d\d/)?)?"
    rf"|(?P<table>[^/=]+/[^/=]+{TABLE_SUFFIX}/)(?P<table_time>cdc_date=\d{{4}}-\d\d-\d\d/))?"
    r"(?P<stem>[^/._][^/]*)-(?P<seq>\d{12,})(?P<suffix>\.(?:parquet|avro|(?:jsonl|csv|bson)(?:\.[a-z0-9]+)?))"
)
_LAYOUTS = {"new": DIRECTORIES, "old": OLD_DIRECTORIES, "table": TABLE_DIRECTORIES}
_NAMED_STEM = re.compile("(?P<stream>.*)~~(?P<own>[^~].*)")
_HASH_DIGITS = 16
_SHARED_DIGITS = 12


# Collections that the server creates for $out and for a rename to another database, and renames once complete.
_TEMPORARY = re.compile(r"tmp\.agg_out\.[0-9a-f-]+|tmp[0-9A-Za-z]{5}\.renameCollection")


def is_temporary(collection: str) -> bool:
    """Whether a collection is one of the server's own, whose name means nothing until it is renamed."""
    return _TEMPORARY.fullmatch(collection) is not None


def safe_name(name: str, max_length: int = _COLLECTION_MAX) -> str:
    """A database's or collection's name, percent-encoded where a key or Hive needs it, shortened if too long."""
    encoded = quote(name, safe="").replace("~", "%7E")
    if encoded == NO_NAME:
        encoded = encoded.replace("_", "%5F", 1)
    return _shortened(encoded, max_length) if name else NO_NAME


def _shortened(text: str, max_length: int) -> str:
    """``text``, or its beginning and its hash."""
    if len(text) <= max_length:
        return text
    beginning = re.sub("%.?$", "", text[: max_length - _HASH_DIGITS - 1])
    return f"{beginning}~{hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]}"


def _file_name(database: str) -> str:
    """A database's name, to start a file name: a ``.`` or ``_`` would hide the file, a ``.`` ends the name."""
    encoded = safe_name(database, _DATABASE_MAX).replace(".", "%2E")
    return encoded.replace("_", "%5F", 1) if encoded.startswith("_") else encoded


def stream_id(database: str = "", collection: str = "", part: int = 0, parts: int = 1) -> str:
    """The id of a stream: ``shop.orders``, ``shop.orders~0of2``, ``shop``, ``deployment~``.

    Two streams that differ in level or part have different ids.
    """
    if not database and not collection:
        return "deployment~"
    base = f"{_file_name(database)}.{safe_name(collection)}" if collection else _file_name(database)
    return f"{base}~{part}of{parts}" if parts > 1 else base


def shared_stream_id(
    database: str,
    collections: Sequence[str],
    *,
    carries_database: bool,
    patterns: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> str:
    """The id of a stream shared by several collections: ``shop~1f3a5c7e9b2d``; ``deployment~1f3a...`` without one.

    Args:
        carries_database: whether it also carries the events that concern the whole database.
        patterns, exclude: see ``StreamSpec``.
    """
    selected = [str(int(carries_database)) if database else "", *sorted(collections)]
    if patterns:  # no name and no pattern is empty
        selected += ["", *sorted(patterns), "", *sorted(exclude)]
    digest = hashlib.sha256("\0".join(selected).encode()).hexdigest()[:_SHARED_DIGITS]
    return f"{stream_id(database)}{'~' if database else ''}{digest}"


def split_prefix(database: str, collection: str, plan: str | None = None) -> str:
    """The prefix of the ids of a collection's splits, of one plan or of all."""
    return f"{stream_id(database, collection)}{_READ}{plan or ''}"


def split_id(database: str, collection: str, plan: str, number: int) -> str:
    """The id of a split of a backfill: ``shop.orders~read1f3a5c7e-000012``."""
    return f"{split_prefix(database, collection, plan)}-{number:06d}"


def plan_of_split(stream: str) -> str:
    """The id of the plan that a split belongs to."""
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
        partition: what ``partition_of`` returned for the object's rows.
        shards: ``sink.prefix_shards``.
        suffix: the format's file name extension.
        dead_letter: whether the object holds raw events that could not be decoded.
        directories: the same as in ``partition``.
    """
    stem = stream
    if partition == "none" and not dead_letter:
        # No directory tells the collections apart, so the name must, unless the stream's id does.
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


class KeyParts(NamedTuple):
    """What a key shows of its object; the inverse of ``object_key``, except for names that were shortened.

    Attributes:
        stream, seq: the segment that the object belongs to.
        partition: as for ``object_key``; ``none`` for a dead letter.
        suffix: the format's file name extension.
        directories: the names of its directories.
        shard: the prefix that ``sink.prefix_shards`` has put in front, with its ``/``; empty for none.
        directory: the collection's directory; empty where ``partition`` is ``none``.
        dead_letter: whether it holds raw events that could not be decoded.
    """

    stream: str
    seq: int
    partition: str
    suffix: str
    directories: Directories = DIRECTORIES
    shard: str = ""
    directory: str = ""
    dead_letter: bool = False

    def key_for(self, database: str, collection: str) -> str:
        """The key, without its shard, that the object of this collection in the same segment and partition has."""
        return object_key(
            self.stream,
            self.seq,
            database,
            collection,
            self.partition,
            suffix=self.suffix,
            dead_letter=self.dead_letter,
            directories=self.directories,
        )


def parts_of(key: str) -> KeyParts | None:
    """What a key shows of its object; None for a key that the engine does not write."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    part = match.groupdict(default="")
    number = int(part["seq"])
    if part["dead"]:
        is_letter = not (part["shard"] or part["new"] or part["old"]) and part["suffix"] == _DEAD_LETTER_SUFFIX
        return KeyParts(part["stem"], number, "none", part["suffix"], dead_letter=True) if is_letter else None
    layout = next((name for name in _LAYOUTS if part[name]), "new")
    directory = part[layout]
    partition = part[f"{layout}_time"].rstrip("/") or "collection" if directory else "none"
    named = _NAMED_STEM.fullmatch(part["stem"]) if partition == "none" else None
    stream = named["stream"] if named else part["stem"]
    return KeyParts(stream, number, partition, part["suffix"], _LAYOUTS[layout], part["shard"], directory)


def number_in(key: str, stream: str) -> int | None:
    """The number of the segment that an object belongs to; None for an object of another stream."""
    stem, _, rest = key.rpartition("/")[2].rpartition("-")
    number = rest.partition(".")[0]
    own = stem.removeprefix(f"{stream}~~")
    is_own = stem == stream or (own != stem and not own.startswith("~"))
    return int(number) if is_own and number.isdecimal() else None


def has_old_directories(keys: Iterable[str]) -> bool:
    """Whether these keys of one segment have the directories of earlier versions."""
    return any(_OLD_KEY.match(key) for key in keys)


def collection_directory(database: str, collection: str, directories: Directories = DIRECTORIES) -> str:
    """The directory of a collection's objects, unless ``sink.partition_by`` is ``none``."""
    names = safe_name(database, _DATABASE_MAX), safe_name(collection)
    outer, inner = (_directory_name(each, directories) for each in names)
    return f"{directories.database}{outer}/{directories.collection}{inner}{directories.suffix}/"


def _directory_name(encoded: str, directories: Directories) -> str:
    """An encoded name as a directory's; Delta takes everything below a ``_delta_log`` for a table's log."""
    if directories is TABLE_DIRECTORIES and encoded == "_delta_log":
        encoded = encoded.replace("_", "%5F", 1)
    return encoded.replace("%", directories.escape)


def partition_of(cluster_time: int, partitioning: Partitioning, directories: Directories = DIRECTORIES) -> str:
    """The event-time partition of a key: ``cdc_date=2026-05-01/cdc_hour=07``, in UTC.

    ``"collection"`` and ``"none"`` have none and are returned as they are.
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
