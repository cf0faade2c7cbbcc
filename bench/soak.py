"""Does the engine grow? It is run for a long time on a live workload, and its end is compared with its beginning.

Servers are started here, and the engine as users start it, with a segment every second. Documents of several kinds
are inserted, updated and deleted at a steady rate. Every two seconds each of the engine's processes is measured;
the first fifth of the time is warm-up, and of the rest the medians of the first and the last quarter are compared.

It fails when the own memory (USS) of a process has grown by more than 5 % and 1 MiB, when its descriptors or
threads are more, when log lines or S3 requests come faster, when the records in the state store grow, when a
process had to be replaced, when an event is missing or there twice, or when the engine leaves something unfinished
behind in the sink.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Self

import duckdb
import msgspec
import psutil
from msgspec import Struct
from pymongo import DeleteOne, InsertOne, MongoClient, UpdateOne
from redis import Redis
from rich.console import Console
from rich.table import Table

from bench.live import status, wait_for
from bench.measure import python
from bench.results import context
from bench.stream import Case, config_toml
from bench.workloads import documents
from engine.config import Size
from engine.config.quantities import decode_quantity, format_size
from engine.config.tree import WritersConfig
from engine.core.budget import MIB, divide
from engine.errors import ConfigError
from engine.local import LocalStack
from engine.local.servers import LocalServerError, free_ports

SAMPLE_EVERY_S = 2.0
WRITE_EVERY_S = 0.1
WARM_UP = 0.2  # of the samples
MOST_GROWTH = 0.05
# Connections come and go, and threads with them; what is lost with each segment is soon more.
MOST_MORE = 2
# Of what happens so many times a minute: a segment more or less is no growth.
MOST_MORE_PER_MIN = 6.0
MOST_MORE_STATE = 4096
KINDS = ("orders", "nested", "mixed", "wide", "tiny")
FAT_EVERY = 500
LIVING = 5000
EXAMPLES = """\
examples:
  scripts/soak                            ten minutes, three collections, a lake on S3
  scripts/soak --minutes 60 --rate 2000   longer and faster
  scripts/soak --minutes 2 --sink file    a short look, a lake on this machine's disk
  scripts/soak | jq .growing              in a pipe it writes one JSON object

