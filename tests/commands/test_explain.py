"""``check --explain``, without any server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine import cgroup, cli
from engine.commands import explain
from engine.core.budget import MIB
from tests.config.files import MINIMAL, written


def explained(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str, more: str = "") -> str:
    path = written(tmp_path, MINIMAL + more)
    assert cli.main(["check", "--config", str(path), "--explain", *arguments]) == 0
    return capsys.readouterr().out


def test_the_memory_and_a_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--rate", "200k/s", "--document-size", "324", "--cores", "2", "--json")
    found = json.loads(explained(tmp_path, capsys, *arguments))
    assert 0 < sum(each["bytes"] for each in found["memory"]) <= found["memory_limit"] == 1024 * MIB
    needed = found["needed"]
    assert (needed["streams"], needed["engines"], found["streams"]) == (5, 2, 1)
    assert any("source.split" in each for each in found["advice"])
    assert any("Run 2 engines of 2 cores" in each for each in found["advice"])
    assert "headrace docs benchmarks" in found["source"]
    assert found["assumptions"]


def test_without_a_rate_only_what_the_configuration_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "cpu_limit", lambda: 1.5)
    monkeypatch.setattr(explain, "memory_limit", lambda: 2048 * MIB)
    text = " ".join(explained(tmp_path, capsys, more="[writers]\nprocesses = 3\n").split())
    for words in ("1GiB", "3 writer(s) x 92MiB", "2GiB", "cores", "1.5", "more writers only take memory"):
        assert words in text
    assert "Needed" not in text


def test_a_limit_above_the_containers_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "memory_limit", lambda: 800 * MIB)
    assert cli.main(["check", "--config", str(written(tmp_path, MINIMAL)), "--explain"]) == 2
    assert "limited to 800MiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "rate"),
    [("50000/s", 50_000), ("50k/s", 50_000), ("1.5M/min", 25_000), ("100", 100), ("86_400/d", 1), ("3600 /h", 1)],
)
def test_rates(text: str, rate: float) -> None:
    assert explain.parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "0/s", "-1/s", "5/week", "1e5/s"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="is no rate such as"):
        explain.parse_rate(text)
