"""End to end on a change stream, compared with the server's limit and other ways in Python.

- ``drain``: the same stream read as raw replies, one after another, and discarded. Only a client that requests the
  next reply before it has processed the last one can be faster.
- ``drains``: the same through as many streams as the engine has on a split collection, concurrently.
- ``watch``: a bare ``for event in collection.watch()`` loop.
- ``usual``: that loop, ``Table.from_pylist``, ``write_table`` and s3fs.
- ``engine``: ``python -m engine --until-caught-up``, to Parquet on S3, including start and end.

All read the same events from the same time on, one after another, in several rounds; the loops, being slow, stop
after the first quarter. Cases that take turns get new events in each round, so that no stream has to scan those of
another case.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import duckdb
from msgspec import Struct
from pymongo import MongoClient

from bench.local import LocalStack
from bench.measure import Cost, python, run
from bench.workloads import change, insert
from engine.config import Size
from engine.quantities import decode_quantity

# Much slower than the rest, and steady: a quarter of the events is enough to measure their rate.
_LOOPS = ("watch", "usual")


class StreamResult(Struct):
    """Medians over the rounds; rates per second, CPU in microseconds per event, sizes in bytes.

    Attributes:
        tables: the format of a table of the changes; empty for none.
        reading: from the assignment of the stream to its last commit, by the engine's log: without the start.
        of_drain: the engine's rate as a share of the raw drain's.
        cpu_of_watch: the engine's CPU per event as a share of the bare loop's; 0 if that was not run.
        spread: the largest of the engine's rates over the rounds, divided by the smallest.
        drains_per_s: the raw drain through ``split`` concurrent streams.
        drain_server_us, engine_server_us: mongod's CPU per event meanwhile; 0 for a server given by --uri.
        processes: largest number of the engine's processes at one time.
        exact: every event landed once, by a count of its tokens.
        hash: a hash of the tokens and keys that landed, the same for every round on the same events.
    """

    workload: str
    events: int
    rounds: int
    split: int
    collections: int
    tables: str
    drain_per_s: float
    drains_per_s: float
    watch_per_s: float
    usual_per_s: float
    engine_per_s: float
    reading_per_s: float
    of_drain: float
    reading_of_drain: float
    cpu_of_watch: float
    drain_cpu_us: float
    watch_cpu_us: float
    usual_cpu_us: float
    engine_cpu_us: float
    drain_server_us: float
    engine_server_us: float
    spread: float
    pss_peak: int
    memory_limit: int
    processes: int
    bytes_per_event: float
    objects: int
    exact: bool
    hash: str


class Case(Struct, frozen=True):
    """The parameters of one measurement.

    Attributes:
        readers: ``source.max_readers``; 0 for the default.
        tables: the format of a table of the changes; empty for none.
        baselines: which of ``drain``, ``drains``, ``watch``, ``usual`` to compare the engine with.
    """

    workload: str = "orders"
    events: int = 500_000
    rounds: int = 3
    memory: str = "512MiB"
    split: int = 1
    collections: int = 1
    readers: int = 0
    lookup: bool = True
    tables: str = ""
    baselines: Sequence[str] = ("drain", "watch", "usual")


class _Landed(Struct):
    """What is in the lake after a round."""

    events: int
    tokens: int
    objects: int
    size: int
    hash: str

    def has_each_once(self, events: int) -> bool:
        """Whether these are so many events, none of them twice."""
        return self.events == self.tokens == events


def measure_stream(stack: LocalStack, uri: str, case: Case, tell: Callable[[str], None]) -> StreamResult:
    """Create the events once, then read them in rounds."""
    rounds = _Rounds(stack, uri, case, tell)
    database = uuid4().hex[:8]
    start = make_events(uri, database, case, tell)
    for _ in range(case.rounds):
        rounds.run(database, start)
    return rounds.result()


def measure_by_turns(
    stack: LocalStack, uri: str, cases: Sequence[Case], tell: Callable[[str], None]
) -> list[StreamResult]:
    """Run one round of each case in turn until each has had its rounds, so that any drift affects all of them."""
    turns = [_Rounds(stack, uri, case, tell) for case in cases]
    for number in range(max(case.rounds for case in cases)):
        for rounds in turns:
            if number >= rounds.case.rounds:
                continue
            database = uuid4().hex[:8]
            rounds.run(database, make_events(uri, database, rounds.case, tell))
            with MongoClient[dict[str, Any]](uri) as client:
                client.drop_database(database)
    return [rounds.result() for rounds in turns]


class _Rounds:
    """The rounds of one case: runs them, then summarizes them.

    State: the cost of each run, how long the engine read, and where it wrote.
    """

    def __init__(self, stack: LocalStack, uri: str, case: Case, tell: Callable[[str], None]) -> None:
        self.case = case
        self._stack = stack
        self._uri = uri
        self._tell = tell
        self._server = stack.mongo.members[0].pid if stack.mongo else None
        self._costs: dict[str, list[Cost]] = {name: [] for name in (*case.baselines, "engine")}
        self._reading: list[float] = []
        self._prefixes: list[str] = []
        self._databases: set[str] = set()

    def run(self, database: str, start: str) -> None:
        """Run the baselines, then the engine, on the events of this database from ``start`` on."""
        number = len(self._prefixes) + 1
        prefix = f"{database}-{number}"
        for name in self.case.baselines:
            cost = self._baseline(name, database, start, prefix)
            self._tell(f"round {number}: {name:6} {self._events(name) / cost.seconds:9,.0f}/s")
        cost = self._engine(database, start, prefix)
        self._tell(
            f"round {number}: engine {self.case.events / cost.seconds:9,.0f}/s"
            f"  {cost.cpu_s / self.case.events * 1e6:.1f} us  {cost.pss_peak / 2**20:.0f} MiB"
        )
        self._prefixes.append(prefix)
        self._databases.add(database)

    def _events(self, name: str) -> int:
        return max(1, self.case.events // 4) if name in _LOOPS else self.case.events

    def _baseline(self, name: str, database: str, start: str, prefix: str) -> Cost:
        usual = [f"{self._stack.bucket}/usual-{prefix}", json.dumps(_s3_options(self._stack))]
        more = {"usual": usual, "drains": [str(self.case.split)]}.get(name, [])
        lookup = "lookup" if self.case.lookup else "plain"
        arguments = [name, self._uri, database, start, str(self._events(name)), lookup, *more]
        self._costs[name].append(run(python("-m", "bench.baselines", *arguments), server=self._server))
        return self._costs[name][-1]

    def _engine(self, database: str, start: str, prefix: str) -> Cost:
        with tempfile.TemporaryDirectory() as directory:
            log = Path(directory) / "engine.log"
            path = Path(directory) / "engine.toml"
            path.write_text(config_toml(self._stack, self._uri, database, self.case, prefix, start))
            self._costs["engine"].append(run(catching_up(path), log=str(log), server=self._server))
            self._reading.append(reading_seconds(log))
        return self._costs["engine"][-1]

    def result(self) -> StreamResult:
        """Medians over the rounds, and whether everything landed exactly once."""
        case, costs = self.case, self._costs
        events = case.events
        landed = [landed_in(self._stack, prefix) for prefix in self._prefixes]
        counted = all(each.has_each_once(events) for each in landed)
        alike = len({each.hash for each in landed}) == len(self._databases)

        def per_event(what: str) -> dict[str, float]:
            return {
                name: median(getattr(cost, what) for cost in each) / self._events(name)
                for name, each in costs.items()
            }

        rates = {name: 1 / each for name, each in per_event("seconds").items()}
        cpu_us = {name: each * 1e6 for name, each in per_event("cpu_s").items()}
        server_us = {name: each * 1e6 for name, each in per_event("server_cpu_s").items()}
        drain = rates.get("drain", 0.0)
        watch_cpu_us = cpu_us.get("watch", 0.0)
        reading_per_s = events / median(self._reading)
        times = [cost.seconds for cost in costs["engine"]]
        return StreamResult(
            workload=case.workload if case.lookup or case.workload != "updates" else "updates, no lookup",
            events=events,
            rounds=len(self._prefixes),
            split=case.split,
            collections=case.collections,
            tables=case.tables,
            drain_per_s=drain,
            drains_per_s=rates.get("drains", 0.0),
            watch_per_s=rates.get("watch", 0.0),
            usual_per_s=rates.get("usual", 0.0),
            engine_per_s=rates["engine"],
            reading_per_s=reading_per_s,
            of_drain=rates["engine"] / drain if drain else 0.0,
            reading_of_drain=reading_per_s / drain if drain else 0.0,
            cpu_of_watch=cpu_us["engine"] / watch_cpu_us if watch_cpu_us else 0.0,
            drain_cpu_us=cpu_us.get("drain", 0.0),
            watch_cpu_us=watch_cpu_us,
            usual_cpu_us=cpu_us.get("usual", 0.0),
            engine_cpu_us=cpu_us["engine"],
            drain_server_us=server_us.get("drain", 0.0),
            engine_server_us=server_us["engine"],
            spread=max(times) / min(times),
            pss_peak=max(cost.pss_peak for cost in costs["engine"]),
            memory_limit=int(decode_quantity(Size, case.memory)),
            processes=max(cost.processes for cost in costs["engine"]),
            bytes_per_event=landed[-1].size / events,
            objects=landed[-1].objects,
            exact=counted and alike,
            hash=landed[-1].hash,
        )


def make_events(uri: str, database: str, case: Case, tell: Callable[[str], None]) -> str:
    """Write the events to a new database; returns the cluster time just before."""
    with MongoClient[dict[str, Any]](uri) as client:
        collections = [client[database][f"events{number}"] for number in range(case.collections)]
        stamp = client.admin.command("hello")["operationTime"]
        tell(f"writing {case.events:,} events of {case.workload} into {case.collections} collection(s)")
        if case.workload == "updates":
            change(collections[0], case.events)
        else:
            insert(collections, case.workload, case.events)
        return f"{stamp.time},{stamp.inc + 1}"


def config_toml(
    stack: LocalStack, uri: str, database: str, case: Case, prefix: str, start: str = "", interval: str = "30s"
) -> str:
    """A configuration for one run; ``start`` is a cluster time as ``seconds,increment``."""
    s3 = stack.s3
    seconds = int(start.partition(",")[0] or 0)
    at = datetime.fromtimestamp(seconds).astimezone().isoformat() if start else "now"
    collections = json.dumps([f"events{number}" for number in range(case.collections)])
    split = f"split = {{ events0 = {case.split} }}" if case.split > 1 else ""
    readers = f"max_readers = {case.readers}" if case.readers else ""
    return f"""\