exit codes: 0 nothing grows, 1 something does (it says what), 2 bad usage
"""


class Options(Struct):
    """What the command line says; ``rate`` in events per second."""

    minutes: float
    collections: int
    sink: str
    limit: str
    rate: int


class ProcessSize(Struct):
    """One process at one moment; memory in bytes."""

    uss: int
    pss: int
    descriptors: int
    threads: int


class Sample(Struct):
    """The engine at one moment. What is counted is counted from its start.

    Attributes:
        state_bytes: what its records take in the state store.
    """

    at_s: float
    processes: dict[str, ProcessSize]
    log_lines: int
    s3_requests: int
    objects: int
    state_bytes: int


class Change(Struct):
    """A figure in the first and in the last quarter, and whether that is growth."""

    first: float
    last: float
    growth_percent: float
    grows: bool


class SoakResult(Struct):
    """What a soak gives.

    Attributes:
        processes: by process and figure.
        engine: figures of the engine as a whole.
        replaced: processes that had to be started again.
        unfinished: multipart uploads, or hidden files, that are left behind.
        exact: every event landed once.
        growing: what is wrong, in words; empty when nothing is.
    """

    sink: str
    minutes: float
    limit: str
    readers: int
    events: int
    segments: int
    objects: int
    samples: int
    pss_peak: int
    processes: dict[str, dict[str, Change]]
    engine: dict[str, Change]
    replaced: int
    unfinished: int
    exact: bool
    growing: list[str]


class Workload:
    """Writes at a steady rate, in a thread.

    State: the number of events made. Owner: the thread, until it is stopped.
    """

    def __init__(self, uri: str, database: str, collections: int, rate: int) -> None:
        self.events = 0
        self._client: MongoClient[dict[str, Any]] = MongoClient(uri)
        self._database = self._client[database]
        self._rng = random.Random(1)
        self._rate = rate
        self._failed: BaseException | None = None
        kinds = [KINDS[number % len(KINDS)] for number in range(collections)]
        self._fresh = [documents(kind, sys.maxsize, seed) for seed, kind in enumerate(kinds)]
        self._fat = documents("fat", sys.maxsize)
        self._living: list[deque[int]] = [deque() for _ in kinds]
        self._number = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._client.close()
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        began = time.monotonic()
        try:
            while not self._stopped.wait(WRITE_EVERY_S):
                due = int((time.monotonic() - began) * self._rate) - self._number
                for place in range(len(self._fresh)):
                    requests = [self._request(place) for _ in range(due // len(self._fresh))]
                    if requests:
                        self._database[f"events{place}"].bulk_write(requests)
                        self.events += len(requests)
        except BaseException as error:
            self._failed = error

    def _request(self, place: int) -> InsertOne[dict[str, Any]] | UpdateOne | DeleteOne:
        """A change that is one event: in equal parts an insert or, of a document that lives, an update or its end."""
        self._number += 1
        living = self._living[place]
        kind = self._rng.choice(("insert", "update", "delete")) if len(living) > LIVING else "insert"
        if kind == "delete":
            return DeleteOne({"_id": living.popleft()})
        if kind == "update":
            return UpdateOne({"_id": self._rng.choice(living)}, {"$set": {"changed": self._number}})
        living.append(self._number)
        fresh = self._fat if self._number % FAT_EVERY == 0 else self._fresh[place]
        return InsertOne({"_id": self._number, **next(fresh)})


class Engine:
    """``python -m engine run``, its log in a file; and what can be seen of it."""

    def __init__(self, directory: Path, toml: str, metrics: int, state: tuple[str, str]) -> None:
        (self.port,) = free_ports(1)
        path = directory / "engine.toml"
        path.write_text(toml.replace('listen = ""', f'listen = "127.0.0.1:{self.port}"'))
        self._log = directory / "engine.log"
        self._lines, self._read_to = 0, 0
        self._metrics = metrics
        url, self._prefix = state
        self._state: Redis = Redis.from_url(url)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                python("-m", "engine", "run", "--config", str(path)), stdout=log, stderr=log
            )
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._state.close()

    def sample(self) -> Sample:
        """Measure it.

        Raises:
            LocalServerError: it has ended, or does not answer.
        """
        found = status(self.port)
        if found is None or self.process.poll() is not None:
            raise LocalServerError(f"the engine does not answer (code {self.process.poll()}): {self.log_tail()}")
        names = {each["pid"]: each["process"] for each in found["processes"]}
        return Sample(
            at_s=time.monotonic() - self._began,
            processes=_sizes(psutil.Process(self.process.pid), names),
            log_lines=self._log_lines(),
            s3_requests=_s3_requests(self._metrics),
            objects=sum(each["objects"] for each in found["streams"]),
            state_bytes=sum(self._state.memory_usage(key, samples=0) or 0 for key in self._keys()),
        )

    def _keys(self) -> list[bytes]:
        return list(self._state.scan_iter(match=f"{self._prefix}*", count=1000))

    def _log_lines(self) -> int:
        with self._log.open("rb") as log:
            log.seek(self._read_to)
            fresh = log.read()
        self._read_to += len(fresh)
        self._lines += fresh.count(b"\n")
        return self._lines

    def log_tail(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-2000:]


def _sizes(root: psutil.Process, names: dict[int, str]) -> dict[str, ProcessSize]:
    """The processes of the tree, by name; one that ends meanwhile is left out."""
    sizes = {}
    for process in (root, *root.children(recursive=True)):
        try:
            name = "supervisor" if process == root else names.get(process.pid) or _name(process)
            memory = process.memory_full_info()
            sizes[name] = ProcessSize(memory.uss, memory.pss, process.num_fds(), process.num_threads())
        except psutil.NoSuchProcess:
            continue
    return sizes


def _name(process: psutil.Process) -> str:
    return "template" if "forkserver" in " ".join(process.cmdline()) else "resource tracker"


def _s3_requests(metrics: int) -> int:
    """All requests that the S3 server has had, by its own count."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    return sum(int(float(each)) for each in re.findall(r"^SeaweedFS_s3_request_total\S* (\S+)$", text, re.M))


