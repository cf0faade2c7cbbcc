"""All benchmarks by name, with their default sizes and workloads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec import Struct

from bench import day, decode, growth, idle, live, merge, parts, peer
from bench.backfill import measure_backfill
from bench.local import LocalStack
from bench.peers import Kind
from bench.peers.everyone import everyone, variants_to_kill
from bench.stream import Case, measure_by_turns, measure_stream
from bench.workloads import WORKLOADS


class Options(Struct):
    """The options of the command line.

    Attributes:
        workload: a workload's or case's name, or ``all``.
        memory: ``memory.limit`` of the engines that are measured.
        uri: a MongoDB to use; empty for a local one.
        tell: called with messages on the progress.
    """

    events: int
    rounds: int
    workload: str
    memory: str
    uri: str
    tell: Callable[[str], None]

    def each(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The selected workloads."""
        return names if self.workload == "all" else (self.workload,)


class Benchmark(Struct):
    """One benchmark."""

    help: str
    run: Callable[[Options], Iterator[Struct]]
    events: int
    rounds: int = 3
    workload: str = "orders"
    workloads: tuple[str, ...] = tuple(WORKLOADS)


def _decode(options: Options) -> Iterator[Struct]:
    for case in options.each(decode.CASES):
        yield decode.measure_decode(case, options.events, options.rounds)


@contextmanager
def _servers(options: Options) -> Iterator[tuple[LocalStack, str]]:
    """The local servers, and the MongoDB to use."""
    with LocalStack(with_mongo=not options.uri) as stack:
        yield stack, options.uri or (stack.mongo.uri if stack.mongo else "")


def _scaled(events: float, workload: str) -> int:
    return max(1, int(events * _EVENTS.get(workload, 1.0)))


def _stream(options: Options) -> Iterator[Struct]:
    with _servers(options) as (stack, uri):
        for name in options.each(_STREAMS):
            workload, _, plain = name.partition("-")
            events = _scaled(options.events, workload)
            baselines = ("drain", "watch", "usual") if name == "orders" else ("drain", "watch")
            case = Case(workload, events, options.rounds, options.memory, lookup=not plain, baselines=baselines)
            yield measure_stream(stack, uri, case, options.tell)


def _split(options: Options) -> Iterator[Struct]:
    with _servers(options) as (stack, uri):
        for split in (1, 2):
            case = Case(
                options.workload,
                options.events,
                options.rounds,
                _MORE_MEMORY,
                split=split,
                baselines=("drain", "drains"),
            )
            yield measure_stream(stack, uri, case, options.tell)


def _collections(options: Options) -> Iterator[Struct]:
    with _servers(options) as (stack, uri):
        cases = [
            Case(
                options.workload,
                options.events,
                options.rounds,
                _MORE_MEMORY,
                collections=collections,
                readers=_READERS,
                baselines=(),
            )
            for collections in (1, 4, 20, 100)
        ]
        yield from measure_by_turns(stack, uri, cases, options.tell)


def _tables(options: Options) -> Iterator[Struct]:
    with _servers(options) as (stack, uri):
        cases = [
            Case(options.workload, options.events, options.rounds, _MORE_MEMORY, tables=tables, baselines=())
            for tables in ("", "iceberg", "delta")
        ]
        yield from measure_by_turns(stack, uri, cases, options.tell)


def _merge(options: Options) -> Iterator[Struct]:
    with LocalStack(with_mongo=False) as stack:
        for format_ in ("iceberg", "delta"):
            yield from merge.measure(stack, format_, options.events, options.tell)


def _day(options: Options) -> Iterator[Struct]:
    with LocalStack(with_mongo=False) as stack:
        yield from day.measure(stack, options.events, options.tell)


def _idle(options: Options) -> Iterator[Struct]:
    for collections in (1, 1000):
        with LocalStack() as stack:
            yield from idle.measure(stack, collections, options.events, options.tell)


def _growth(options: Options) -> Iterator[Struct]:
    with LocalStack() as stack:
        yield from growth.measure(stack, growth.points(options.events), options.tell)


def _backfill(options: Options) -> Iterator[Struct]:
    with _servers(options) as (stack, uri):
        for workload in options.each(tuple(WORKLOADS)):
            count = _scaled(options.events / _EVENTS["orders"], workload)
            yield measure_backfill(stack, uri, workload, count, options.rounds, _MORE_MEMORY, options.tell)


def _encode(options: Options) -> Iterator[Struct]:
    return parts.encode(options.workload, _scaled(options.events, options.workload), options.rounds)


def _slab(options: Options) -> Iterator[Struct]:
    return parts.slab(options.workload, _scaled(options.events, options.workload), options.rounds)


