"""Which names a pattern stands for, and whether selections have a name in common."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.patterns import escape, have_common, matches, name_of, parse


@pytest.mark.parametrize(
    ("pattern", "names", "others"),
    [
        ("events_*", ["events_", "events_a", "events_a.b", "events_\n"], ["events", "Events_a", "xevents_a"]),
        ("?", ["a", ".", "*", "\n", "日", "\U0001f600"], ["", "ab"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a+(b)|^c$[d]{2}#- ~", ["a+(b)|^c$[d]{2}#- ~"], ["aab"]),
        (r"a\*b", ["a*b"], ["ab", "axb", r"a\*b"]),
        (r"a\?\\*", ["a?\\", "a?\\x"], ["ab\\", "a?"]),
        (r"a\b\d", [r"a\b\d"], ["abd"]),
        ("a\\", ["a\\"], ["a"]),
        ("*", ["", "a", "日本語", "a\nb\r"], []),
        ("*a*b*", ["ab", "xaxbx"], ["ba"]),
    ],
)
def test_names_of_patterns(pattern: str, names: list[str], others: list[str]) -> None:
    assert [each for each in names if not matches(pattern, each)] == []
    assert [each for each in others if matches(pattern, each)] == []


def test_a_pattern_without_wildcards_is_a_name() -> None:
    assert [name_of(each) for each in ("orders", r"a\*b", r"a\\*", "a?")] == ["orders", "a*b", None, None]


@given(st.text("ab*?\\.\n", max_size=6))
def test_an_escaped_name_is_the_pattern_of_that_name_alone(name: str) -> None:
    assert name_of(escape(name)) == name
    assert matches(escape(name), name)


GLOBS = st.lists(st.text("ab*?", min_size=1, max_size=4), min_size=1, max_size=2)
# All texts that two letters of the patterns and one other character make up: longer ones decide nothing more here.
TEXTS = ["".join(each) for size in range(6) for each in itertools.product("abx", repeat=size)]


def selects(globs: list[str], text: str) -> bool:
    """By a translation into steps of its own, character by character."""

    def rest(glob: str, left: str) -> bool:
        if not glob:
            return not left
        if glob[0] == "*":
            return any(rest(glob[1:], left[n:]) for n in range(len(left) + 1))
        return bool(left) and glob[0] in ("?", left[0]) and rest(glob[1:], left[1:])

    return any(rest(glob, text) for glob in globs)


@given(GLOBS, GLOBS, GLOBS | st.just([]))
def test_a_common_name_is_found_if_there_is_one(one: list[str], other: list[str], excluded: list[str]) -> None:
    common = [each for each in TEXTS if selects(one, each) and selects(other, each)]
    expected = [each for each in common if not selects(excluded, each)]
    found = have_common([list(map(parse, one)), list(map(parse, other))], list(map(parse, excluded)))
    if expected:
        assert found
    elif found:  # only a longer text
        assert any("?" in each or len(each) > 3 for each in (*one, *other, *excluded))


def test_the_comparison_is_bounded() -> None:
    """More states than are looked at: a name in common is then assumed."""
    hard = [parse(f"*{char}{'?' * 14}") for char in "abcdef"]
    assert have_common([hard, [parse("*")]], [parse("*"), *hard])