def soak(options: Options, tell: Callable[[str], None]) -> SoakResult:
    """Start everything, run it for so long, end it, and compare."""
    (metrics,) = free_ports(1)
    stack = LocalStack()
    stack.s3.process.arguments.append(f"-metricsPort={metrics}")
    name = "soak"
    with tempfile.TemporaryDirectory() as temporary, stack:
        assert stack.mongo is not None
        directory = Path(temporary)
        toml = _toml(stack, options, name, directory)
        with Engine(directory, toml, metrics, (stack.valkey.url, name)) as engine:
            wait_for(
                engine.port, lambda found: bool(found["streams"]) and all(s["reading"] for s in found["streams"])
            )
            with Workload(stack.mongo.uri, name, options.collections, options.rate) as workload:
                samples = _sampled(engine, options.minutes * 60, tell)
            tell("writing has ended; waiting for the last commit")
            wait_for(engine.port, lambda found: _committed(found) >= workload.events)
            last = status(engine.port) or {}
            engine.process.terminate()
            if engine.process.wait(60):
                raise LocalServerError(f"the engine ended with {engine.process.returncode}: {engine.log_tail()}")
        landed = _landed(stack, options, name, directory)
        return _result(
            options, workload.events, samples, last, landed, _unfinished(stack, options, name, directory)
        )


def _toml(stack: LocalStack, options: Options, name: str, directory: Path) -> str:
    assert stack.mongo is not None
    case = Case(memory=options.limit, collections=options.collections, readers=_readers(options))
    toml = config_toml(stack, stack.mongo.uri, name, case, name, interval="1s")
    if options.sink == "file":
        toml = toml.replace(f"s3://{stack.bucket}/{name}", f"file://{directory}/lake")
    return toml


def _readers(options: Options) -> int:
    """One for each collection, or as many as fit into the limit; else collections share streams."""
    limit = int(decode_quantity(Size, options.limit))
    for readers in range(options.collections, 1, -1):
        try:
            divide(limit, readers, WritersConfig().processes)
        except ConfigError:
            continue
        return readers
    return 1


def _committed(found: dict[str, Any]) -> int:
    return sum(int(each["events_committed"]) for each in found["streams"])


def _sampled(engine: Engine, seconds: float, tell: Callable[[str], None]) -> list[Sample]:
    samples: list[Sample] = []
    until = time.monotonic() + seconds
    while (left_s := until - time.monotonic()) > 0:
        time.sleep(min(SAMPLE_EVERY_S, left_s))
        samples.append(engine.sample())
        total = sum(each.pss for each in samples[-1].processes.values())
        tell(f"{left_s:5.0f} s left, {samples[-1].objects:,} objects, {format_size(total >> 20 << 20)}")
    return samples


