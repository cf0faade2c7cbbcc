"""``python -m bench stream [--events N] [--rounds N] [--memory SIZE] [--json FILE]``."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import psutil

from bench.stream import measure_stream
from bench.workloads import WORKLOADS
from engine import __version__
from engine.local import LocalStack


def main() -> int:
    """Run a benchmark; print its figures, and one JSON line to a file if wanted."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", choices=["stream"])
    parser.add_argument("--events", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="orders")
    parser.add_argument("--memory", default="512MiB", help="memory.limit of the engine (default: 512MiB)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the result to this file, one JSON line")
    options = parser.parse_args()
    with LocalStack() as stack:
        result = measure_stream(
            stack,
            workload=options.workload,
            events=options.events,
            rounds=options.rounds,
            memory_limit=options.memory,
            tell=lambda text: print(text, file=sys.stderr),
        )
    for name, value in msgspec.to_builtins(result).items():
        print(f"{name:26} {value:,.2f}" if isinstance(value, float) else f"{name:26} {value}")
    if options.json:
        with options.json.open("ab") as file:
            file.write(
                msgspec.json.encode({"benchmark": options.name, **context(), **msgspec.to_builtins(result)})
            )
            file.write(b"\n")
    return 0 if result.exact else 1


def context() -> dict[str, Any]:
    """What a figure is worth nothing without: commit, machine, versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "version": __version__,
        "cores": psutil.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "machine": platform.platform(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    sys.exit(main())
