"""All benchmarks by name, with what they run on by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import Struct

from bench import decode
from bench.workloads import WORKLOADS


class Options(Struct):
    """What the command line says.

    Attributes:
        workload: a workload's or case's name, or ``all``.
        memory: ``memory.limit`` of the engines that are measured.
        uri: a MongoDB to use; empty for one of our own.
        tell: is called with words on the progress.
    """

    events: int
    rounds: int
    workload: str
    memory: str
    uri: str
    tell: Callable[[str], None]

    def each(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The workloads that are wanted."""
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


BENCHMARKS: dict[str, Benchmark] = {
    "decode": Benchmark(
        "BSON bytes to record batches, beside the driver's decoder on the same bytes",
        _decode,
        events=45_000,
        rounds=5,
        workload="all",
        workloads=decode.CASES,
    ),
}
