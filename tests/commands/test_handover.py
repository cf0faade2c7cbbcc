"""What a handover records in a real state store. No stream is run here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.commands.handover import abandoned, hand_over
from engine.config import Config, load
from engine.config.streams import streams_of
from engine.core import records
from engine.core.position import Position
from engine.core.records import StreamRecord, read_record
from engine.core.specs import StreamSpec
from engine.errors import ConfigError
from engine.owner import this_owner
from engine.state.opening import open_store
from engine.state.seam import Acquired
from tests.state.test_leases import dead_owner

BEFORE = StreamSpec("shop.orders", "collection", "shop", ("orders",))
TIME = 7 << 32


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A collection split in two that the state store knows as one stream."""
    path = tmp_path / "config.toml"
    source = 'uri = "mongodb://nowhere/"\ndatabase = "shop"\ncollections = ["orders"]\nsplit = {orders = 2}'
    sections = {"source": source, "sink": f'url = "file://{tmp_path}/lake"'}
    sections["state"] = f'url = "sqlite:///{tmp_path}/state.db"'
    path.write_text("".join(f"[{name}]\n{text}\n" for name, text in sections.items()))
    made = load(path)
    keep(made, BEFORE.stream, records.begin(BEFORE, "", "rs0", Position(time=TIME)).put | {"seq": "4"})
    return made


def keep(config: Config, stream: str, fields: dict[str, str], *, holder: str = "") -> None:
    store = open_store(config.state)
    found = store.acquire(stream, holder or this_owner(), 600.0)
    assert isinstance(found, Acquired)
    store.write(found.lease, fields)
    if not holder:
        store.release(found.lease)
    store.close()


def stands(config: Config) -> tuple[dict[str, StreamRecord], tuple[int, str]]:
    """The records of all streams, and the handover document."""
    store = open_store(config.state)
    found = {name: read_record(fields) for name, (fields, _) in store.read_all().items()}
    document = store.read_shared("handover")
    store.close()
    return found, document


def test_streams_are_handed_over_once(config: Config) -> None:
    ended: list[Sequence[StreamSpec]] = []
    desired = streams_of(config.source)

    def run_to_end(specs: Sequence[StreamSpec]) -> int:
        ended.append(specs)
        return TIME + 5

    assert hand_over(config, desired, run_to_end)
    assert ended == [(BEFORE,)]
    found, document = stands(config)
    assert document == (2, "")
    assert found.keys() == {"shop.orders", "shop.orders~0of2", "shop.orders~1of2"}
    assert found["shop.orders"].closed
    assert {found[spec.stream].position for spec in desired} == {Position(time=TIME + 6)}
    assert {found[spec.stream].deployment for spec in desired} == {"rs0"}
    assert len({record.handover for record in found.values()}) == 1
    assert hand_over(config, desired, lambda _: pytest.fail("nothing is left to hand over"))
    assert stands(config) == (found, document)


def test_an_interrupted_handover_hands_nothing_over(config: Config) -> None:
    before = stands(config)
    assert not hand_over(config, streams_of(config.source), lambda _: None)
    assert stands(config) == before


@pytest.mark.parametrize("is_over", [False, True])
def test_two_engines_do_not_hand_over_concurrently(config: Config, is_over: bool) -> None:
    """The other engine starts while we run the former streams to their end, and may have finished by then."""

    def run_to_end(_: Sequence[StreamSpec]) -> int:
        store = open_store(config.state)
        store.write_shared("handover", 1, "theirs")
        if is_over:
            store.write_shared("handover", 2, "")
        store.close()
        return TIME + 5

    with pytest.raises(ConfigError, match="another engine has started a handover"):
        hand_over(config, streams_of(config.source), run_to_end)
    found, document = stands(config)
    assert document == ((2, "") if is_over else (1, "theirs"))
    assert found.keys() == {"shop.orders"}
    assert not found["shop.orders"].closed


def test_leases_of_dead_engines_do_not_block_a_handover(config: Config) -> None:
    keep(config, BEFORE.stream, {"rows": "9"}, holder=dead_owner())
    assert hand_over(config, streams_of(config.source), lambda _: TIME + 5)
    assert stands(config)[0]["shop.orders"].closed


def test_leases_of_live_engines_block_a_handover(config: Config) -> None:
    keep(config, BEFORE.stream, {"rows": "9"}, holder="elsewhere/1/2/3")
    with pytest.raises(ConfigError, match=r"elsewhere/1/2/3 runs the stream shop\.orders"):
        hand_over(config, streams_of(config.source), lambda _: TIME + 5)
    found, (version, text) = stands(config)
    assert not found["shop.orders"].closed
    assert version == 1
    assert text  # for the next engine to carry out


def test_a_handover_is_void_once_its_streams_have_moved_on(config: Config) -> None:
    keep(config, BEFORE.stream, {"rows": "9"}, holder="elsewhere/1/2/3")
    with pytest.raises(ConfigError):
        hand_over(config, streams_of(config.source), lambda _: TIME + 5)
    store = open_store(config.state)
    found = store.acquire(BEFORE.stream, "elsewhere/1/2/3", 600.0)
    assert isinstance(found, Acquired)
    store.write(found.lease, {"seq": "5"})
    store.release(found.lease)
    store.close()
    assert not hand_over(config, streams_of(config.source), lambda _: None)
    records_, document = stands(config)
    assert document == (2, "")
    assert not records_["shop.orders"].closed


def test_a_stream_that_nothing_covers_any_more_starts_over(config: Config) -> None:
    """The parts that took over from it were closed in turn, by streams of another configuration."""
    parts = streams_of(config.source)
    assert abandoned(config, [BEFORE]) == {}, "it was never closed"
    assert hand_over(config, parts, lambda _: TIME + 5)
    assert abandoned(config, [BEFORE]) == {}, "its parts cover it, and would hand over"
    for each in parts:
        keep(config, each.stream, records.close("2-later").put)
    found, _ = stands(config)
    assert abandoned(config, [BEFORE]) == {"shop.orders": found["shop.orders"].handover}
