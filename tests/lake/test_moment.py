"""Which moments can be restored, from records of the state store."""

from __future__ import annotations

import pytest

from engine.core.backfill import END, Plan, Selection
from engine.core.position import Position, make_time
from engine.core.records import StreamRecord
from engine.core.restoring import EVERYTHING
from engine.core.specs import StreamSpec
from engine.errors import ConfigError, NoStateError
from engine.lake.moment import Moments

Records = dict[str, StreamRecord]


def stream(
    time: int | None, *, part: int = 0, parts: int = 1, closed: bool = False, replaced: int = 0
) -> StreamRecord:
    spec = StreamSpec(f"shop.orders~{part}", "collection", "shop", ("orders",), part, parts)
    position = None if time is None else Position("82", time)
    times = {"shop.orders": replaced} if replaced else {}
    return StreamRecord(spec=spec, position=position, closed=closed, replaced=times)


def plan(*, begun: int, finished: float | None = None) -> Plan:
    return Plan("p", "shop", "orders", Selection(), None, None, (), 0, 0, 0.0, begun=begun, finished=finished)


def moments(records: Records, made: Plan | None = None) -> Moments:
    return Moments(records, made, "shop", "orders")


def test_the_newest_is_before_where_every_stream_stands() -> None:
    """One that stands at an event may have cut a transaction at that time."""
    found = moments(
        {"a": stream(90, part=0, parts=2), "b": stream(70, part=1, parts=2), "c": stream(5, closed=True)}
    )
    assert found.choose(None) == 69
    assert found.choose(69) == 69
    assert found.choose(3) == 3
    with pytest.raises(ConfigError, match="b has committed up to") as caught:
        found.choose(70)
    assert "a has" not in str(caught.value)


def test_a_stream_that_was_taken_over_counts_if_there_is_no_other() -> None:
    assert moments({"a": stream(50, closed=True)}).choose(None) == 49


@pytest.mark.parametrize(
    "records",
    [
        {"a": stream(None)},
        {"a": stream(50, part=0, parts=2)},
        {"a": stream(50), "b": stream(None, part=1, parts=2)},
    ],
)
def test_a_stream_without_a_position_has_no_moment(records: Records) -> None:
    with pytest.raises(ConfigError, match="has not committed anything"):
        moments(records).choose(None)


def test_a_lake_of_backfills_alone_has_one_moment() -> None:
    assert moments({}, plan(begun=5, finished=1.0)).choose(None) == EVERYTHING
    with pytest.raises(NoStateError):
        moments({}).choose(None)


def test_an_unfinished_backfill_allows_earlier_moments() -> None:
    """Finished is one whose splits are all committed, whether or not the run that read them has ended."""
    made = plan(begun=50)
    records = {"a": stream(90)}
    assert moments(records, made).choose(49) == 49
    with pytest.raises(ConfigError, match="its backfill is not finished"):
        moments(records, made).choose(None)
    (split,) = made.splits()
    records[split.stream] = StreamRecord(spec=split, position=Position(END, 50), updated=100.0)
    found = moments(records, made)
    assert found.choose(None) == 89
    assert not found.has_read_before(make_time(160, 0))
    assert found.has_read_before(make_time(161, 0))


def test_a_replaced_collection_has_to_be_loaded() -> None:
    records = {"a": stream(90, replaced=60)}
    assert moments(records).choose(59) == 59
    for made in (None, plan(begun=50, finished=1.0)):
        with pytest.raises(ConfigError, match="a rename replaced"):
            moments(records, made).choose(None)
    assert moments(records, plan(begun=60, finished=1.0)).choose(None) == 89


def test_whether_a_backfill_has_loaded_everything() -> None:
    assert moments({}, plan(begun=5)).is_loaded()
    assert not moments({}).is_loaded()
