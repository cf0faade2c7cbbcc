"""The rows that a restore reads: of one collection, and of later ones no more than it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.config.tree import SinkConfig
from engine.core.naming import object_key
from engine.errors import ConfigError, FatalError
from engine.lake.folding.reading import rows_until
from engine.lake.objects import Objects


def row(time: int, collection: str = "orders", **more: Any) -> dict[str, Any]:
    own = {"_cdc_op": "insert", "_cdc_database": "shop", "_cdc_collection": collection, "_cdc_timestamp": time}
    return own | {"_cdc_id": str(time), "_cdc_key": f'{{"_id":{time}}}', "n": time} | more


def write(
    lake: Path, rows: list[dict[str, Any]], stream: str = "shop.orders", partition: str = "collection"
) -> Path:
    """One object, with a row group of two rows each."""
    path = lake / object_key("shop.orders", 1, "shop", "orders", partition)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2, write_page_checksum=True)
    return path


def read(lake: Path, at: int) -> list[dict[str, Any]]:
    objects = Objects(SinkConfig(url=f"file://{lake}"))
    return [row for batch in rows_until(objects, "shop", "orders", at) for row in batch.to_pylist()]


def test_of_later_row_groups_only_the_keys_are_read(tmp_path: Path) -> None:
    write(tmp_path, [row(1), row(9), row(7), row(8)])
    found = read(tmp_path, 5)
    assert [(each["_cdc_id"], each.get("n")) for each in found] == [("1", 1), ("9", 9), ("7", None), ("8", None)]


def test_rows_of_other_collections_are_left_out(tmp_path: Path) -> None:
    """Without directories, an object of a shared stream may have rows of temporary collections, too."""
    write(tmp_path, [row(1), row(2, "users"), row(3)], partition="none")
    assert [each["n"] for each in read(tmp_path, 5)] == [1, 3]


def test_a_damaged_object_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, [row(number) for number in range(100)])
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(FatalError, match=path.name):
        read(tmp_path, 500)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [row(1)])
    path.rename(path.with_suffix(".avro"))
    with pytest.raises(ConfigError, match="not Parquet"):
        read(tmp_path, 5)
