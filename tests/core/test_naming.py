"""Ids of streams and keys of objects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.naming import object_key, partition_of, safe_name, stream_id
from engine.core.position import make_time

SEVEN = make_time(1_777_618_800 + 59, 3)  # 2026-05-01T07:00:59Z


@pytest.mark.parametrize(
    ("partitioning", "partition"),
    [
        ("hour", "year=2026/month=05/day=01/hour=07"),
        ("day", "year=2026/month=05/day=01"),
        ("collection", "collection"),
        ("none", "none"),
    ],
)
def test_partitions(partitioning: str, partition: str) -> None:
    assert partition_of(SEVEN, partitioning) == partition  # type: ignore[arg-type]


def test_a_key() -> None:
    key = object_key("shop.orders", 7, "shop", "orders", partition_of(SEVEN, "hour"))
    assert (
        key == "database=shop/collection=orders/year=2026/month=05/day=01/hour=07/shop.orders-000000000007.parquet"
    )


def test_without_directories_the_name_tells_collections_apart() -> None:
    assert object_key("shop.orders", 7, "shop", "orders", "none") == "shop.orders-000000000007.parquet"
    assert object_key("shop.orders~0of2", 7, "shop", "orders", "none") == "shop.orders~0of2-000000000007.parquet"
    assert object_key("shop", 7, "shop", "orders", "none") == "shop.orders-shop-000000000007.parquet"


def test_dead_letters_lie_apart() -> None:
    key = object_key("shop", 7, "shop", "", "none", suffix=".bson.zst", dead_letter=True)
    assert key == "_dead_letter/shop-000000000007.bson.zst"


def test_shards_go_in_front() -> None:
    keys = {object_key("s", seq, "d", "c", "collection", shards=8).split("/")[0] for seq in range(100)}
    assert keys == {f"{number:04x}" for number in range(8)}


def test_an_event_without_a_collection_is_under_hives_null() -> None:
    key = object_key("shop", 7, "shop", "", "collection")
    assert key.startswith("database=shop/collection=__HIVE_DEFAULT_PARTITION__/")


@pytest.mark.parametrize("name", ["a/b", "a=b", "a b", "ü", "a%b", "a~0of2", "..", "a\0b"])
def test_safe_names(name: str) -> None:
    safe = safe_name(name)
    assert not set(safe) & set("/= ~\0")
    assert safe.isascii()


@given(st.text(min_size=1), st.text(min_size=1), st.integers(0, 9), st.integers(1, 9))
def test_stream_ids_are_unique(database: str, collection: str, part: int, parts: int) -> None:
    plain = stream_id(database.replace(".", ""), collection)
    if parts > 1:
        assert stream_id(database.replace(".", ""), collection, part, parts) != plain
    assert plain != stream_id(database.replace(".", ""))


def test_the_ids() -> None:
    assert [stream_id(), stream_id("shop"), stream_id("shop", "orders"), stream_id("shop", "orders", 0, 2)] == [
        "deployment~",
        "shop",
        "shop.orders",
        "shop.orders~0of2",
    ]
