"""Configuration files, and the problems found in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import load
from engine.errors import ConfigError

MINIMAL = '[source]\nuri = "mongodb://h"\ndatabase = "d"\ncollections = ["c"]\n[sink]\nurl = "file:///lake"\n'


def written(directory: Path, text: str) -> Path:
    path = directory / "config.toml"
    path.write_text(text)
    return path


def problems(path: Path | None, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]]
