"""Measure Headrace: ``python -m bench NAME [--events N] [--workload W] [--json FILE]``.

Every benchmark consists of comparisons within one run, alternating, on one machine: look at the ratios. Servers
are started locally (``bench.local``) unless --uri names another MongoDB. ``./scripts/bench`` runs all of them and
writes a report.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pyarrow as pa

from bench.results import append, context, show
from bench.suite import BENCHMARKS, Options
from engine.processes.forks import ALLOCATION


def main() -> int:
    """Run one benchmark; print its results, and append them to a file if requested."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name, help=benchmark.help, description=benchmark.help)
        command.add_argument("--events", type=int, default=benchmark.events, help="(default: %(default)s)")
        command.add_argument("--rounds", type=int, default=benchmark.rounds, help="(default: %(default)s)")
        choices = ["all", *sorted(benchmark.workloads)]
        command.add_argument(
            "--workload", choices=choices, default=benchmark.workload, help="(default: %(default)s)"
        )
        command.add_argument("--memory", default="512MiB", help="memory.limit of engines (default: %(default)s)")
        command.add_argument("--uri", default="", help="a MongoDB to use instead of a local one")
        command.add_argument("--quick", action="store_true", help="a twentieth of the events, one round")
        command.add_argument("--json", type=Path, metavar="FILE", help="append the results to this file")
    arguments = parser.parse_args()
    _as_engine_processes_are(sys.argv)
    options = Options(
        events=max(1, arguments.events // 20) if arguments.quick else arguments.events,
        rounds=1 if arguments.quick else arguments.rounds,
        workload=arguments.workload,
        memory=arguments.memory,
        uri=arguments.uri,
        tell=lambda text: print(text, file=sys.stderr, flush=True),
    )
    facts = context()
    wrong = 0
    for result in BENCHMARKS[arguments.name].run(options):
        print(show(arguments.name, result), flush=True)
        wrong += not getattr(result, "exact", True)
        if arguments.json:
            append(arguments.json, arguments.name, result, facts)
    return 1 if wrong else 0


def _as_engine_processes_are(arguments: list[str]) -> None:
    """Restart this process with the allocator settings of the engine's readers.

    They apply to what is measured in this process; other processes are started as users start them.
    """
    if any(os.environ.get(name) is None for name in ALLOCATION):
        os.environ.update(ALLOCATION)
        os.execv(sys.executable, [sys.executable, "-m", "bench", *arguments[1:]])
    assert pa.default_memory_pool().backend_name == "system"
    for name in ALLOCATION:
        del os.environ[name]


if __name__ == "__main__":
    sys.exit(main())
