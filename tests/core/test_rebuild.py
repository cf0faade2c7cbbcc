"""Where a stream stands by the footers of its objects."""

from __future__ import annotations

import pytest

from engine.core.messages import ObjectName, Replaced
from engine.core.position import Position, make_time, position_at
from engine.core.rebuild import Footer, Landed, Rebuilt, decisive, rebuilt
from engine.core.records import read_record
from engine.core.specs import StreamSpec
from engine.errors import ConfigError

SECONDS = 1_700_000_000
BEGUN = SECONDS * 100 + 1


def at(number: int) -> Position:
    """The position after so many events."""
    return position_at(f"82{make_time(SECONDS, number):016X}2B022C0100296E5A1004{'0' * 32}460004")


def landed(
    number: int, *, objects: int | None = 1, of: int = 1, line: int = 0, after: Position | None = None
) -> list[Landed]:
    """``of`` objects of a segment of ten events that has ``objects``; it follows the one before it by default."""
    start = after or (at(10 * number) if number else Position("", 5))
    end = at(10 * number + 10)
    footer = Footer(at(10 * number + 1).token, end, None if objects is None else start, objects, line)
    return [Landed(BEGUN + number, ObjectName(f"{number}-{n}", "shop", "orders"), footer) for n in range(of)]


def stands(*found: list[Landed]) -> Rebuilt:
    every = [each for objects in found for each in objects]
    wanted = decisive(each.seq for each in every)
    return rebuilt(each for each in every if each.seq in wanted)


def replayed(found: Rebuilt) -> list[int]:
    return [intent.seq - BEGUN for intent in found.intents]


def test_whole_segments_are_committed() -> None:
    assert stands(*map(landed, range(9))) == Rebuilt(at(90), BEGUN + 8)


def test_a_part_of_a_segment_and_what_comes_after_it_are_replayed() -> None:
    found = stands(landed(0), landed(1, objects=3, of=2), landed(2))
    assert (found.seq, found.position) == (BEGUN, at(10))
    assert replayed(found) == [1, 2]
    assert [intent.end for intent in found.intents] == [at(20), at(30)]
    assert [each.key for each in found.intents[0].objects] == ["1-0", "1-1"]


def test_attempts_that_differ_are_replayed() -> None:
    first, second = landed(1, objects=2, of=2), landed(1, objects=3, of=2)
    assert replayed(stands(landed(0), [first[0], second[1]])) == [1]


def test_a_missing_segment_is_replayed_as_an_empty_one() -> None:
    found = stands(landed(0), landed(2))
    assert (found.seq, found.position) == (BEGUN, at(10))
    first, second = found.intents
    assert (first.seq, first.end, first.objects) == (BEGUN + 1, at(10), ())
    assert (second.seq, second.end) == (BEGUN + 2, at(30))


def test_the_position_is_where_the_stream_was_idle() -> None:
    assert stands(landed(0), landed(1, objects=2, after=at(15))).position == at(15)


def test_what_is_older_than_what_can_be_in_flight_is_committed() -> None:
    """Those were dropped when the history was lost, or deleted since."""
    found = stands(landed(0, objects=5), *map(landed, (7, 8, 9, 10)))
    assert (found.seq, replayed(found)) == (BEGUN + 10, [])


def test_without_the_number_of_objects_all_that_can_be_in_flight_is_replayed() -> None:
    found = stands(*(landed(number, objects=None) for number in range(9)))
    assert (found.seq, found.position) == (BEGUN + 4, at(50))
    assert replayed(found) == [5, 6, 7, 8]


def test_a_young_stream_starts_where_it_began() -> None:
    assert stands(landed(0, objects=2)).position == Position("", 5)
    older = stands(landed(0, objects=None))
    assert older.position == Position(time=at(1).time)
    missing = stands(landed(1))
    assert (missing.position, missing.seq) == (Position(time=make_time(SECONDS, 0)), BEGUN - 1)
    assert replayed(missing) == [0, 1]


def test_old_objects_may_have_been_deleted() -> None:
    found = stands(landed(40), landed(41, objects=2))
    assert (found.seq, replayed(found)) == (BEGUN + 40, [41])


def test_segments_before_a_rewind_are_committed() -> None:
    found = stands(landed(0, objects=2), landed(1, line=1, objects=2, after=at(3)))
    assert (found.seq, found.position, found.line, replayed(found)) == (BEGUN, at(3), 1, [1])


def test_a_missing_segment_after_a_rewind_is_skipped_and_told() -> None:
    found = stands(landed(0), landed(2, line=1, objects=2, after=at(7)))
    assert (found.skipped, found.seq, found.position) == ((BEGUN + 1,), BEGUN + 1, at(7))
    assert replayed(found) == [2]


def test_dead_letters_count_as_objects() -> None:
    letter = Landed(BEGUN + 1, ObjectName("letter", "shop", "orders", dead_letter=True))
    assert replayed(stands(landed(0), [*landed(1, objects=2), letter])) == []
    alone = stands(landed(0), [letter], landed(2))
    assert [intent.end for intent in alone.intents] == [at(20), at(30)]
    assert alone.intents[0].objects == (letter.name,)
    with pytest.raises(ConfigError, match=r"only the dead letters .* letter. Delete them"):
        stands(landed(0), [letter])


def test_the_record_says_all_of_it() -> None:
    footer = Footer(at(31).token, at(40), at(30), 1, 2, (Replaced("shop.a", 7),))
    found = rebuilt([*landed(3, line=2), Landed(BEGUN + 4, ObjectName("4", "shop", "orders"), footer)])
    assert found.replaced == (Replaced("shop.a", 7),)
    found = rebuilt([*landed(3, line=2), *landed(4, objects=2, line=2)])
    record = read_record(found.fields(StreamSpec("shop.orders", "collection"), "lake", {"schema:shop.orders": 3}))
    assert (record.position, record.seq, record.line, record.sink) == (at(40), BEGUN + 3, 2, "lake")
    assert (record.schemas, record.intents) == ({"schema:shop.orders": 3}, found.intents)


def test_a_position_at_an_invalidate_is_after_it() -> None:
    token = at(5).token
    assert not position_at(token).after_invalidate
    assert position_at(token.replace("296E5A", "296F5A")).after_invalidate