def _upload(options: Options) -> Iterator[Struct]:
    with LocalStack(with_mongo=False) as stack:
        yield from parts.upload(stack, options.rounds)


def _state(options: Options) -> Iterator[Struct]:
    with LocalStack(with_mongo=False) as stack:
        yield from parts.state(stack, options.rounds, options.events)


def _peer(options: Options) -> Iterator[Struct]:
    """The engine and the other tools by turns; then the effect of a SIGKILL on each."""
    fewer = max(1, options.events // 4)
    peers = peer.available(everyone(options.memory), options.tell)
    with LocalStack() as stack:
        kinds: tuple[Kind, ...] = ("stream", "load")
        for kind in kinds:
            yield from peer.measure(
                stack,
                peers,
                kind,
                workload=options.workload,
                events=options.events,
                rounds=options.rounds,
                tell=options.tell,
            )
        to_kill = peer.available(variants_to_kill(options.memory), options.tell)
        for kind in kinds:
            # A load is so fast that all of fewer documents would be there before it is killed.
            events = options.events if kind == "load" else fewer
            yield from peer.kill(stack, to_kill, kind, workload=options.workload, events=events, tell=options.tell)


def _latency(options: Options) -> Iterator[Struct]:
    with _servers(options) as (stack, uri):
        yield live.latency(stack, uri, options.events)


def _startup(options: Options) -> Iterator[Struct]:
    with _servers(options) as (stack, uri):
        yield live.startup(stack, uri, options.rounds)


def _memory(options: Options) -> Iterator[Struct]:
    with _servers(options) as (stack, uri):
        for workload in options.each(tuple(WORKLOADS)):
            events = _scaled(options.events, workload)
            yield live.memory(stack, uri, workload, events, options.memory)


# Workloads of large documents have fewer of them, for about as many bytes. The first has more, for a steady
# figure.
_EVENTS = {"orders": 4.0, "tiny": 2.0, "updates": 0.5, "fat": 0.04}
_STREAMS = (*WORKLOADS, "updates", "updates-plain")
# The server scans its log once for each stream: with the server on the same two cores, a second stream costs more
# than it gains.
_READERS = 1
# Two readers do not fit into 512 MiB; this is the engine's default.
_MORE_MEMORY = "1GiB"

BENCHMARKS: dict[str, Benchmark] = {
    "decode": Benchmark(
        "BSON bytes to record batches, compared with the driver's decoder on the same bytes",
        _decode,
        events=45_000,
        rounds=5,
        workload="all",
        workloads=decode.CASES,
    ),
    "stream": Benchmark(
        "a change stream end to end, compared with its raw drain, a watch() loop, and the usual Python way",
        _stream,
        events=1_000_000,
        workload="all",
        workloads=_STREAMS,
    ),
    "split": Benchmark("one hot collection through one and through two change streams", _split, events=1_000_000),
    "collections": Benchmark("1, 4, 20 and 100 collections", _collections, events=2_000_000),
    "backfill": Benchmark(
        "a whole collection, compared with raw scans, pymongoarrow, mongodump and mongoexport",
        _backfill,
        events=2_000_000,
    ),
    "tables": Benchmark("a change stream end to end, without tables and with them", _tables, events=1_000_000),
    "merge": Benchmark(
        "merges into a mirror: all documents, one in 100 at random, the latest such, all again",
        _merge,
        events=10_000_000,
        rounds=1,
    ),
    "day": Benchmark("1,440 commits to a table, with maintenance and without", _day, events=1440, rounds=1),
    "idle": Benchmark(
        "an engine without events on 1 and 1,000 collections; --events is how many seconds",
        _idle,
        events=120,
        rounds=1,
    ),
    "growth": Benchmark(
        "a change stream of ever larger documents, more columns, collections and segments",
        _growth,
        events=200_000,
        rounds=1,
    ),
    "peer": Benchmark(
        "other tools on the same events and servers, and the effect of a SIGKILL on each", _peer, events=400_000
    ),
    "latency": Benchmark("from a write to its visible object, at 1,000 events/s", _latency, events=15_000),
    "startup": Benchmark("from launch to the first event read", _startup, events=1000, rounds=5),
    "memory": Benchmark(
        "the size of the process tree over time, and memory.limit", _memory, events=300_000, workload="all"
    ),
    "encode": Benchmark("record batches to files: formats and compressions", _encode, events=25_000),
    "slab": Benchmark("record batches through shared memory", _slab, events=25_000),
    "upload": Benchmark("objects to S3 in two phases", _upload, events=0),
    "state": Benchmark("intents and commits to the state store", _state, events=300),
}
