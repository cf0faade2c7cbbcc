"""The command ``docs``: the documents that messages refer to, wherever the package is installed.

The wheel has them below ``engine/documents`` (``pyproject.toml`` says which), under their paths in the repository;
an editable installation has the repository itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

_ENGINE = Path(__file__).parents[1]
# By the name for the command: where each lies in the repository.
DOCUMENTS = {
    "configuration": "configs/README.md",
    "reference": "configs/reference.toml",
    "operations": "configs/OPERATIONS.md",
    "lake": "configs/LAKE.md",
    "protocol": "engine/core/PROTOCOL.md",
    "benchmarks": "bench/README.md",
    "duckdb": "configs/duckdb/current_state.sql",
    "spark": "configs/spark/current_state.sql",
    "changelog": "CHANGELOG.md",
}
_ABOUT = {
    "configuration": "how an engine is configured, and all keys",
    "reference": "a configuration file with every key, its default and its meaning",
    "operations": "deployment, endpoints, metrics, alerts, failures, runbooks by message",
    "lake": "columns, types and keys, and how to read them with each engine",
    "protocol": "the guarantee, and what is not guaranteed",
    "benchmarks": "what was measured, and how",
    "duckdb": "current_state() for DuckDB: a collection as it stands",
    "spark": "the same for Spark",
    "changelog": "what has changed, by version",
}


def show(name: str | None) -> int:
    """Print a document, or a list of them; returns the exit code."""
    if name is None:
        for each, about in _ABOUT.items():
            print(f"headrace docs {each:14} {about}")
    else:
        sys.stdout.write(path_of(name).read_text(encoding="utf-8"))
    return 0


def path_of(name: str) -> Path:
    """Where a document is: in the installed package, or in the repository."""
    installed = _ENGINE / "documents" / DOCUMENTS[name]
    return installed if installed.exists() else _ENGINE.parent / DOCUMENTS[name]
