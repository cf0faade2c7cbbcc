"""The results of benchmarks: one struct each, printed as lines and stored as JSON lines."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import psutil
from msgspec import Struct

from engine import __version__


def context() -> dict[str, Any]:
    """What is needed to interpret a figure: commit, machine, versions."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "version": __version__,
        "cores": psutil.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "machine": platform.platform(),
        "python": platform.python_version(),
        "pyarrow": version("pyarrow"),
        "pymongo": version("pymongo"),
        "numpy": version("numpy"),
    }


def show(name: str, result: Struct) -> str:
    """A result as text: its name, then one figure per line."""
    lines = [name]
    for key, value in msgspec.to_builtins(result).items():
        shown = f"{value:,.3f}" if isinstance(value, float) and abs(value) < 10 else value
        shown = f"{value:,.1f}" if isinstance(shown, float) else f"{value:,}" if type(value) is int else shown
        lines.append(f"  {key:28} {shown}")
    return "\n".join(lines)


def append(path: Path, name: str, result: Struct, facts: Mapping[str, Any]) -> None:
    """Append a result to a file, as one JSON line."""
    with path.open("ab") as file:
        file.write(msgspec.json.encode({"benchmark": name, **facts, **msgspec.to_builtins(result)}) + b"\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The results in a file."""
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
