"""Shared documents that several engines change concurrently, in a real store."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from engine.backfill.plans import Plans
from engine.config import Secret
from engine.config.tree import StateConfig
from engine.core.backfill import Plan, Selection
from engine.errors import TransientError
from engine.state.opening import open_store
from engine.state.seam import StateStore
from engine.state.shared import MAX_ATTEMPTS, amend

PLAN = Plan("1f3a5c7e", "shop", "orders", Selection(), "", "", (), 0, 0, 1.0)
OTHER = replace(PLAN, id="2f3a5c7e")
Open = Callable[[], StateStore]


@pytest.fixture
def open_state(tmp_path: Path) -> Iterator[Open]:
    """Opens the same store any number of times."""
    opened: list[StateStore] = []

    def open_it() -> StateStore:
        opened.append(open_store(StateConfig(url=Secret(f"sqlite:///{tmp_path}/state.db"))))
        return opened[-1]

    yield open_it
    for each in opened:
        each.close()


def test_a_document_is_created_changed_and_left_alone(open_state: Open) -> None:
    store = open_state()
    seen: list[tuple[int, str]] = []

    def change(to: str | None) -> Callable[[int, str], str | None]:
        return lambda version, text: seen.append((version, text)) or to  # type: ignore[func-returns-value]

    assert amend(store, "d", change(None)) == (0, "")
    assert amend(store, "d", change("one")) == (1, "one")
    assert amend(store, "d", change(None)) == (1, "one")
    assert amend(store, "d", change("")) == (2, "")
    assert seen == [(0, ""), (0, ""), (1, "one"), (1, "one")]
    assert open_state().read_shared("d") == (2, "")


def test_the_slower_writer_amends_the_result_of_the_faster(open_state: Open) -> None:
    store, other = open_state(), open_state()

    def change(version: int, text: str) -> str:
        if not version:
            other.write_shared("d", 1, "theirs")
        return f"{text} and ours"

    assert amend(store, "d", change) == (2, "theirs and ours")


def test_a_writer_that_always_loses_gives_up(open_state: Open) -> None:
    store, other = open_state(), open_state()

    def change(version: int, _: str) -> str:
        assert other.write_shared("d", version + 1, f"theirs {version}")
        return "ours"

    with pytest.raises(TransientError, match=f"{MAX_ATTEMPTS} times in a row"):
        amend(store, "d", change)
    assert store.read_shared("d")[0] == MAX_ATTEMPTS


def test_a_change_that_raises_writes_nothing(open_state: Open) -> None:
    def change(_: int, __: str) -> str:
        raise TransientError("change", "not now")

    with pytest.raises(TransientError, match="not now"):
        amend(open_state(), "d", change)
    assert open_state().read_shared("d") == (0, "")


def test_no_change_is_lost_among_many_writers(open_state: Open) -> None:
    def extend(store: StateStore, number: int) -> None:
        for each in range(10):
            amend(store, "d", partial(extended, [number, each]))

    def extended(mine: list[int], _: int, text: str) -> str:
        return json.dumps([*json.loads(text or "[]"), mine])

    open_state().read_shared("d")  # the file is there: of several that create it at once, some must try again
    threads = [threading.Thread(target=extend, args=(open_state(), number)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    version, text = open_state().read_shared("d")
    assert version == 40
    assert sorted(json.loads(text)) == [[number, each] for number in range(4) for each in range(10)]


def test_of_two_plans_that_replace_one_the_first_is_kept(open_state: Open) -> None:
    first, second = Plans(open_state()), Plans(open_state())
    assert first.save(PLAN, None) == PLAN
    assert second.save(OTHER, None) == PLAN
    assert first.save(OTHER, PLAN) == second.save(replace(PLAN, read=7), PLAN) == OTHER
    assert first.read_all() == second.read_all() == [OTHER]


def test_every_plan_is_listed_once(open_state: Open) -> None:
    def save(name: str) -> None:
        plans = Plans(open_state())
        plans.save(replace(PLAN, collection=name), None)
        plans.enlist(f"shop.{name}")

    open_state().read_shared("d")  # the file is there: of several that create it at once, some must try again
    threads = [threading.Thread(target=save, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(plan.collection for plan in Plans(open_state()).read_all()) == list("abcdef")
