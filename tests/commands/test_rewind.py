"""What ``state rewind --to`` takes."""

from __future__ import annotations

import bson
import pytest
from bson import json_util

from engine.commands.rewind import target_position
from engine.core.position import Position, make_time, make_token
from engine.errors import ConfigError

TIME = make_time(1_777_618_800, 7)
DATA = f"82{TIME:016X}2B042C0100296E5A1004{'0' * 32}46645F6964002B02000004"
WHOLE = bson.encode({"_data": DATA, "_typeBits": b"\x82"})


def test_a_time_is_where_the_stream_starts() -> None:
    assert target_position("2026-05-01T09:00:00+02:00") == Position(time=make_time(1_777_618_800, 0))


@pytest.mark.parametrize(
    ("text", "token"),
    [
        (DATA, DATA),
        (f" {DATA}\n", DATA),
        (f'{{"_data": "{DATA}"}}', DATA),
        (bson.encode({"_data": DATA}).hex(), DATA),
        (WHOLE.hex(), make_token(DATA, WHOLE)),
        (json_util.dumps(bson.decode(WHOLE)), make_token(DATA, WHOLE)),
    ],
)
def test_a_token_in_each_form_is_skipped_up_to(text: str, token: str) -> None:
    """The server may not find it by its ``_data`` alone, so it is not asked to."""
    assert target_position(text) == Position(token, TIME, exact=False)


def test_after_an_invalidate_the_stream_is_new() -> None:
    assert target_position(DATA.replace("296E5A", "296F5A")).after_invalidate


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("yesterday", "neither an RFC 3339 time nor a resume token"),
        ("2026-01-01T00:00:00", "has no offset"),
        ("1960-01-01T00:00:00Z", "before 1970"),
        ("82zz", "neither"),
        (DATA[:-4], "neither"),
        ('{"_data": 1}', "neither"),
        ("{", "neither"),
        ("05000000", "neither"),
        ("", "neither"),
    ],
)
def test_anything_else_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        target_position(text)
