"""An exported state: what it is made of, and that a damaged one is noticed before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import Secret, SinkConfig
from engine.config.tree import StateConfig
from engine.core.backfill import encode_index
from engine.core.generations import Generation, Generations, encode_generations
from engine.core.position import Position
from engine.core.records import begin
from engine.core.specs import StreamSpec
from engine.errors import ConfigError
from engine.state.dump import Head, State, lines_of, parse, put_state, read_state, refuse_if_held
from engine.state.sqlite import SqliteStore
from tests.state.test_leases import dead_owner

SINK = SinkConfig(url="s3://lake/there")
RECORD = begin(StreamSpec("shop.a", "collection", "shop", ("a",)), SINK.identity, "rs0", Position(time=5)).put
STATE = State(
    Head(1, "0.3.0", "headrace", "2026-05-01T07:00:00Z", SINK.identity),
    {"shop.a": RECORD, "shop.b": {}},
    {"backfills": (3, encode_index(["shop.a"])), "handover": (2, "")},
)


def store(directory: Path) -> SqliteStore:
    return SqliteStore(StateConfig(url=Secret(f"sqlite:///{directory}/state.db")))


def test_what_is_written_is_read() -> None:
    assert parse(lines_of(STATE)) == STATE


def test_the_generations_of_a_fleet_are_part_of_it() -> None:
    text = encode_generations(Generations((Generation(1, "selection", ()),)))
    state = State(STATE.head, {}, {"fleet": (4, text)})
    assert parse(lines_of(state)) == state
    with pytest.raises(ConfigError, match="line 2 is damaged"):
        parse(lines_of(State(STATE.head, {}, {"fleet": (4, text[:-2])})))


@pytest.mark.parametrize("gone", range(6))
def test_a_missing_line_is_noticed(gone: int) -> None:
    lines = list(lines_of(STATE))
    assert len(lines) == 6
    with pytest.raises(ConfigError, match=r"its end is missing|is damaged"):
        parse([*lines[:gone], *lines[gone + 1 :]])


@pytest.mark.parametrize(
    ("line", "by", "words"),
    [
        (0, '{"kind":"head","format":9,"more":1}', "written by a later version"),
        (1, "{", "line 2 is damaged"),
        (1, '{"kind":"stream","name":"shop.a","fields":{"seq":"x"}}', "line 2 is damaged"),
        (1, '{"kind":"stream","name":"shop.a","fields":{"format":"99"}}', "written by a later version"),
        (3, '{"kind":"document","name":"backfills","version":3,"text":"[1"}', "line 4 is damaged"),
        (3, '{"kind":"document","name":"what","version":3,"text":"x"}', "line 4 is damaged: it is not known"),
        (5, '{"kind":"end","streams":2,"documents":3}', "its end is missing"),
    ],
)
def test_a_damaged_line_is_told(line: int, by: str, words: str) -> None:
    lines = list(lines_of(STATE))
    lines[line] = by + "\n"
    with pytest.raises(ConfigError, match=words):
        parse(lines)


def test_an_empty_file_is_told() -> None:
    with pytest.raises(ConfigError, match="it is empty"):
        parse([])


def test_a_moved_lake_keeps_its_layout() -> None:
    moved = STATE.moved_to(SinkConfig(url="s3://elsewhere", partition_by="day"))
    assert moved.records["shop.a"]["sink"] == SINK.identity.replace("s3://lake/there", "s3://elsewhere")
    assert moved.records["shop.b"] == {}


def test_a_state_put_in_place_is_all_there_is(tmp_path: Path) -> None:
    to = store(tmp_path)
    put_state(
        to, "import", State(STATE.head, {"shop.a": {"x": "1"}, "shop.z": {"x": "1"}}, {"gone": (1, "x")}), 5.0
    )
    put_state(to, "import", STATE, 5.0)
    read = read_state(to, "headrace", SINK.identity, "0.3.0")
    assert read.documents == STATE.documents
    assert read.records == {"shop.a": RECORD}
    assert set(to.read_all()) == {"shop.a", "shop.b"}
    to.close()


def test_a_held_stream_is_waited_for_then_refused(tmp_path: Path) -> None:
    to = store(tmp_path)
    to.acquire("shop.a", "elsewhere/boot/1/2", 0.2)
    refuse_if_held(to, "import", 5.0)  # it expires meanwhile
    to.acquire("shop.a", "elsewhere/boot/1/2", 60)
    refuse_if_held(to, "import", 0.1, ["shop.b"])
    with pytest.raises(ConfigError, match=r"elsewhere:1 holds the stream shop.a. Stop every engine first"):
        refuse_if_held(to, "import", 0.1)
    to.close()


def test_an_engine_that_holds_nothing_is_refused_too(tmp_path: Path) -> None:
    to = store(tmp_path)
    to.announce("elsewhere/boot/1/2", "{}", 0.2)
    refuse_if_held(to, "import", 5.0)  # it is gone meanwhile
    to.announce(dead_owner(), "{}", 60)
    to.announce("elsewhere/boot/1/2", "{}", 60)
    refuse_if_held(to, "rewind", 0.1, ["shop.a"])
    with pytest.raises(ConfigError, match=r"elsewhere:1 is running. Stop every engine first"):
        refuse_if_held(to, "import", 0.1)
    to.close()
