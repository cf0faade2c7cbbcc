"""A short run of the quickstart's demo, and the generated reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from engine.commands.reference import (
    CONFIGURATION,
    PROTOCOL,
    configuration_with_reference,
    protocol_with_tables,
    reference_toml,
)

ROOT = Path(__file__).parents[2]


def test_the_demo_captures_everything_and_cleans_up(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MONGODB_URI"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.local.demo", "--seconds", "3"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment | {"TMPDIR": str(tmp_path), "COLUMNS": "160"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "each landed exactly once" in done.stdout
    assert "what landed" in done.stdout
    assert "s3://lake/demo/cdc_database=headrace_demo/cdc_collection=orders/" in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_reference_is_up_to_date() -> None:
    """If not: scripts/check --fix."""
    assert (ROOT / "configs" / "reference.toml").read_text() == reference_toml()
    document = CONFIGURATION.read_text()
    assert configuration_with_reference(document) == document
    document = PROTOCOL.read_text()
    assert protocol_with_tables(document) == document
