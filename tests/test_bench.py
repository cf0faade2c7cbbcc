"""Every benchmark in miniature, so that none of them rots."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from bench import day, decode, growth, idle, live, merge, parts, peer, quick, report, results, soak
from bench.backfill import measure_backfill
from bench.local import LocalStack
from bench.peers import Kind, Peer
from bench.peers.everyone import everyone, variants_to_kill
from bench.peers.headrace import Headrace
from bench.stream import Case, measure_by_turns, measure_stream
from bench.suite import BENCHMARKS
from bench.workloads import WORKLOADS, documents
from tests.exploring import rare


@pytest.fixture
def uri(stack: LocalStack) -> str:
    assert stack.mongo is not None
    return stack.mongo.uri


@pytest.mark.parametrize("workload", sorted(WORKLOADS))
def test_workloads_are_the_same_for_the_same_seed(workload: str) -> None:
    assert list(documents(workload, 20)) == list(documents(workload, 20))
    assert list(documents(workload, 20)) != list(documents(workload, 20, seed=2))


@pytest.mark.parametrize("case", decode.CASES)
def test_decode(case: str) -> None:
    first, second = (decode.measure_decode(case, 60, 1) for _ in range(2))
    assert first.documents == 60
    assert first.rows_hash == second.rows_hash
    assert first.decoder_us > 0
    assert first.driver_us > 0


def test_encode_and_slab() -> None:
    found = [*parts.encode("orders", 500, 2), *parts.slab("orders", 500, 2)]
    assert {each.count for each in found} == {500}
    assert all(each.bytes_per_unit > 10 for each in found)
    assert len({each.work_hash for each in found}) == len(found)


def test_upload_and_state(stack: LocalStack) -> None:
    found = [*parts.upload(stack, 1, size=9 * 2**20), *parts.state(stack, 1, commits=5)]
    assert [each.case for each in found] == ["9 MiB in parts of 8", "40 KB each", "redis", "sqlite"]
    assert found[2].work_hash == found[3].work_hash


def test_idle(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "_SETTLE_S", 0)
    # An engine that is alone looks at the lake every third of its lease, which is ten seconds.
    lake, redis = idle.measure(stack, 2, 12, lambda _: None)
    assert lake.puts > 0 < lake.dollars_per_month
    assert redis.puts == redis.dollars_per_month == 0 < redis.redis
    assert lake.mongodb > 0 < redis.mongodb


def test_startup_and_latency(stack: LocalStack, uri: str) -> None:
    assert live.startup(stack, uri, 1).engine_s > 0
    found = live.latency(stack, uri, 300, interval="200ms")
    assert found.exact
    assert 0 < found.p50_s <= found.p99_s <= found.worst_s


def test_memory(stack: LocalStack, uri: str) -> None:
    found = live.memory(stack, uri, "tiny", 3000, "512MiB")
    assert found.exact
    assert 0 < found.peak < found.limit
    assert sum(found.budget.values()) <= found.limit


def test_growth(stack: LocalStack, tmp_path: Path) -> None:
    every = list(growth.points(1000))
    assert len({(each.axis, each.value) for each in every}) == len(every)
    chosen = [
        each
        for each in every
        if (each.axis, each.value) in (("columns", 1000), ("segments", 10), ("collections", 10))
    ]
    found = list(growth.measure(stack, iter(chosen), lambda _: None))
    assert [each.exact for each in found] == [True] * 3
    assert {each.axis: each.events for each in found} == {"columns": 50, "segments": 1000, "collections": 1000}
    assert all(each.events_per_s > 0 < each.mb_per_s for each in found)
    assert found[1].objects == 10
    path = tmp_path / "results.jsonl"
    for each in found:
        results.append(path, "growth", each, results.context())
    assert "| columns | 1,000 |" in report.write(path, tmp_path / "report").read_text()
    assert (tmp_path / "report" / "growth.png").stat().st_size > 1000


@pytest.mark.parametrize("format_", [rare("iceberg"), "delta"])
def test_merge_and_day(stack: LocalStack, format_: str) -> None:
    found = list(merge.measure(stack, format_, 400, lambda _: None))
    assert [each.changed for each in found] == [400, 4, 4, 400]
    assert all(each.rows_per_s > 0 for each in found)
    (kept, left) = day.measure(stack, 33, lambda _: None, formats=(format_,), maintain_every=33)
    assert (kept.changelog_files, left.changelog_files) == (1, 11)
    assert report.merge_table([msgspec.to_builtins(each) for each in found]).count("\n") == 5


@pytest.mark.parametrize(
    "case",
    [
        Case(events=3000, rounds=2),
        Case("updates", 2000, 1, baselines=("drain", "watch")),
        Case("updates", 2000, 1, lookup=False, baselines=("drain",)),
        Case(events=4000, rounds=1, memory="1GiB", split=2, baselines=()),
        Case(events=20_000, rounds=1, memory="1GiB", collections=4, readers=2, baselines=()),
        Case(events=3000, rounds=1, memory="1GiB", tables="delta", baselines=()),
    ],
    ids=["orders", "updates", "updates-plain", "split", "collections", "tables"],
)
def test_stream(stack: LocalStack, uri: str, case: Case) -> None:
    found = measure_stream(stack, uri, case, lambda _: None)
    assert found.exact
    assert found.engine_per_s > 0
    assert (found.drain_per_s > 0) == ("drain" in case.baselines)
    assert found.processes >= 3


def test_collections_by_turns(stack: LocalStack, uri: str) -> None:
    cases = [
        Case(events=10_000, rounds=2, memory="1GiB", collections=collections, readers=1, baselines=())
        for collections in (1, 4)
    ]
    found = measure_by_turns(stack, uri, cases, lambda _: None)
    assert [each.collections for each in found] == [1, 4]
    assert all(each.exact for each in found)
    assert {each.rounds for each in found} == {2}


def test_backfill(stack: LocalStack, uri: str) -> None:
    found = measure_backfill(stack, uri, "orders", 2000, 1, "1GiB", lambda _: None, peers=False)
    assert found.exact
    assert found.scan2_per_s > 0
    assert found.engine2_per_s > 0


@pytest.mark.parametrize("program", everyone(), ids=lambda program: program.name.split(",")[0])
def test_peers(stack: LocalStack, program: Peer) -> None:
    if not program.built():
        pytest.skip(f"{program.name} is not here: python -m bench peer gets it")
    for kind in program.kinds:
        (found,) = peer.measure(
            stack, [program], kind, workload="orders", events=2000, rounds=1, tell=lambda _: None
        )
        assert found.events_per_s > 0
        assert found.pss_peak > 0
        assert (found.arrived, found.duplicates) == (2000 if program.keeps else 0, 0)


def test_a_kill_loses_nothing_of_the_engine(stack: LocalStack) -> None:
    kinds: tuple[Kind, ...] = ("stream", "load")
    for kind in kinds:
        (found,) = peer.kill(stack, [Headrace()], kind, workload="orders", events=60_000, tell=lambda _: None)
        assert found.written_at_kill >= 30_000
        assert (found.arrived, found.missing, found.duplicates) == (60_000, 0, 0)


def test_a_peer_without_its_toolchain_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bench.peers.debezium._STAMP", tmp_path / "none")
    monkeypatch.setattr("bench.peers.rigatoni._STAMP", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    said: list[str] = []
    compiled = [each for each in everyone() if each.name.startswith(("Debezium", "Rigatoni"))]
    assert peer.available(compiled, said.append) == []
    assert len(said) == len(compiled) == 3
    assert all("left out" in text for text in said)


def test_a_comparison_with_a_commit() -> None:
    run = quick.Run(("slab", "--events", "200"), "case", ("us_per_unit",), rounds=1)
    found = [*quick.compared(run, quick.ROOT, quick.ROOT)]
    assert found
    assert all(re.fullmatch(r"slab .* +[\d.]+ µs +[\d.]+ µs +\d+\.\d\d", line) for line in found)


def test_a_report_of_peers() -> None:
    measured = peer.PeerResult("Headrace", "stream", "orders", 10, 1, 100.0, 5.0, 1.0, 2**20, 37.0, 1, True, 10, 0)
    killed = peer.KillResult("Headrace", "load", "", "orders", 10, 5, 9, 1, 0)
    text = report.peer_table([msgspec.to_builtins(each) for each in (measured, killed)])
    assert "| Headrace | a collection | 5 of 10 | 1 | 0 |" in text
    assert {each.name for each in variants_to_kill()} < {each.name for each in everyone()}


def test_a_report_of_the_results(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for case in ("tiny", "orders"):
        results.append(path, "decode", decode.measure_decode(case, 60, 1), results.context())
    written = report.write(path, tmp_path / "report")
    text = written.read_text()
    assert "| `orders` |" in text
    assert json.loads(path.read_text().splitlines()[0])["commit"] in text
    assert "decode.png" in text
    assert (tmp_path / "report" / "decode.png").stat().st_size > 1000


def test_every_benchmark_states_its_purpose() -> None:
    for benchmark in BENCHMARKS.values():
        assert benchmark.help
        assert benchmark.workload in (*benchmark.workloads, "all")


@pytest.mark.parametrize("grown", ["uss", "descriptors", "threads", "log_lines", ""])
def test_a_soak_reports_what_grows(grown: str) -> None:
    samples = []
    for number in range(200):
        more = {name: number * (name == grown) for name in ("uss", "descriptors", "threads", "log_lines")}
        size = soak.ProcessSize(
            (20 + more["uss"]) << 20, number << 20, 10 + more["descriptors"], 5 + more["threads"]
        )
        lines = number * (1 + more["log_lines"])
        samples.append(soak.Sample(2.0 * number, {"reader-0": size}, lines, 3 * number, 0))
    processes, per_minute = soak.compare(samples)
    found = processes["reader-0"] | per_minute
    assert [name for name, change in found.items() if change.grows] == [grown][: bool(grown)]
