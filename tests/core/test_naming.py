"""Ids of streams and keys of objects."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest

from engine.core.naming import (
    LAYOUTS,
    NO_NAME,
    TABLE_DIRECTORIES,
    Directories,
    Partitioning,
    collection_directory,
    is_temporary,
    mirror_name,
    number_in,
    object_key,
    partition_of,
    parts_of,
    safe_name,
    shared_stream_id,
    split_id,
    stream_id,
)
from engine.core.position import make_time

SEVEN = make_time(1_777_618_800 + 59, 3)  # 2026-05-01T07:00:59Z
PAIRS = 100_000


@pytest.mark.parametrize(
    ("partitioning", "partition"),
    [
        ("hour", "cdc_date=2026-05-01/cdc_hour=07"),
        ("day", "cdc_date=2026-05-01"),
        ("collection", "collection"),
        ("none", "none"),
    ],
)
def test_partitions(partitioning: Partitioning, partition: str) -> None:
    assert partition_of(SEVEN, partitioning) == partition


def test_a_key() -> None:
    key = object_key("shop.orders", 7, "shop", "orders", partition_of(SEVEN, "hour"))
    directories = "cdc_database=shop/cdc_collection=orders/cdc_date=2026-05-01/cdc_hour=07"
    assert key == f"{directories}/shop.orders-000000000007.parquet"


def test_without_directories_the_file_name_identifies_the_collection() -> None:
    assert object_key("shop.orders", 7, "shop", "orders", "none") == "shop.orders-000000000007.parquet"
    assert object_key("shop.orders~0of2", 7, "shop", "orders", "none") == "shop.orders~0of2-000000000007.parquet"
    assert object_key("shop", 7, "shop", "orders", "none") == "shop~~shop.orders-000000000007.parquet"


def test_dead_letters_have_a_directory_of_their_own() -> None:
    key = object_key("shop", 7, "shop", "", "none", suffix=".bson.zst", dead_letter=True)
    assert key == "_dead_letter/shop-000000000007.bson.zst"


def test_shards_go_in_front() -> None:
    keys = {object_key("s", seq, "d", "c", "collection", shards=8).split("/")[0] for seq in range(100)}
    assert keys == {f"{number:04x}" for number in range(8)}


NAMES = [
    "orders",
    "a.b",
    "",
    "~",
    "a~~b",
    "deployment~",
    "-000000000007",
    "_x",
    "x_changes",
    "ü" * 80,
    "a/b",
    "cdc_database=x",
]


@pytest.mark.parametrize(
    ("directories", "partitioning"),
    [
        *((directories, each) for directories in LAYOUTS[:2] for each in ("hour", "day", "collection", "none")),
        (TABLE_DIRECTORIES, "table"),
    ],
)
@pytest.mark.parametrize("shards", [0, 8])
def test_a_key_shows_what_it_was_made_of(
    directories: Directories, partitioning: Partitioning, shards: int
) -> None:
    partition = partition_of(SEVEN, partitioning, directories)
    for collection in NAMES:
        for stream in (
            stream_id(),
            stream_id("shop"),
            stream_id("shop", collection, 1, 2),
            split_id("shop", collection, "1f3a5c7e", 12),
            shared_stream_id("shop", ["a", "b"], carries_database=True),
        ):
            for suffix in (".parquet", ".jsonl.zst", ".bson.zst", ".csv", ".avro"):
                options = {"shards": shards, "suffix": suffix, "directories": directories}
                key = object_key(stream, 7, "shop", collection, partition, **options)  # type: ignore[arg-type]
                parts = parts_of(key)
                assert parts is not None, key
                assert (parts.stream, parts.seq, parts.partition, parts.suffix) == (stream, 7, partition, suffix)
                assert not parts.dead_letter
                assert parts.shard + parts.key_for("shop", collection) == key
                assert parts.directories == directories or partitioning == "none"
                assert bool(parts.shard) == bool(shards)


def test_what_is_no_key_of_ours_shows_nothing() -> None:
    letter = object_key("shop", 7, "shop", "", "none", suffix=".bson.zst", dead_letter=True)
    parts = parts_of(letter)
    assert parts is not None
    assert parts.dead_letter
    assert (parts.stream, parts.seq) == ("shop", 7)
    for key in (
        "_headrace/streams/shop.orders.json",
        "_headrace/shop.orders-000000000007.parquet",
        "_dead_letter/shop-000000000007.parquet",
        "readme.txt",
        "shop.orders.parquet",
        "shop.orders-7.parquet",
        "elsewhere/shop.orders-000000000007.parquet",
        "cdc_database=shop/cdc_collection=orders/hour=07/shop.orders-000000000007.parquet",
        "cdc_database=shop/cdc_collection=orders/.headrace_1-000000000007.parquet",
        "cdc_database=shop/cdc_collection=orders/shop.orders-000000000007.parquet.tmp",
    ):
        assert parts_of(key) is None, key


def test_an_event_without_a_collection_is_in_the_null_partition() -> None:
    key = object_key("shop", 7, "shop", "", "collection")
    assert key.startswith("cdc_database=shop/cdc_collection=__HIVE_DEFAULT_PARTITION__/")
    assert safe_name(NO_NAME) == "%5F_HIVE_DEFAULT_PARTITION__"


def test_no_table_is_below_a_directory_of_logs() -> None:
    """Where Delta would find no table."""
    directory = collection_directory("_delta_log", "_delta_log", TABLE_DIRECTORIES)
    assert directory == "~5Fdelta_log/~5Fdelta_log_changes/"
    assert mirror_name("~5Fdelta_log_changes") == "~5Fdelta_log"
    assert collection_directory("a_delta_log", "x", TABLE_DIRECTORIES) == "a_delta_log/x_changes/"
    assert collection_directory("_delta_log", "x") == "cdc_database=_delta_log/cdc_collection=x/"


@pytest.mark.parametrize("name", ["a/b", "a=b", "a b", "ü", "a%b", "a~0of2", "..", "a\0b", "表" * 80])
def test_safe_names(name: str) -> None:
    safe = safe_name(name)
    assert not set(safe) & set("/= \0")
    assert safe.isascii()
    assert len(safe) <= 100


@pytest.mark.parametrize("database", ["_private", ".hidden"])
def test_no_file_is_hidden(database: str) -> None:
    """Spark, Hive and ``pyarrow.dataset`` skip files whose names begin with ``_`` or ``.``."""
    for partition in ("none", "collection"):
        key = object_key(stream_id(database, "c"), 7, database, "c", partition)
        assert key.rpartition("/")[2][0] not in "_."


def test_stream_ids() -> None:
    assert [stream_id(), stream_id("shop"), stream_id("shop", "orders"), stream_id("shop", "orders", 0, 2)] == [
        "deployment~",
        "shop",
        "shop.orders",
        "shop.orders~0of2",
    ]


def test_long_names_with_a_common_prefix_differ() -> None:
    stream = stream_id("shop", "x" * 200)
    beginning = safe_name("x" * 200).partition("~")[0]
    assert object_key(stream, 7, "shop", "x" * 200, "none") != object_key(stream, 7, "shop", beginning, "none")


# --- hostile names ---------------------------------------------------------------------------------------

# Texts that look like other parts of a key, and texts that become long when encoded.
PIECES = [
    *"a-._~%=/ 0",
    "a-shop",
    "shop",
    "deployment~",
    "deployment",
    "~1of2",
    "~read1f3a5c7e-000012",
    "-000000000007.parquet",
    "%7E",
    "%2E",
    "~~",
    NO_NAME,
    "year=2026",
    "database=",
    "cdc_date=2026-05-01",
    "cdc_database=",
    "0123456789abcdef",
    "表",
    "\U0001f600",
    "x" * 90,
    "表" * 30,
]


class Written(NamedTuple):
    """What an object contains: stream and selection, segment, collection, and time of the rows."""

    stream: tuple[object, ...]
    seq: int
    database: str
    collection: str
    partition: str


def a_name(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 5)))


def a_stream(rng: random.Random, names: list[str]) -> tuple[tuple[object, ...], str]:
    """What a stream selects, and its id."""
    database, collection = rng.choice(names), rng.choice(names)
    match rng.randrange(7):
        case 0:
            return ("deployment",), stream_id()
        case 1:
            return ("database", database), stream_id(database)
        case 2:
            parts = rng.choice((1, 2, 3, 12))
            part = rng.randrange(parts)
            return ("collection", database, collection, part, parts), stream_id(database, collection, part, parts)
        case 3:
            plan, number = rng.choice(("1f3a5c7e", "00000000")), rng.randrange(20)
            return ("split", database, collection, plan, number), split_id(database, collection, plan, number)
        case 4:
            globs = tuple(sorted({f"{each}*" for each in rng.choices(names, k=2)}))
            where, exclude = rng.choice((database, "")), tuple(rng.choices(names, k=rng.randrange(2)))
            made = shared_stream_id(where, (), carries_database=True, patterns=globs, exclude=exclude)
            return ("patterns", where, globs, exclude), made
        case _:
            shared = tuple(sorted(set(rng.choices(names, k=rng.randrange(1, 4)))))
            first = rng.random() < 0.5
            return ("shared", database, shared, first), shared_stream_id(database, shared, carries_database=first)


def a_written(rng: random.Random, names: list[str], partitioning: Partitioning) -> tuple[Written, str, str]:
    """An object, its key, and the id of its stream."""
    selected, stream = a_stream(rng, names)
    seq = rng.choice((1, 7, 12, 170_000_000_001))
    database, collection = rng.choice([*names, ""]), rng.choice([*names, ""])
    if not database:
        collection = ""
    partition = partition_of(make_time(1_777_618_800 + rng.choice((0, 3600, 86400)), 0), partitioning)
    key = object_key(stream, seq, database, collection, partition)
    return Written(selected, seq, database, collection, partition), key, stream


@pytest.mark.parametrize("partitioning", ["hour", "day", "collection", "none"])
def test_no_two_segments_write_the_same_key(partitioning: Partitioning) -> None:
    """100,000 pairs of hostile (stream, seq, collection, partition): those that differ have different keys."""
    rng = random.Random(partitioning)
    pairs = 0
    while pairs < PAIRS // 4:
        names = [a_name(rng) for _ in range(3)]
        made: dict[str, Written] = {}
        ids: dict[str, tuple[object, ...]] = {}
        for _ in range(30):
            written, key, stream = a_written(rng, names, partitioning)
            assert made.setdefault(key, written) == written, key
            assert ids.setdefault(stream, written.stream) == written.stream, stream
            assert number_in(key, stream) == written.seq
            name = key.rpartition("/")[2]
            assert name.startswith(stream)
            assert name[0] not in "_."
            assert len(key) < 700
            assert max(map(len, key.split("/"))) <= 235
            assert all(number_in(key, other) is None for other in ids if other != stream)
        pairs += len(made) * (len(made) - 1) // 2


def test_temporary_collections_of_the_server() -> None:
    assert is_temporary("tmp.agg_out.7f5c3c5e-8d7e-4f6e-9d2b-0d1f1f1f1f1f")
    assert is_temporary("tmpHV3GE.renameCollection")
    assert not any(
        map(is_temporary, ("orders", "tmp", "tmp.orders", "tmp.agg_out.mine!", "a.renameCollection", ""))
    )
