"""Does the engine grow? Runs it for a long time on a live workload, and compares the end with the beginning.

Servers are started locally, and the engine as users start it, with a segment every second. Documents of several
kinds are inserted, updated and deleted at a steady rate. Each of the engine's processes is measured every two
seconds; the first minute or fifth (half, in a short run) is warm-up, and of the rest the medians of the first and
the last quarter are compared.

It fails if the unique memory (USS) of a process has grown by more than 5 % and 1 MiB, if its descriptors or
threads have increased, if log lines come faster, if a process had to be replaced, if an event is missing or
duplicate, or if the engine leaves something unfinished in the sink.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import Any, Self

import duckdb
import fsspec
import msgspec
import psutil
from msgspec import Struct
from pymongo import DeleteOne, InsertOne, MongoClient, UpdateOne
from rich.console import Console
from rich.table import Table

from bench.live import status, wait_for
from bench.local import LocalStack
from bench.local.servers import LocalServerError, free_ports
from bench.measure import python
from bench.results import context
from bench.stream import Case, catalog_file, config_toml
from bench.workloads import documents
from engine.core.budget import MIB
from engine.core.naming import parts_of

SAMPLE_EVERY_S = 2.0
WRITE_EVERY_S = 0.1
MAX_AT_ONCE = 50  # so that all collections are changed even if the server cannot keep up
WARM_UP = 30  # samples until allocators have reached their final size
# Allowed growth, as a share and as an absolute slack; both must be exceeded. Connections come and go, and threads
# with them, and a segment more or less is not growth. A leak in each segment soon exceeds this.
MAX_GROWTH = 0.05
MAX_SLACK = {"uss": MIB, "descriptors": 2, "threads": 2, "log_lines": 6}
NAME = "soak"
KINDS = ("orders", "nested", "mixed", "wide", "tiny")
FAT_EVERY = 500
# Often enough that each happens many times in a short run.
_TABLES = """
[mirror]
enabled = true
interval = "20s"
[maintenance]
interval = "30s"
"""
LIVING = 1000


class Options(Struct):
    """The options of the command line; ``rate`` in events per second."""

    minutes: float
    collections: int
    sink: str
    tables: str
    limit: str
    rate: int


class ProcessSize(Struct):
    """One process at one moment; memory in bytes."""

    uss: int
    pss: int
    descriptors: int
    threads: int


class Sample(Struct):
    """The engine at one moment; counters are from its start."""

    at_s: float
    processes: dict[str, ProcessSize]
    log_lines: int
    objects: int
    replaced: int


class Change(Struct):
    """A figure in the first and in the last quarter, and whether it has grown."""

    first: float
    last: float
    growth_percent: float
    grows: bool


class SoakResult(Struct):
    """The result of a soak.

    Attributes:
        processes: by process and figure.
        per_minute: log lines, and objects in the lake.
        growing: what is wrong, in words; empty if nothing is.
    """

    sink: str
    minutes: float
    limit: str
    events: int
    objects: int
    log_lines: int
    pss_peak_mib: float
    processes: dict[str, dict[str, Change]]
    per_minute: dict[str, Change]
    growing: list[str]


def write(uri: str, options: Options, stopped: threading.Event) -> int:
    """Write at a steady rate until told to stop; returns the number of events."""
    changes = [_changes(KINDS[number % len(KINDS)], number) for number in range(options.collections)]
    began, events = time.monotonic(), 0
    with MongoClient[dict[str, Any]](uri) as client:
        while not stopped.wait(WRITE_EVERY_S):
            due = int((time.monotonic() - began) * options.rate) - events
            for place, each in enumerate(changes):
                if requests := list(islice(each, min(due // len(changes), MAX_AT_ONCE))):
                    client[NAME][f"events{place}"].bulk_write(requests)
                    events += len(requests)
    return events


def _changes(workload: str, seed: int) -> Iterator[InsertOne[dict[str, Any]] | UpdateOne | DeleteOne]:
    """Changes that each make one event: inserts, and updates and deletes of existing documents, in equal parts."""
    rng = random.Random(seed)
    fresh, fat = documents(workload, sys.maxsize, seed), documents("fat", sys.maxsize, seed)
    living: deque[int] = deque()
    for number in count(1):
        kind = rng.choice(("insert", "update", "delete")) if len(living) > LIVING else "insert"
        if kind == "delete":
            yield DeleteOne({"_id": living.popleft()})
        elif kind == "update":
            yield UpdateOne({"_id": rng.choice(living)}, {"$set": {"changed": number}})
        else:
            living.append(number)
            yield InsertOne({"_id": number, **next(fat if number % FAT_EVERY == 0 else fresh)})


class Engine:
    """``python -m engine run``, with its log in a file, and ways to observe it."""

    def __init__(self, directory: Path, toml: str) -> None:
        (self.port,) = free_ports(1)
        path = directory / "engine.toml"
        path.write_text(toml.replace('listen = ""', f'listen = "127.0.0.1:{self.port}"'))
        self._log = directory / "engine.log"
        command = python("-m", "engine", "run", "--config", str(path))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    @property
    def pid(self) -> int:
        """The supervisor's."""
        return self._process.pid

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def wait_for(self, what: Callable[[list[dict[str, Any]]], bool]) -> None:
        """Wait until ``what`` is true of its streams."""
        try:
            wait_for(self.port, lambda found: what(found["streams"]))
        except TimeoutError as error:
            raise self._error("does not reach the expected status") from error

    def sample(self) -> Sample:
        """Measure it.

        Raises:
            LocalServerError: it has ended, or does not answer.
        """
        if (found := status(self.port)) is None:
            raise self._error("does not answer")
        names = {each["pid"]: each["process"] for each in found["processes"]}
        return Sample(
            at_s=time.monotonic() - self._began,
            processes=_sizes(psutil.Process(self._process.pid), names),
            log_lines=self._log.read_bytes().count(b"\n"),
            objects=sum(each["objects"] for each in found["streams"]),
            replaced=sum(each["restarts"] for each in found["processes"]),
        )

    def end(self) -> None:
        """Tell it to end, and wait for it."""
        self._process.terminate()
        if self._process.wait(60):
            raise self._error("did not end properly")

    def _error(self, what: str) -> LocalServerError:
        tail = self._log.read_text(errors="replace")[-2000:]
        return LocalServerError(f"the engine {what} (code {self._process.poll()}): {tail}")