[source]
uri = {json.dumps(uri)}
database = "{database}"
collections = {collections}
start = "{at}"
full_document = "{"update_lookup" if case.lookup else "default"}"
{split}
{readers}
[sink]
url = "s3://{stack.bucket}/{prefix}"
[sink.s3]
endpoint_url = "{s3.endpoint_url}"
access_key = "{s3.access_key}"
secret_key = "{s3.secret_key}"
region = "us-east-1"
[batch]
interval = "{interval}"
[state]
url = "{stack.valkey.url}"
prefix = "{prefix}"
[memory]
limit = "{case.memory}"
{_table_section(case.tables, prefix)}
[telemetry]
listen = ""
log_format = "json"
"""


def catching_up(config: Path) -> list[str]:
    """The command of an engine that ends where the stream was when it began."""
    return python("-m", "engine", "--config", str(config), "--until-caught-up")


def catalog_file(prefix: str) -> str:
    """Where a run's Iceberg catalog is."""
    return f"{tempfile.gettempdir()}/catalog-{prefix}.db"


def _table_section(tables: str, prefix: str) -> str:
    if not tables:
        return ""
    catalog = f"""{{ type = "sql", uri = "sqlite:///{catalog_file(prefix)}" }}"""
    return f"""[table]
format = "{tables}"
interval = "5s"
{f"catalog = {catalog}" if tables == "iceberg" else ""}"""


