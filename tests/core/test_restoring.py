"""Moments as text, and which unfinished restore is continued."""

from __future__ import annotations

import pytest

from engine.core.restoring import EXAMPLES, Doubts, Job, parse_moment, to_continue, told
from engine.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("1970-01-01T00:00:05Z", 5 << 32),
        ("1970-01-01T01:00:05.9+01:00", 5 << 32),
        ("5:7", 5 << 32 | 7),
        ("1795000000:4294967295", 1_795_000_000 << 32 | 0xFFFFFFFF),
    ],
)
def test_a_moment(text: str, time: int) -> None:
    assert parse_moment(text) == time
    assert parse_moment(told(time).partition("(")[2][:-1]) == time


@pytest.mark.parametrize("text", ["", "now", "5:", ":5", "5:4294967296", "2026-05-01T07:00:00", "5"])
def test_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_moment(text)


def test_the_same_restore_is_continued() -> None:
    """Without a time, at the time of the unfinished one."""
    found = Job("s3://lake", "shop.orders", 5, [1, 2])
    assert to_continue(found, Job("s3://lake", "shop.orders", 9), "here", given=False) is found
    assert to_continue(found, Job("s3://lake", "shop.orders", 5), "here", given=True) is found


@pytest.mark.parametrize(
    ("other", "given"),
    [
        (Job("s3://lake", "shop.orders", 9), True),
        (Job("s3://lake", "shop.users", 5), False),
        (Job("s3://other", "shop.orders", 5), False),
    ],
)
def test_another_restore_is_left_alone(other: Job, given: bool) -> None:
    with pytest.raises(ConfigError, match=r"unfinished restore of shop\.orders"):
        to_continue(Job("s3://lake", "shop.orders", 5), other, "here", given=given)


def test_doubts_keep_some_examples() -> None:
    doubts, others = Job("", "", 0).newer, Job("", "", 0).newer
    for number in range(EXAMPLES + 5):
        doubts.add(str(number))
    assert doubts == Doubts(EXAMPLES + 5, [str(number) for number in range(EXAMPLES)])
    assert others == Doubts()
