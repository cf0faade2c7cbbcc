"""Collections of all legal names, and engines side by side: no two streams ever meet in one key or one record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from engine.local import LocalStack
from tests.integration.harness import Engine, EngineConfig, Lake, catch_up

Client = MongoClient[dict[str, Any]]
NAMES = [
    "表" * 80,
    "__HIVE_DEFAULT_PARTITION__",
    "a~1of2",
    "a-b.c",
    "with space/slash=equals%percent",
    "x" * 200,
    "_private",
]


def test_a_stream_and_a_collection_that_spell_one_name(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """``a-<database>`` is split; without directories, its keys looked like those of ``a`` in a shared stream."""
    split = f"a-{config.name}"
    others = [f"c{n}" for n in range(12)]
    config.set("source", collections=["a", split, *others], split={split: 2}, max_readers=4)
    config.set("sink", partition_by="none")
    config.set("memory", limit="2GiB")
    for name in ("a", split, *others):
        mongo[config.name][name].insert_many([{"n": n} for n in range(700)])
    catch_up(config)
    assert len(lake.check_no_token_twice()) == 700 * (2 + len(others))


def test_two_engines_with_other_collections_on_one_state(
    stack: LocalStack, mongo: Client, config: EngineConfig, lake: Lake, tmp_path: Path
) -> None:
    """More than there are readers for: their shared streams had the same names, and one adopted the other's."""
    directory = tmp_path / "other"
    directory.mkdir()
    other = EngineConfig(stack, directory, config.name)
    for each, letter in ((config, "a"), (other, "b")):
        each.set("source", collections=[f"{letter}{n}" for n in range(12)], max_readers=2)
        each.set("memory", limit="2GiB")
    names = [f"{letter}{n}" for letter in "ab" for n in range(12)]
    for name in names:
        mongo[config.name][name].insert_many([{"n": n} for n in range(50)])
    catch_up(config)
    catch_up(other)
    assert len(lake.check_no_token_twice()) == 50 * len(names)
    with Engine(config) as one, Engine(other) as two:
        carried = [engine.wait_reading()["streams"] for engine in (one, two)]
        for name in names:
            mongo[config.name][name].insert_many([{"n": n} for n in range(10)])
        assert one.terminate() == 0
        assert two.terminate() == 0
    catch_up(config)
    catch_up(other)
    assert len(lake.check_no_token_twice()) == 60 * len(names)
    assert not {each["stream"] for each in carried[0]} & {each["stream"] for each in carried[1]}
    assert sorted(name for streams in carried for each in streams for name in each["collections"]) == sorted(names)


@pytest.mark.parametrize("sink", ["s3", "file"])
@pytest.mark.parametrize("partition_by", ["hour", "none"])
@pytest.mark.parametrize("max_readers", [12, 1])
def test_every_legal_name_lands(
    mongo: Client, config: EngineConfig, lake: Lake, sink: str, partition_by: str, max_readers: int
) -> None:
    """Also where all share one stream, and what concerns the whole database is beside them."""
    config.set("source", collections=NAMES, max_readers=max_readers)
    config.set("sink", partition_by=partition_by)
    config.set("memory", limit="2GiB")
    if sink == "file":
        config.set("sink", url=f"file://{config.directory}/lake")
    for name in NAMES:
        mongo[config.name][name].insert_many([{"n": n, "name": name} for n in range(30)])
    if max_readers == 1:
        mongo.drop_database(config.name)
    catch_up(config)
    rows = lake.rows() if sink == "s3" else lake.rows_in(config.directory / "lake")
    inserted = [row for row in rows if row["_cdc_op"] == "insert"]
    assert sorted(row["_cdc_collection"] for row in inserted) == sorted(name for name in NAMES for _ in range(30))
    assert all(row["name"] == row["_cdc_collection"] for row in inserted)
    assert len({row["_cdc_token"] for row in rows}) == len(rows)
    if max_readers == 1:
        assert [row["_cdc_op"] for row in rows].count("drop") == len(NAMES)
        assert [row["_cdc_op"] for row in rows].count("dropDatabase") == 1
