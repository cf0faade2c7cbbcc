"""What a change did to the hot path: ``python -m bench.quick [COMMIT]``.

Compares this working tree with a commit: by default the last one if there are changes, else the one before it.
Both are measured in turns, so that what else the machine does meets both; of each figure the pairs' ratios are
taken, and their median is printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench import results

ROOT = Path(__file__).parents[1]
ROUNDS = 3


class Run(NamedTuple):
    """A benchmark that both trees run.

    Attributes:
        arguments: of ``python -m bench``.
        case: the field of a result that says what was measured.
        figures: the fields that are compared, in microseconds; less is better.
        rounds: how many pairs.
    """

    arguments: Sequence[str]
    case: str
    figures: Sequence[str]
    rounds: int = ROUNDS


RUNS = (
    Run(("decode", "--events", "6000"), "case", ("decoder_us",)),
    *(
        Run(("encode", "--workload", name, "--events", "4000"), "case", ("us_per_unit",))
        for name in ("orders", "nested", "wide", "fat")
    ),
    Run(("slab",), "case", ("us_per_unit",)),
    *(
        Run(("stream", "--workload", name, "--events", "100000"), "workload", ("engine_cpu_us",), rounds=2)
        for name in ("orders", "nested")
    ),
)


def main() -> int:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(prog="scripts/bench quick", description=__doc__)
    parser.add_argument("commit", nargs="?", help="what to compare with")
    commit = parser.parse_args().commit or ("HEAD" if _git("status", "--porcelain") else "HEAD~1")
    with _tree(commit) as before:
        print(f"before: {_git('log', '-1', '--format=%h %s', commit)}")
        print(f"{'what':36} {'before':>10} {'now':>10} {'now/before':>11}")
        for run in RUNS:
            for line in compared(run, before, ROOT):
                print(line, flush=True)
    return 0


def compared(run: Run, before: Path, now: Path) -> Iterator[str]:
    """A line for each figure of a benchmark."""
    found = [(_measured(run, before), _measured(run, now)) for _ in range(run.rounds)]
    for name in found[0][1]:
        pairs = [(old[name], new[name]) for old, new in found if name in old]
        if not pairs:
            yield f"{name:36} {'new':>10}"
            continue
        old, new = (median(each) for each in zip(*pairs, strict=True))
        ratio = median(new / old for old, new in pairs)
        yield f"{name:36} {old:7.2f} µs {new:7.2f} µs {ratio:11.2f}"


def _measured(run: Run, tree: Path) -> dict[str, float]:
    """The figures of one run, by what they are of."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        command = [sys.executable, "-m", "bench", *run.arguments, "--rounds", "1", "--json", file.name]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(run.arguments)} failed in {tree}: {done.stderr[-2000:]}")
        return {
            f"{run.arguments[0]} {_what(run, each)}": each[figure]
            for each in results.read(Path(file.name))
            for figure in run.figures
        }


def _what(run: Run, result: dict[str, Any]) -> str:
    workload = [run.arguments[2]] if "--workload" in run.arguments and run.case != "workload" else []
    return " ".join([*workload, result[run.case]])


@contextmanager
def _tree(commit: str) -> Iterator[Path]:
    """The files of a commit."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory:
        path = Path(directory) / "before"
        _git("worktree", "add", "--detach", str(path), commit)
        try:
            yield path
        finally:
            _git("worktree", "remove", "--force", str(path))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
