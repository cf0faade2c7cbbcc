"""Sizes, durations and secrets."""

from __future__ import annotations

import pytest

from engine.config import Config, Duration, Secret, Size, format_duration, format_size


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (2**20, "1MiB"), (3 * 2**29, "1536MiB"), (1500, "1.5KiB"), (2**30, "1GiB")]
)
def test_sizes(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(14 * 86400, "14d"), (90, "90s"), (0.25, "250ms"), (1.5, "1.5s")])
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_quantities_are_plain_numbers_and_strings() -> None:
    assert isinstance(Size(1), int)
    assert isinstance(Duration(1), float)
    assert repr(Secret("x")) == "'***'"
    assert Config.__struct_fields__[0] == "source"
