"""The report of ``restore`` on a terminal."""

from __future__ import annotations

import pytest

from engine.commands.restore import Report, _print
from engine.core.restoring import Doubts


def test_each_doubt_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Also if they are about equally many documents."""
    pending, missing, newer, unknown = (Doubts(1, [f"id-{number}"]) for number in range(4))
    report = Report("shop.orders", "now", "file", 1, 10, False, pending, missing, newer, unknown, (), ())
    _print(report, as_json=False)
    printed = capsys.readouterr().out
    counts = dict(words[:2] for line in printed.splitlines() if len(words := line.split()) > 1)
    assert [counts[name] for name in ("pending", "missing", "newer", "unknown")] == ["1"] * 4
    assert all(f"id-{number}" in printed for number in range(4))
