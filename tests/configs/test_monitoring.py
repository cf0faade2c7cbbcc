"""Alerts and dashboard name only metrics, labels, states and sections that exist; promtool fires each alert."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from engine.core.stream import StreamState
from engine.supervisor.metrics import metrics_markdown
from tests.test_documents import anchors

ROOT = Path(__file__).parents[2]
FILES = ROOT / "configs" / "deploy" / "helm" / "headrace" / "files"
OPERATIONS = ROOT / "configs" / "OPERATIONS.md"
ALERTS = FILES / "alerts.yaml"
FIRED = Path(__file__).with_name("alerts_test.yaml")

# What Prometheus and its Operator add to every series.
OF_A_TARGET = {"instance", "job", "namespace"}
WORDS = {"and", "or", "unless", "offset", "on", "by", "without", "group_left", "bool", "ignoring"}
CLAUSE = re.compile(r"\b(?:on|by|without|ignoring|group_left)\s*\(([^)]*)\)")


def exported() -> dict[str, set[str]]:
    """The labels of each metric that the engine exports."""
    rows = re.findall(r"^\| `(headrace_\w+)` \| (\w+) \| (.*?) \|", metrics_markdown(), re.MULTILINE)
    found: dict[str, set[str]] = {}
    for name, kind, text in rows:
        labels = set(re.findall(r"\w+", text))
        if kind == "histogram":
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[name] = labels
    return found


def unknown_in(expression: str) -> set[str]:
    """The metrics, labels and states of a PromQL expression that the engine does not export."""
    known = exported()
    unknown = set()
    states = re.findall(r'\bstate=~?"([^"$]*)"', expression)
    unknown |= {each for found in states for each in found.split("|")} - set(get_args(StreamState))
    for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", expression):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        unknown |= labels - known.get(name, set()) - OF_A_TARGET
    plain = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", expression)
    carried: set[str] = set().union(*(known.get(each, set()) for each in re.findall(r"\w+", plain)))
    for labels in CLAUSE.findall(plain):
        unknown |= set(re.findall(r"\w+", labels)) - carried - OF_A_TARGET
    names = re.findall(r"\b[a-zA-Z_]\w*\b(?!\s*\()", CLAUSE.sub("", re.sub(r"\b\d+[smhd]\b", "", plain)))
    return unknown | set(names) - known.keys() - WORDS


def rules() -> list[dict[str, Any]]:
    """The alerts."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FILES / "dashboard.json").read_text())
    return found


def queries() -> list[str]:
    """What the dashboard's panels and variables ask for."""
    targets = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    variables = [each["definition"] for each in dashboard()["templating"]["list"] if each["type"] == "query"]
    return targets + [re.sub(r"label_values\((.*), (\w+)\)", r"max by (\2) (\1)", each) for each in variables]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_names_what_exists(rule: dict[str, Any]) -> None:
    assert unknown_in(rule["expr"]) == set()
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert {"summary", "description", "runbook"} == rule["annotations"].keys()
    path, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert ROOT / path == OPERATIONS
    assert anchor in anchors(OPERATIONS.read_text())


def test_the_dashboard_names_what_exists() -> None:
    found = queries()
    assert len(found) > 30
    assert {each: unknown for each in found if (unknown := unknown_in(each))} == {}
    shown = set(re.findall(r"headrace_\w+", " ".join(found)))
    in_part = {re.sub("_(bucket|sum|count)$", "", each) for each in shown}
    not_shown = {each for each in exported() if re.sub("_(bucket|sum|count)$", "", each) not in in_part}
    assert not_shown == set()


def test_the_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("wrong", "unknown"),
    [
        ("max(headrace_laag_seconds)", {"headrace_laag_seconds"}),
        ('headrace_stream_state{state=~"stalled|stuck"} == 1', {"stuck"}),
        ('rate(headrace_segments_total{strem="x"}[5m]) > 0', {"strem"}),
        ("sum by (process, stream) (headrace_lag_seconds)", {"process"}),
        ("headrace_reading and node_load1 offset 1h", {"node_load1"}),
    ],
)
def test_what_does_not_exist_is_found(wrong: str, unknown: set[str]) -> None:
    assert unknown_in(wrong) == unknown


def test_the_document_has_the_alerts() -> None:
    """Its table has a row for each, and the expressions there are in the rules."""
    section = OPERATIONS.read_text().partition("\n### Alerts\n")[2].partition("\n## ")[0]
    code = re.findall(r"`(.*?headrace_.*?)`", section)
    documented = [" ".join(each.replace(r"\|", "|").split()) for each in code]
    expressions = [" ".join(rule["expr"].split()) for rule in rules()]
    assert [each for each in documented if not any(each in expression for expression in expressions)] == []
    assert len(re.findall(r"^\| [a-z]", section, re.MULTILINE)) == len(expressions) + 1  # and the heading


def test_each_alert_is_fired() -> None:
    """By the series for promtool; whether they do is what the next test runs."""
    found = FIRED.read_text()
    assert [rule["alert"] for rule in rules() if f'alertname="{rule["alert"]}"' not in found] == []
    named = set(re.findall(r"headrace_\w+", found))
    assert named <= exported().keys()


def test_promtool_agrees(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian's package prometheus) is not installed")
    panels = [each.replace("$__rate_interval", "5m") for each in queries()]
    recorded = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(panels)]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    compose = ROOT / "configs" / "deploy" / "prometheus" / "prometheus.yml"
    for command in (
        ["check", "rules", "--lint-fatal", str(ALERTS)],
        ["check", "rules", str(path)],
        ["check", "config", "--syntax-only", str(compose)],
        ["test", "rules", str(FIRED)],
    ):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
