"""Estimates of what a rate takes, held against the figures that they are made from."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from engine.core.sizing import LANDED_SHARE, MEASURED, at_size, needed_for
from tests.test_documents import ROOT


def table(name: str) -> list[list[str]]:
    """The rows of a table of the benchmarks, without the heads."""
    text = (ROOT / "bench" / "README.md").read_text()
    found = re.search(rf"<!-- {name}: begin -->(.*?)<!-- {name}: end -->", text, re.DOTALL)
    assert found
    rows = [line.strip("|").split("|") for line in found[1].splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`").replace(",", "") for cell in row] for row in rows]


def test_no_benchmark_costs_more_than_estimated() -> None:
    sizes = {row[0]: int(row[1]) for row in table("decode")}
    seen = 0
    for row in table("stream"):
        if (size := sizes.get(row[0])) is None or row[0] == "updates":
            continue  # updates with a lookup are an assumption of their own
        seen += 1
        estimated = at_size(size)
        assert estimated.cpu_us >= float(row[6].split()[0]), row
        assert estimated.events_per_s <= float(row[4]), row
        assert int(row[9]) / size <= LANDED_SHARE, row
    assert seen == 6


def test_updates_with_a_lookup_take_at_most_twice_as_much() -> None:
    (updates,) = (row for row in table("stream") if row[0] == "updates")
    orders = at_size(324)  # its documents
    assert float(updates[6].split()[0]) <= 2 * orders.cpu_us
    assert float(updates[4]) >= orders.events_per_s / 2.5


def test_larger_documents_cost_more_and_everything_grows_with_the_rate() -> None:
    sizes = [1, 45, 100, 324, 1000, 1719, 20_000, 93_597, 10**6]
    for small, large in pairwise(map(at_size, sizes)):
        assert small.cpu_us <= large.cpu_us
        assert small.events_per_s >= large.events_per_s
    for each in MEASURED:
        assert at_size(each.document_bytes).cpu_us == pytest.approx(each.cpu_us)
    for one, other in pairwise(needed_for(rate, 1024, 2) for rate in (1, 1e3, 5e4, 1e6)):
        assert (one.cores, one.streams, one.writers, one.engines) <= (
            other.cores,
            other.streams,
            other.writers,
            other.engines,
        )


@pytest.mark.parametrize(("rate", "cores", "engines"), [(10, 0.5, 1), (50_000, 2, 1), (200_000, 2, 2)])
def test_engines_follow_from_the_cores_of_each(rate: float, cores: float, engines: int) -> None:
    assert needed_for(rate, 324, cores).engines == engines
