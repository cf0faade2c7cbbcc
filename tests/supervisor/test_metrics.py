"""The metrics of given messages and statuses; ``integration/test_observed.py`` has those of an engine."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from engine.core import messages as msg
from engine.core.actions import Child
from engine.core.backfill import Progress
from engine.core.rescues import RescuedValues
from engine.core.servers import ServerStatus
from engine.core.store import StoreSeen
from engine.supervisor.figures import MAX_COLLECTIONS, OTHER
from engine.supervisor.metrics import Metrics, metrics_markdown
from engine.supervisor.telemetry import Status
from tests.supervisor.test_telemetry import STANDBY, STREAM, like

READER, WRITER = Child("reader", 0), Child("writer", 0)


def full_status(**changes: Any) -> Status:
    rescued = (RescuedValues("shop", "orders", 3, 0, ()),)
    servers = (ServerStatus("mongodb", True), ServerStatus("sink", False, "gone"), ServerStatus("state", None))
    fields: dict[str, Any] = {
        "streams": (STREAM, STANDBY),
        "rescued": rescued,
        "servers": servers,
        "leases_held": 1,
    } | changes
    return Status("1", 5.0, 0.0, False, 60, 100, 0, 50, **fields)


def text_of(metrics: Metrics) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics)
    return generate_latest(registry).decode()


def samples(metrics: Metrics) -> dict[str, float]:
    """The values, by the text of the series."""
    lines = (line for line in text_of(metrics).splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def batch(*counted: msg.Counted) -> msg.BatchReady:
    return msg.BatchReady(1, 1, 0, 0, 1, 1, counted=counted)


def test_names_follow_the_rules() -> None:
    """Counters, and only counters, end in _total; units are base units and come last."""
    rows = re.findall(r"^\| `(headrace_\w+)` \| (\w+) \| .*? \| (.+) \|$", metrics_markdown(), re.MULTILINE)
    assert len(rows) > 40
    for name, kind, text in rows:
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search("_(ms|milliseconds|minutes|hours|kb|mb|mib|percent|count|sum|bucket|s)(_|$)", name), (
            name
        )
        assert text.endswith("."), name


def test_promtool_finds_nothing_wrong() -> None:
    metrics = Metrics(full_status)
    metrics.figures.heard(READER, batch(msg.Counted("shop", 'a"b\\c\nd', "insert", 2)))
    text = text_of(metrics)
    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names)) > 40
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian's package prometheus) is not installed")
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_before_the_first_status() -> None:
    found = samples(Metrics(lambda: None))
    assert found["headrace_ready"] == 0
    assert any(name.startswith("headrace_build_info{") for name in found)


def test_servers_and_readiness() -> None:
    found = samples(Metrics(full_status))
    assert found['headrace_server_up{server="mongodb"}'] == 1
    assert found['headrace_server_up{server="sink"}'] == 0
    assert 'headrace_server_up{server="state"}' not in found
    assert found["headrace_ready"] == 1
    assert found["headrace_leases_held"] == 1
    assert samples(Metrics(lambda: full_status(streams=(like("x", state="stalled"),))))["headrace_ready"] == 0


def test_the_number_of_series_is_bounded() -> None:
    """Collections beyond the limit share a label value, and none moves from or to it."""
    many = [RescuedValues("shop", f"c{number:05}", 1, 0, ()) for number in range(3 * MAX_COLLECTIONS)]
    loads = tuple(Progress(f"shop.x{number}", 1, 2, 3, 4, 5, 6) for number in range(5))
    wide = like("shop", collections=tuple(each.collection for each in many))
    metrics = Metrics(lambda: full_status(streams=(wide,), rescued=tuple(many), backfills=loads))
    for each in many:
        metrics.figures.heard(READER, batch(msg.Counted("shop", each.collection, "insert", 1)))
    metrics.figures.heard(READER, batch(msg.Counted("shop", "c00000", "no such operation", 1)))
    for _ in range(2):
        found = samples(metrics)
        other = f'collection="{OTHER}",database="{OTHER}"'
        assert found[f"headrace_rescued_values_total{{{other}}}"] == 2 * MAX_COLLECTIONS
        assert found[f'headrace_collection_events_total{{{other},operation="insert"}}'] == 2 * MAX_COLLECTIONS
        assert found['headrace_rescued_values_total{collection="c00000",database="shop"}'] == 1
        assert found[f'headrace_backfill_splits{{collection="{OTHER}"}}'] == sum(each.splits for each in loads)
        named = 'headrace_collection_events_total{collection="c00000",database="shop",operation="(other)"}'
        assert found[named] == 1
        assert len(found) < 4 * MAX_COLLECTIONS


def test_counts_go_on_when_a_process_is_replaced() -> None:
    """Messages say what is new, so that nothing depends on how long a process lives."""
    metrics = Metrics(full_status)
    for _ in range(2):  # as two processes would
        metrics.figures.heard(READER, msg.Heartbeat(1, "reading", 0.0, retries=2))
        metrics.figures.heard(READER, batch(msg.Counted("shop", "orders", "insert", 5)))
    metrics.figures.heard(WRITER, msg.Failed("transient", "publish x", "503", ""))
    metrics.figures.answered(StoreSeen(0.0, None, 3, 7))
    metrics.figures.answered(StoreSeen(0.0, None, 4, 9))
    found = samples(metrics)
    assert found['headrace_retries_total{server="mongodb"}'] == 4
    assert found['headrace_retries_total{server="state"}'] == 4
    assert found["headrace_lease_renewals_total"] == 9
    assert found['headrace_errors_total{kind="transient",role="writer"}'] == 1
    events = 'headrace_collection_events_total{collection="orders",database="shop",operation="insert"}'
    assert found[events] == 10
