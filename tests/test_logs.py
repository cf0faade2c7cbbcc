"""Log lines without secrets."""

from __future__ import annotations

import itertools
import json
import logging
from typing import Any

import pytest

from engine.config import Config, Secret, SinkConfig, SourceConfig
from engine.errors import Redactor
from engine.logs import JsonFormatter, LineFormatter, Repeats, configure_logging, fields_of, log_with

SECRET = 'a"b\\c d\u00e9'


@pytest.mark.parametrize("formatter", [JsonFormatter, LineFormatter])
@pytest.mark.parametrize(
    "value", [SECRET, [SECRET], {"x": (SECRET,)}, {SECRET: 1}, ValueError(SECRET), repr(SECRET), [repr(SECRET)]]
)
def test_a_secret_is_found_however_deep_and_however_escaped(formatter: Any, value: object) -> None:
    options = {} if formatter is JsonFormatter else {"colors": False}
    record = logging.LogRecord("headrace", logging.INFO, "", 0, "phrase", (), None)
    record.fields = {"found": value}
    line = formatter(Redactor([SECRET]), "reader", **options).format(record)
    assert "***" in line
    assert not any(each in line for each in (SECRET, "b\\c", "c d", 'a\\"b'))


class Clock:
    """A clock to be set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(level: int, phrase: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("headrace", level, "", 0, phrase, (), None)
    made.fields = fields
    return made


def test_repetitions_are_logged_at_growing_intervals() -> None:
    clock = Clock()
    repeats = Repeats(clock)
    logged: list[tuple[int, int]] = []
    for second in range(2000):
        clock.now = 1000.0 + second
        one = record(logging.WARNING, "MongoDB is away", stream="a", attempt=second)
        if repeats.filter(one):
            logged.append((second, fields_of(one).get("left_out", 0)))
    assert [second for second, _ in logged] == [0, 1, 2, 3, 4, 5, 7, 11, 19, 35, 67, 131, 259, 515, 1027, 1627]
    assert all(here - before - 1 == left for (before, _), (here, left) in itertools.pairwise(logged))


def test_what_concerns_another_stream_is_no_repetition() -> None:
    repeats = Repeats(Clock())
    lines = [record(logging.ERROR, "failed", stream=f"s{number}") for number in range(100)]
    assert all(map(repeats.filter, lines))
    assert all(repeats.filter(record(logging.INFO, "committed", stream="a")) for _ in range(100))
    assert sum(repeats.filter(record(logging.ERROR, "failed", stream="s1")) for _ in range(100)) == 4


def test_after_a_pause_a_line_is_new() -> None:
    clock = Clock()
    repeats = Repeats(clock)
    assert sum(repeats.filter(record(logging.ERROR, "failed")) for _ in range(100)) == 5
    clock.now += 200
    again = record(logging.ERROR, "failed")
    assert repeats.filter(again)
    assert fields_of(again) == {"left_out": 95}


def test_what_is_remembered_of_lines_is_bounded() -> None:
    repeats = Repeats(Clock())
    for number in range(10_000):
        repeats.filter(record(logging.ERROR, f"phrase {number}"))
    assert len(repeats._lines) <= 500


def test_a_line_says_what_the_process_works_on(capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(SourceConfig(Secret("mongodb://x")), SinkConfig("file:///x"))
    root = logging.getLogger()
    before = list(root.handlers), root.level
    try:
        configure_logging(config, "reader-0")
        log_with(lambda: {"stream": "a", "seq": 7, "epoch": 2})
        logging.getLogger("headrace").warning("one")
        logging.getLogger("headrace").warning("two", extra={"fields": {"stream": "b"}})
    finally:
        log_with(dict)
        root.handlers[:], root.level = before[0], before[1]
        logging.captureWarnings(False)
    one, two = map(json.loads, capsys.readouterr().err.splitlines())
    assert (one["stream"], one["seq"], one["epoch"]) == ("a", 7, 2)
    assert two["stream"] == "b"
    assert "seq" not in two


def test_a_name_can_neither_control_the_terminal_nor_pass_for_a_line() -> None:
    record = logging.LogRecord("headrace", logging.WARNING, "", 0, "created", (), None)
    record.fields = {"collection": "a\x1b[2J\u202eb\n12:00:00.000 error   supervisor all is lost"}
    line = LineFormatter(Redactor([]), "supervisor", colors=False).format(record)
    assert "collection=a\\x1b[2J\\u202eb\n  12:00:00.000 error" in line