def _s3_options(stack: LocalStack) -> dict[str, Any]:
    s3 = stack.s3
    return {"key": s3.access_key, "secret": s3.secret_key, "endpoint_url": s3.endpoint_url}


def reading_seconds(log: Path) -> float:
    """From the first assignment of a stream to the end of the last, by the engine's log."""
    times: dict[str, list[datetime]] = {"stream assigned": [], "stream finished": []}
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        if entry["message"] in times:
            times[entry["message"]].append(datetime.fromisoformat(entry["time"]))
    return (max(times["stream finished"]) - min(times["stream assigned"])).total_seconds()


def landed_in(stack: LocalStack, tag: str) -> _Landed:
    """What landed in a round, read by DuckDB directly from S3."""
    filesystem = stack.s3.filesystem()
    database = duckdb.connect()
    database.register_filesystem(filesystem)
    files = f"s3://{stack.bucket}/{tag}/**/cdc_date=*/**/*.parquet"
    source = f"read_parquet('{files}', filename = true, union_by_name = true)"
    row = database.execute(
        "select count(*), count(distinct _cdc_token), count(distinct filename), "
        f"md5(string_agg(_cdc_token || _cdc_key, '' order by _cdc_token)) from {source}"
    ).fetchone()
    assert row is not None
    return _Landed(int(row[0]), int(row[1]), int(row[2]), int(filesystem.du(f"{stack.bucket}/{tag}")), str(row[3]))
