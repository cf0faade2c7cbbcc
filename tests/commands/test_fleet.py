"""How engines join a fleet, who hands over, and what an engine leaves behind; in a real state store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from engine.commands import fleet
from engine.commands.fleet import join, lead, leave
from engine.commands.handover import hand_over
from engine.config import Config, load
from engine.config.streams import streams_of
from engine.core import records
from engine.core.generations import Generation, claimed, decode_generations
from engine.core.position import Position
from engine.core.sharing import Member
from engine.errors import ConfigError
from engine.owner import this_owner
from engine.state.opening import open_store
from engine.state.seam import Acquired, StateStore
from tests.state.test_leases import dead_owner

OTHER = "elsewhere/boot.1/7/9"


def config_of(tmp_path: Path, collections: str = '["orders"]', generation: int = 0) -> Config:
    path = tmp_path / "config.toml"
    source = f'uri = "mongodb://nowhere/"\ndatabase = "shop"\ncollections = {collections}'
    sections = {"source": source, "sink": f'url = "file://{tmp_path}/lake"'}
    sections["state"] = f'url = "sqlite:///{tmp_path}/state.db"'
    sections["fleet"] = f"generation = {generation}"
    sections["lease"] = 'ttl = "1s"'
    path.write_text("".join(f"[{name}]\n{text}\n" for name, text in sections.items()))
    return load(path)


def joined(config: Config) -> Generation:
    return join(config, streams_of(config.source))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    opened = open_store(config_of(tmp_path).state)
    yield opened
    opened.close()


def announce(store: StateStore, owner: str, generation: Generation, ttl_s: float = 600.0) -> None:
    member = Member(selection=generation.selection, generation=generation.number)
    store.announce(owner, msgspec.json.encode(member).decode(), ttl_s)


def test_the_first_engine_introduces_the_generation(tmp_path: Path, store: StateStore) -> None:
    config = config_of(tmp_path)
    first = joined(config)
    assert (first.number, first.by) == (1, this_owner())
    assert joined(config) == first
    newer = joined(config_of(tmp_path, '["orders", "items"]'))
    assert newer.number == 2
    assert decode_generations(store.read_shared("fleet")[1]).current == (newer,)


def test_a_replaced_configuration_waits_for_dead_engines_only(tmp_path: Path, store: StateStore) -> None:
    config, newer = config_of(tmp_path), config_of(tmp_path, '["items", "orders"]')
    former = joined(config)
    generation = joined(newer)
    announce(store, dead_owner(), generation)  # it ended without a word, on this machine
    assert joined(config).number == 3
    generation = joined(newer)
    announce(store, OTHER, generation, 1.0)  # on another machine: it is announced for a while
    assert joined(config).number == 5
    generation = joined(newer)
    announce(store, OTHER, generation)
    with pytest.raises(ConfigError, match="engines with that one are running"):
        joined(config)
    with pytest.raises(ConfigError, match="this is generation 6, and generation 6"):
        joined(config_of(tmp_path, generation=6))
    assert joined(config_of(tmp_path, generation=9)).selection == former.selection


def test_one_engine_leads_until_it_is_gone(tmp_path: Path, store: StateStore) -> None:
    config = config_of(tmp_path)
    generation = joined(config)
    assert lead(store, config, generation) is None
    fleet._amend(store, lambda found: claimed(found, generation.selection, OTHER, []))
    announce(store, OTHER, generation)
    assert lead(store, config, generation) == OTHER
    store.announce(OTHER, "", 600.0)
    assert lead(store, config, generation) is None
    assert decode_generations(store.read_shared("fleet")[1]).current[0].by == this_owner()


def test_an_engine_waits_while_another_hands_over(
    tmp_path: Path, store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = streams_of(config_of(tmp_path).source)
    config = config_of(tmp_path, '["orders", "items"]\nmax_readers = 1')
    found = store.acquire(before.stream, "x", 1.0)
    assert isinstance(found, Acquired)
    store.write(found.lease, records.begin(before, "", "rs0", Position(time=7 << 32)).put | {"seq": "4"})
    store.release(found.lease)
    desired = streams_of(config.source)
    generation = join(config, desired)
    fleet._amend(store, lambda found: claimed(found, generation.selection, OTHER, []))
    announce(store, OTHER, generation)
    waited: list[float] = []

    def slept(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            store.announce(OTHER, "", 600.0)  # it dies

    monkeypatch.setattr("engine.commands.handover.time", SimpleNamespace(sleep=slept))
    assert hand_over(config, desired, lambda _: (7 << 32) + 5, generation)
    assert len(waited) == 2
    assert {name for name, (fields, _) in store.read_all().items() if fields.get("closed") != "1"} == {
        each.stream for each in desired
    }


def test_leases_that_were_kept_are_released_at_the_end(tmp_path: Path, store: StateStore) -> None:
    config = config_of(tmp_path)
    announce(store, this_owner(), joined(config))
    assert isinstance(store.acquire("shop.orders", this_owner(), 600.0), Acquired)
    assert isinstance(store.acquire("shop.other", OTHER, 600.0), Acquired)
    leave(config)
    assert {stream: holder for stream, (_, holder) in store.read_all().items()} == {
        "shop.orders": "",
        "shop.other": OTHER,
    }
    assert store.announced() == {}