def _sizes(root: psutil.Process, names: dict[int, str]) -> dict[str, ProcessSize]:
    """The processes of the tree, by name, without those that end meanwhile."""
    sizes = {}
    for process in (root, *root.children(recursive=True)):
        try:
            other = "template" if "forkserver" in " ".join(process.cmdline()) else "resource tracker"
            name = "supervisor" if process == root else names.get(process.pid, other)
            memory = process.memory_full_info()
            sizes[name] = ProcessSize(memory.uss, memory.pss, process.num_fds(), process.num_threads())
        except psutil.NoSuchProcess:
            continue
    return sizes


def soak(options: Options, tell: Callable[[str], None]) -> SoakResult:
    """Start everything, run it for the given time, end it, and compare."""
    with tempfile.TemporaryDirectory() as temporary, LocalStack() as stack:
        assert stack.mongo is not None
        case = Case(memory=options.limit, collections=options.collections, readers=1, tables=options.tables)
        toml = config_toml(stack, stack.mongo.uri, NAME, case, NAME, interval="1s")
        lake = f"s3://{stack.bucket}/{NAME}"
        if options.tables:
            toml = toml.replace(catalog_file(NAME), f"{temporary}/catalog.db") + _TABLES
        if options.sink == "file":
            toml = toml.replace(lake, lake := f"file://{temporary}/lake")
        with Engine(Path(temporary), toml) as engine:
            engine.wait_for(lambda streams: bool(streams) and all(each["reading"] for each in streams))
            samples, events = _written(stack.mongo.uri, engine, options, tell)
            tell("writing has ended; waiting for the last commit")
            engine.wait_for(lambda streams: sum(each["events_committed"] for each in streams) >= events)
            end = engine.sample()
            engine.end()
        landed, different = _landed(stack, lake)
        unfinished = _unfinished(stack, lake)
    processes, per_minute = compare(samples)
    growing = [f"{name}: {what}" for name, all_ in processes.items() for what, each in all_.items() if each.grows]
    growing += [f"the engine: {what}" for what, each in per_minute.items() if each.grows]
    growing += [f"{end.replaced} processes had to be replaced"] if end.replaced else []
    growing += [f"{unfinished} unfinished uploads or hidden files are left"] if unfinished else []
    if not landed == different == events:
        growing += [f"{events} events were written; {landed} landed, of which {different} are distinct"]
    return SoakResult(
        sink=options.sink,
        minutes=options.minutes,
        limit=options.limit,
        events=events,
        objects=end.objects,
        log_lines=end.log_lines,
        pss_peak_mib=max(map(_pss, samples)),
        processes=processes,
        per_minute=per_minute,
        growing=growing,
    )


