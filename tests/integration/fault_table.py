"""Tries every fault of ``fault_rows.py`` and writes what came of it into configs/OPERATIONS.md.

``python -m tests.integration.fault_table`` takes about half an hour; with words, only the rows are tried whose
names contain one of them, and nothing is written. ``test_fault_table`` tries some of them, and with EXPLORE=1 all.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from pymongo.errors import PyMongoError

from bench.local.servers import LocalServerError
from engine.commands.reference import OPERATIONS, with_table
from tests.clocks import SteppedClock
from tests.integration import harness
from tests.integration.fault_rows import FAULTS, Fault
from tests.integration.rig import Outcome, Rig, Servers, meanings, stopped

HERE = Path(__file__).parent
KINDS = tuple(dict.fromkeys(each.rig for each in FAULTS))
TEXT_MAX = 120
OWN_TEST = "test_fault_table.py::test_a_fault"
HEADS = ("of", "fault", "the engine", "events land again after", "lost", "doubled", "test")


@contextmanager
def rig(servers: Servers, directory: Path, kind: str) -> Iterator[Rig]:
    """A rig of this kind."""
    place = directory / kind
    place.mkdir()
    with closing(Rig(servers, place, kind, SteppedClock(place / "clock") if kind == "clock" else None)) as made:
        yield made
        made.end()


def check(fault: Fault, made: Rig) -> Outcome:
    """Try it; everything must be as the declaration says."""
    assert fault.bring is not None
    outcome = made.tried(fault.bring(made), fault.lasts_s, stops=fault.stops)
    assert (outcome.lost, outcome.doubled) == (0, 0), outcome
    assert fault.says in outcome.log, outcome.log[-4000:]
    assert '"stream stopped"' not in outcome.log or fault.stops, outcome.log[-4000:]
    return outcome


class _Watch:
    """A plugin of pytest: the tests that passed, or failed in some case, and the logs of each one's engines."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.failed: list[str] = []
        self.logs: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how it went; a case that was skipped says nothing."""
        if report.failed:
            self.failed.append(_name(report.nodeid))
        elif report.passed and report.when == "call":
            self.passed.add(_name(report.nodeid))

    def pytest_runtest_setup(self) -> None:
        """Forget the engines of the previous test."""
        harness.started.clear()

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        """Keep the logs of this one's."""
        logs = "".join(each.log() for each in harness.started)
        self.logs[_name(item.nodeid)] = self.logs.get(_name(item.nodeid), "") + logs


def _name(node: str) -> str:
    return node.rpartition("/")[2].partition("[")[0]


def shown(fault: Fault) -> str:
    """The test of a row."""
    return f"`{fault.test or OWN_TEST}`"


def elsewhere(faults: Sequence[Fault]) -> dict[str, list[str]]:
    """The cells of rows that other tests show, as far as these pass; they need not explore for that."""
    os.environ.pop("EXPLORE", None)
    watch = _Watch()
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    pytest.main([*options, *(str(HERE / each.test) for each in faults)], plugins=[watch])
    print(f"failed elsewhere: {watch.failed}", flush=True)
    passed = [each for each in faults if each.test in watch.passed.difference(watch.failed)]
    return {key(each): _cells(each, watch.logs[each.test]) for each in passed}


def _cells(fault: Fault, log: str) -> list[str]:
    """What comes after a stop is not read by these tests, and so not compared."""
    return [settled(stopped(log)), "", "", "0"] if fault.stops else [meanings(log), "", "0", "0"]


def cells(outcome: Outcome) -> list[str]:
    """The cells of a row that was tried here."""
    return [settled(outcome.did), f"{outcome.again_s:.0f} s", str(outcome.lost), str(outcome.doubled)]


def settled(text: str) -> str:
    """A text without names, keys and numbers of one run, shortened."""
    text = re.sub(r"\S*/\S*?(?=:?(?:\s|$))|\bt\d+\.\w+", "…", text)
    text = re.sub(r"\bfaults\d\S*?(?=[:\s]|$)", "…", text).replace("|", "\\|")
    text = re.sub(r"\b(?:[0-9a-f]{16,}|[0-9A-F]{16,})\b", "…", text)
    return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX].rpartition(' ')[0]} …"


def measured(faults: Sequence[Fault]) -> dict[str, list[str]]:
    """The cells of these rows, by name of the row; a row that fails is left out, and what failed is printed."""
    found = {key(fault): row for fault, row in tried(faults)}
    others = [each for each in faults if each.bring is None]
    return found | (elsewhere(others) if others else {})


def tried(faults: Sequence[Fault]) -> Iterator[tuple[Fault, list[str]]]:
    """Try rows one after another, those of a rig together; one that has failed may have broken its rig."""
    left = sorted((each for each in faults if each.bring is not None), key=lambda each: KINDS.index(each.rig))
    with Servers() as servers, tempfile.TemporaryDirectory() as directory:
        while left:
            kind = left[0].rig
            with (
                suppress(_FailedError),
                tempfile.TemporaryDirectory(dir=directory) as place,
                rig(servers, Path(place), kind) as made,
            ):
                while left and left[0].rig == kind:
                    yield (fault := left.pop(0)), _row(fault, made)


def _row(fault: Fault, made: Rig) -> list[str]:
    try:
        row = cells(check(fault, made))
    except (AssertionError, LocalServerError, PyMongoError) as error:
        print(f"{key(fault)}: FAILED: {error}", flush=True)
        raise _FailedError from error
    print(key(fault), *row, sep=" | ", flush=True)
    return row


class _FailedError(Exception):
    """A row has failed, and was reported."""


def key(fault: Fault) -> str:
    """What a row is found by."""
    return f"{fault.of}: {fault.name}"


def table(found: dict[str, list[str]]) -> str:
    """The rows as Markdown."""
    lines = [f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS)]
    lines += [
        f"| {' | '.join([each.of, each.name, *found[key(each)], shown(each)])} |"
        for each in FAULTS
        if key(each) in found
    ]
    return "\n".join(lines) + "\n"


def read_table(document: str) -> list[list[str]]:
    """The rows of the table in a document, cell by cell."""
    part = document.partition("<!-- faults: begin -->")[2].partition("<!-- faults: end -->")[0]
    return [[each.strip() for each in line.strip("|").split(" | ")] for line in part.strip().splitlines()[2:]]


def main(*words: str) -> None:
    """Try everything, and write the table."""
    os.environ["EXPLORE"] = "1"
    chosen = [each for each in FAULTS if not words or any(word in key(each) for word in words)]
    found = measured(chosen)
    if words:
        print(table(found))
    elif len(found) < len(FAULTS):
        sys.exit("some rows have failed; nothing is written")
    else:
        OPERATIONS.write_text(with_table(OPERATIONS.read_text(), "faults", table(found)))


if __name__ == "__main__":
    main(*sys.argv[1:])
