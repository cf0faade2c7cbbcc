"""Log lines without secrets."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from engine.errors import Redactor
from engine.logs import JsonFormatter, LineFormatter

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