def _landed(stack: LocalStack, options: Options, name: str, directory: Path) -> tuple[int, int]:
    """Rows, and different tokens among them."""
    with duckdb.connect() as database:
        root = f"{directory}/lake"
        if options.sink == "s3":
            database.register_filesystem(stack.s3.filesystem())
            root = f"s3://{stack.bucket}/{name}"
        row = database.execute(
            f"select count(*), count(distinct _cdc_token) from read_parquet('{root}/**/*.parquet', union_by_name = true)"
        ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _unfinished(stack: LocalStack, options: Options, name: str, directory: Path) -> int:
    if options.sink == "file":
        return sum(path.is_file() for path in directory.glob("lake/**/.*"))
    found = stack.s3.filesystem().call_s3("list_multipart_uploads", Bucket=stack.bucket, Prefix=name)
    return len(found.get("Uploads", []))


# --- the verdict -----------------------------------------------------------------------------------------


def _result(
    options: Options,
    events: int,
    samples: Sequence[Sample],
    last: dict[str, Any],
    landed: tuple[int, int],
    unfinished: int,
) -> SoakResult:
    processes, engine = compare(samples)
    replaced = sum(int(each["restarts"]) for each in last["processes"])
    exact = landed == (events, events)
    growing = [f"{name}: {what}" for name, all_ in processes.items() for what, each in all_.items() if each.grows]
    growing += [f"the engine: {what}" for what, each in engine.items() if each.grows]
    growing += [f"{replaced} processes had to be replaced"] if replaced else []
    growing += [f"{unfinished} unfinished uploads or hidden files are left"] if unfinished else []
    growing += [] if exact else [f"{events} events were written; {landed[0]} landed, {landed[1]} different ones"]
    return SoakResult(
        sink=options.sink,
        minutes=options.minutes,
        limit=options.limit,
        readers=_readers(options),
        events=events,
        segments=sum(int(each["segments"]) for each in last["streams"]),
        objects=sum(int(each["objects"]) for each in last["streams"]),
        samples=len(samples),
        pss_peak=max(sum(each.pss for each in sample.processes.values()) for sample in samples),
        processes=processes,
        engine=engine,
        replaced=replaced,
        unfinished=unfinished,
        exact=exact,
        growing=growing,
    )


def compare(samples: Sequence[Sample]) -> tuple[dict[str, dict[str, Change]], dict[str, Change]]:
    """The figures of each process, and of the engine as a whole, in the first and in the last quarter."""
    warm = samples[int(len(samples) * WARM_UP) :]
    size = max(2, len(warm) // 4)
    first, last = warm[:size], warm[-size:]
    names = sorted({name for sample in last for name in sample.processes})
    figures: dict[str, float] = {"uss": MIB, "pss": float("inf"), "descriptors": MOST_MORE, "threads": MOST_MORE}
    processes = {
        name: {
            what: _change(_of_process(first, name, what), _of_process(last, name, what), slack)
            for what, slack in figures.items()
        }
        for name in names
    }
    rates = ("log_lines", "s3_requests", "objects")
    engine = {
        f"{what}_per_min": _change(
            _per_min(first, what), _per_min(last, what), MOST_MORE_PER_MIN if what != "objects" else float("inf")
        )
        for what in rates
    }
    states = [median(each.state_bytes for each in quarter) for quarter in (first, last)]
    return processes, engine | {"state_bytes": _change(states[0], states[1], MOST_MORE_STATE)}


def _of_process(samples: Sequence[Sample], name: str, what: str) -> float:
    return median(
        [getattr(each.processes[name], what) for each in samples if name in each.processes] or [float("inf")]
    )


def _per_min(samples: Sequence[Sample], what: str) -> float:
    seconds = samples[-1].at_s - samples[0].at_s
    return (getattr(samples[-1], what) - getattr(samples[0], what)) / seconds * 60


def _change(first: float, last: float, slack: float) -> Change:
    """Growth is what is more than the slack, and more than the share that is allowed."""
    growth = (last / first - 1) if first else 0.0
    return Change(first, last, round(growth * 100, 1), last > first * (1 + MOST_GROWTH) + slack)


# --- what is shown ---------------------------------------------------------------------------------------


def show(console: Console, result: SoakResult) -> None:
    """The result for people."""
    title = f"{result.events:,} events in {result.minutes:g} minutes: first quarter → last quarter"
    table = Table("process", "own memory (USS)", "growth", "PSS", "descriptors", "threads", title=title)
    for name, figures in result.processes.items():
        uss = figures["uss"]
        table.add_row(
            name,
            _shown(uss, _mib),
            f"{uss.growth_percent:+.1f} %",
            _shown(figures["pss"], _mib),
            _shown(figures["descriptors"], _number),
            _shown(figures["threads"], _number),
        )
    console.print(table)
    table = Table("the engine", "first → last quarter", "growth")
    for what, change in result.engine.items():
        table.add_row(what.replace("_", " "), _shown(change, _number), f"{change.growth_percent:+.1f} %")
    console.print(table)
    console.print(
        f"{result.segments:,} segments, {result.objects:,} objects; largest size of all processes "
        f"{_mib(result.pss_peak)} (limit {result.limit})"
    )
    for each in result.growing:
        console.print(f"[red]{each}[/]")
    console.print(
        "[red]it grows[/]" if result.growing else "[green]nothing grows; every event landed exactly once[/]"
    )


def _shown(change: Change, text: Callable[[float], str]) -> str:
    shown = f"{text(change.first)} → {text(change.last)}"
    return f"[red]{shown}[/]" if change.grows else shown


def _mib(size: float) -> str:
    return f"{size / MIB:.1f} MiB"


def _number(value: float) -> str:
    return f"{value:,.0f}"


def main() -> int:
    """Run it; 1 when something grows."""
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long it is written (default: 10)")
    parser.add_argument("--collections", type=int, default=3, help="each of another kind of document (default: 3)")
    parser.add_argument("--sink", choices=("s3", "file"), default="s3", help="where the lake is (default: s3)")
    parser.add_argument("--limit", default="512MiB", help="memory.limit of the engine (default: 512MiB)")
    parser.add_argument("--rate", type=int, default=500, help="events per second in all (default: 500)")
    given = parser.parse_args()
    if given.minutes <= 0 or given.collections < 1 or given.rate < 1:
        parser.error("--minutes, --collections and --rate must be more than 0")
    options = Options(given.minutes, given.collections, given.sink, given.limit, given.rate)
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