def _written(uri: str, engine: Engine, options: Options, tell: Callable[[str], None]) -> tuple[list[Sample], int]:
    """Write for the given time and measure meanwhile; returns the samples and the number of events."""
    samples: list[Sample] = []
    stopped = threading.Event()
    until = time.monotonic() + options.minutes * 60
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(write, uri, options, stopped)
        try:
            while (left_s := until - time.monotonic()) > 0 and not writing.done():
                time.sleep(min(SAMPLE_EVERY_S, left_s))
                samples.append(engine.sample())
                tell(f"{left_s:5.0f} s left, {samples[-1].objects:,} objects, {_pss(samples[-1]):.0f} MiB")
        finally:
            stopped.set()
        return samples, writing.result()


def _pss(sample: Sample) -> float:
    """The PSS of all processes, in MiB."""
    return sum(each.pss for each in sample.processes.values()) / MIB


def _landed(stack: LocalStack, lake: str) -> tuple[int, int]:
    """The number of rows, and of distinct tokens in the objects of the lake; tables have files of their own."""
    protocol, _, root = lake.partition("://")
    filesystem = fsspec.filesystem("file") if protocol == "file" else stack.s3.filesystem()
    own = [path for path in filesystem.find(root) if parts_of(path.removeprefix(f"{root}/")) is not None]
    files = [path if protocol == "file" else f"s3://{path}" for path in own]
    query = f"select count(*), count(distinct _cdc_token) from read_parquet({files}, union_by_name = true)"
    with duckdb.connect() as database:
        database.register_filesystem(stack.s3.filesystem())
        row = database.execute(query).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _unfinished(stack: LocalStack, lake: str) -> int:
    """The number of hidden files, or of incomplete multipart uploads."""
    if lake.startswith("file://"):
        return sum(path.is_file() for path in Path(lake.removeprefix("file://")).rglob(".*"))
    found = stack.s3.filesystem().call_s3("list_multipart_uploads", Bucket=stack.bucket, Prefix=NAME)
    return len(found.get("Uploads", []))


