"""The plans made for replaced collections, on a real state store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from engine.backfill.planner import Planner
from engine.backfill.plans import plans_of
from engine.backfill.reloads import pool_beside, with_reloads
from engine.backfill.work import NOTHING
from engine.config import Config, load
from engine.config.streams import streams_of
from engine.core.backfill import END, Plan, Selection
from engine.core.position import Position
from engine.core.records import begin
from engine.core.specs import Spec
from engine.state.opening import open_store
from engine.state.seam import Acquired

PLAN = Plan("1f3a5c7e", "shop", "orders", Selection(), "", "", ("0a",), 30, 900, 0.0, since=200, begun=200)
NEW = replace(PLAN, id="77777777", since=300, begun=300)


class Fake(Planner):
    """A planner with the answers of a server, but without one."""

    def __init__(self, *found: Plan) -> None:
        self.found = list(found)
        self.asked: list[Any] = []

    def call(self, function: Any, *arguments: Any, of: str = "MongoDB") -> Any:
        self.asked.append(arguments[1])
        return self.found


def config_with(directory: Path, **source: str) -> Config:
    lines = [f'{name} = "{value}"' for name, value in source.items()]
    path = directory / "config.toml"
    path.write_text(
        "\n".join(
            [
                '[source]\nuri = "mongodb://nowhere/"\ndatabase = "shop"\ncollections = ["orders"]',
                *lines,
                f'[sink]\nurl = "file://{directory}/lake"',
                f'[state]\nurl = "sqlite:///{directory}/state.db"',
            ]
        )
    )
    return load(path)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A configuration whose state has a stream with a collection that was replaced at cluster time 250."""
    made = config_with(tmp_path)
    (spec,) = streams_of(made.source)
    keep(made, spec, begin(spec, "", "", Position(time=260)).put | {"replaced:shop.orders": "250"}, "mine")
    return made


def keep(config: Config, spec: Spec, fields: dict[str, str], owner: str, *, held: bool = False) -> None:
    store = open_store(config.state)
    acquired = store.acquire(spec.stream, owner, 60.0)
    assert isinstance(acquired, Acquired)
    store.write(acquired.lease, fields)
    if not held:
        store.release(acquired.lease)
    store.close()


def save(config: Config, plan: Plan) -> None:
    with plans_of(config) as plans:
        plans.save(plan, None)


def planned(config: Config, planner: Fake) -> Any:
    return with_reloads(config, planner, streams_of(config.source), NOTHING)


def test_a_plan_is_made_once_and_resumed(config: Config) -> None:
    planner = Fake(NEW)
    work = planned(config, planner)
    assert planner.asked == [[("shop", "orders")]]
    assert (work.plans, work.loaded, work.put_off) == ((NEW,), {}, False)
    assert {each.stream for each in work.splits} == {each.stream for each in NEW.specs()}
    again = Fake()
    assert planned(config, again) == work
    assert not again.asked


@pytest.mark.parametrize("is_closed", [False, True], ids=["all read", "closed"])
def test_collections_loaded_since_are_reported(config: Config, is_closed: bool) -> None:
    save(config, replace(NEW, finished=1.0) if is_closed else NEW)
    for spec in [] if is_closed else NEW.specs():
        keep(config, spec, begin(spec, "", "", Position(END, 300)).put, "mine")
    work = planned(config, Fake())
    assert (work.splits, work.loaded) == ((), {"shop.orders": 250})


def test_an_older_plan_is_replaced_and_its_splits_are_forgotten(config: Config) -> None:
    save(config, PLAN)
    spec = PLAN.splits()[0]
    keep(config, spec, begin(spec, "", "", Position(time=200)).put, "mine")
    assert planned(config, Fake(NEW)).plans == (NEW,)
    with plans_of(config) as plans:
        assert spec.stream not in plans.records()


def test_a_dropped_collection_has_nothing_to_load(config: Config) -> None:
    work = planned(config, Fake())
    assert (work.plans, work.loaded, work.put_off) == ((), {"shop.orders": 250}, False)


def test_the_other_policies_plan_nothing(config: Config, tmp_path: Path) -> None:
    for policy in ("warn", "fail"):
        planner = Fake(NEW)
        assert planned(config_with(tmp_path, on_replaced=policy), planner) == NOTHING
        assert not planner.asked


@pytest.mark.parametrize("obstacle", ["another engine", "a filter", "no memory"])
def test_a_load_that_cannot_be_planned_is_postponed(
    config: Config, obstacle: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    match obstacle:
        case "another engine":
            save(config, PLAN)
            spec = PLAN.splits()[0]
            keep(config, spec, begin(spec, "", "", Position(time=200)).put, "elsewhere/1/x", held=True)
        case "a filter":
            save(config, replace(PLAN, selection=Selection(filter='{"a": 1}')))
        case "no memory":
            config = replace(config, memory=replace(config.memory, limit=type(config.memory.limit)(2**28)))
    planner = Fake(NEW)
    work = planned(config, planner)
    assert not planner.asked
    assert (work.plans, work.loaded, work.put_off) == ((), {}, True)
    assert "a replaced collection cannot be loaded now" in caplog.text


def test_readers_of_reloads_fit_beside_the_streams(config: Config) -> None:
    assert [pool_beside(config, 1, splits) for splits in (0, 1, 2, 50)] == [0, 1, 2, 2]
    tight = replace(config, memory=replace(config.memory, limit=type(config.memory.limit)(480 * 2**20)))
    assert pool_beside(tight, 1, 50) == 1