def compare(samples: Sequence[Sample]) -> tuple[dict[str, dict[str, Change]], dict[str, Change]]:
    """The figures of each process, and the rates per minute, in the first and in the last quarter."""
    warm = samples[max(len(samples) // 5, min(WARM_UP, len(samples) // 2)) :]
    size = max(2, len(warm) // 4)
    first, last = warm[:size], warm[-size:]

    def median_of(quarter: Sequence[Sample], name: str, what: str) -> float:
        found = [getattr(each.processes[name], what) for each in quarter if name in each.processes]
        return float(median(found)) if found else 0.0

    def pace(quarter: Sequence[Sample], what: str) -> float:
        begin, end = quarter[0], quarter[-1]
        return float(getattr(end, what) - getattr(begin, what)) / (end.at_s - begin.at_s) * 60

    names = sorted({name for sample in last for name in sample.processes})
    processes = {
        name: {
            what: _change(what, *(median_of(each, name, what) for each in (first, last)))
            for what in ProcessSize.__struct_fields__
        }
        for name in names
    }
    per_minute = {
        what: _change(what, *(pace(each, what) for each in (first, last))) for what in ("log_lines", "objects")
    }
    return processes, per_minute


def _change(what: str, first: float, last: float) -> Change:
    """It grows if the increase exceeds both the allowed share and the slack."""
    grows = last > first * (1 + MAX_GROWTH) and last > first + MAX_SLACK.get(what, float("inf"))
    return Change(first, last, round((last / first - 1) * 100, 1) if first else 0.0, grows)


def show(console: Console, result: SoakResult) -> None:
    """Print the result as text."""
    title = f"{result.events:,} events in {result.minutes:g} minutes: first quarter → last quarter"
    table = Table("process", "unique memory (USS), MiB", "PSS, MiB", "descriptors", "threads", title=title)
    for name, each in result.processes.items():
        sizes = (_shown(each[what], MIB) for what in ("uss", "pss"))
        table.add_row(name, *sizes, _shown(each["descriptors"]), _shown(each["threads"]))
    console.print(table)
    for what, change in result.per_minute.items():
        console.print(f"{what.replace('_', ' ')} per minute: {_shown(change)}")
    console.print(f"{result.objects:,} objects, {result.log_lines:,} log lines")
    console.print(f"largest PSS of all processes {result.pss_peak_mib:.0f} MiB; the limit is {result.limit}")
    for line in result.growing:
        console.print(f"[red]{line}[/]")
    console.print(
        "[red]it grows[/]" if result.growing else "[green]nothing grows; every event landed exactly once[/]"
    )


def _shown(change: Change, unit: int = 0) -> str:
    first, last = (f"{each / unit:.1f}" if unit else f"{each:,.0f}" for each in (change.first, change.last))
    shown = f"{first} → {last} ({change.growth_percent:+.1f} %)"
    return f"[red]{shown}[/]" if change.grows else shown


def main() -> int:
    """Run it; returns 1 if something grows."""
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description=__doc__,
        epilog="examples: scripts/soak --minutes 60; scripts/soak --sink file | jq .growing\n"
        "exit codes: 0 nothing grows, 1 something does (the output says what), 2 bad usage",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to write (default: 10)")
    parser.add_argument(
        "--collections", type=int, default=3, help="each with another kind of document (default: 3)"
    )
    parser.add_argument("--sink", choices=("s3", "file"), default="s3", help="where the lake is (default: s3)")
    parser.add_argument(
        "--tables",
        choices=("", "iceberg", "delta"),
        default="",
        help="changelog tables and mirrors (default: none)",
    )
    parser.add_argument("--limit", default="512MiB", help="memory.limit of the engine (default: 512MiB)")
    parser.add_argument("--rate", type=int, default=300, help="events per second in total (default: 300)")
    options = Options(**vars(parser.parse_args()))
    if options.minutes <= 0 or options.collections < 1 or options.rate < 1:
        parser.error("--minutes, --collections and --rate must be more than 0")
    console, progress = Console(highlight=False), Console(stderr=True, highlight=False)
    with progress.status("starting the servers and the engine ...") as spinner:
        result = soak(options, spinner.update)
    if console.is_terminal:
        show(console, result)
    else:
        print(json.dumps({"benchmark": "soak", **context(), **msgspec.to_builtins(result)}))
    return 1 if result.growing else 0


if __name__ == "__main__":
    sys.exit(main())
