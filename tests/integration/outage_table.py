"""Measures what an engine reports while one of its servers hangs or is down: a table in configs/OPERATIONS.md.

``python -m tests.integration.outage_table`` writes it, in about twelve minutes. ``test_outage_table`` waits for
the rows of 30 seconds, and with EXPLORE=1 measures all of them.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.local import LocalStack, Process
from engine.commands.reference import OPERATIONS, with_table
from tests.integration.harness import Engine, EngineConfig
from tests.integration.test_outages import inserting

SERVERS = ("MongoDB", "S3", "Valkey")
WAYS = ("stopped", "killed")
AT_S = (5, 30, 90)
COMMAND_TIMEOUT_S = 20
TEXT_MAX = 100
# Production settings, but segments are cut every second, so that there is always one to publish.
SECTIONS = {
    "batch": {"interval": "1s"},
    "lease": {"ttl": "30s"},
    "retry": {"initial_delay": "1s", "max_delay": "1m"},
    "telemetry": {"log_level": "info"},
}


@dataclass(frozen=True)
class Row:
    """What is reported at one moment, without details that vary."""

    health: str
    ready: str
    state: str
    problem: str
    command: str
    log: str

    def cells(self) -> list[str]:
        """The cells of the table."""
        return [self.health, self.ready, self.state, self.problem, self.command, self.log]


@contextmanager
def broken(stack: LocalStack, server: str, way: str) -> Iterator[None]:
    """The server hangs or is down meanwhile."""
    assert stack.mongo is not None
    process: Process = {
        "MongoDB": stack.mongo.members[0],
        "S3": stack.s3.process,
        "Valkey": stack.valkey.process,
    }[server]
    if way == "stopped":
        process.pause()
    else:
        process.kill()
    try:
        yield
    finally:
        if way == "stopped":
            process.resume()
        else:
            process.start()


@contextmanager
def running(stack: LocalStack, directory: Path, name: str) -> Iterator[Engine]:
    """An engine with a constant load."""
    assert stack.mongo is not None
    config = EngineConfig(stack, directory, name, {section: dict(each) for section, each in SECTIONS.items()})
    with Engine(config) as engine, inserting(stack.mongo.uri, name):
        wait_well(engine)
        yield engine
        assert engine.terminate() == 0, engine.log_tail()


def wait_well(engine: Engine) -> None:
    """Wait until it reads, and has committed something more."""
    before = engine.wait_for(lambda status: bool(status["streams"]), "a stream", 120)["streams"][0]
    events = before["events_committed"]
    engine.wait_for(
        lambda status: (
            status["streams"][0]["state"] == "reading"
            and not status["streams"][0]["problem"]
            and status["streams"][0]["events_committed"] > events
        ),
        "all is well",
        180,
    )


def observed(engine: Engine, log_from: int) -> Row:
    """What the engine reports now, and has logged since an offset; all endpoints must agree."""
    while True:
        status = stream_of(engine)
        answers = [engine.get(path) for path in ("/health", "/ready", "/metrics")]
        if (stream_of(engine)["state"], stream_of(engine)["reading"]) == (status["state"], status["reading"]):
            break  # nothing has changed in between
    (health, _), (ready, lines), (code, metrics) = answers
    stream, state, reading = status["stream"], status["state"], status["reading"]
    assert code == 200
    assert f'headrace_stream_state{{state="{state}",stream="{stream}"}} 1.0' in metrics
    assert f'headrace_reading{{stream="{stream}"}} {float(reading)}' in metrics
    assert (f"{stream}: stalled: " in lines) == bool(status["problem"])
    return Row(
        str(health),
        str(ready),
        f"{state}, reading {int(reading)}",
        settled(status["problem"]),
        "",
        "; ".join(log_messages(engine, log_from)),
    )


def stream_of(engine: Engine) -> dict[str, Any]:
    """The stream, as in /status."""
    found: dict[str, Any] = json.loads(engine.get("/status")[1])["streams"][0]
    return found


def settled(text: str) -> str:
    """A text without names, keys and numbers, shortened."""
    text = re.sub(r"\S*/\S*?(?=:?(?:\s|$))", "…", text)
    text = re.sub(r"\bt0\S*?(?=[:\s]|$)", "…", text)
    text = re.sub(r"\d+(\.\d+)*", "N", text).replace("|", "\\|")
    return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}…"


def log_messages(engine: Engine, log_from: int) -> list[str]:
    """The distinct messages of warnings and errors, in order of first appearance."""
    lines = engine.log_path.read_bytes()[log_from:].decode().splitlines()
    records = (json.loads(line) for line in lines if line.startswith("{"))
    return list(dict.fromkeys(each["message"] for each in records if each["level"] in ("warning", "error")))


def run_status(engine: Engine) -> str:
    """The output of ``headrace status``."""
    command = [sys.executable, "-m", "engine", "status", "--json", "--config", str(engine.config.path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"nothing within {COMMAND_TIMEOUT_S} s"
    if done.returncode:
        return (
            f"exit {done.returncode}: {settled(done.stderr.strip().splitlines()[-1].removeprefix('headrace: '))}"
        )
    return "the committed position"


def tried(engine: Engine, stack: LocalStack, server: str, way: str, at_s: Sequence[int]) -> list[Row]:
    """What is reported so many seconds after the failure; at the end the engine must have recovered."""
    log_from = engine.log_path.stat().st_size
    rows = []
    with ThreadPoolExecutor(1) as pool, broken(stack, server, way):
        begun = time.monotonic()
        for each in at_s:
            time.sleep(max(0.0, begun + each - time.monotonic()))
            command = pool.submit(run_status, engine)
            row = observed(engine, log_from)
            rows.append(replace(row, command=command.result()))
    wait_well(engine)
    return rows


def table(rows: dict[tuple[str, str, int], Row]) -> str:
    """The rows as Markdown."""
    heads = ["server", "is", "after", "/health", "/ready", "/status, /metrics", "problem", "`status`", "log"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for (server, way, at_s), row in rows.items():
        lines.append(f"| {' | '.join([server, way, f'{at_s} s', *row.cells()])} |")
    return "\n".join(lines) + "\n"


def read_table(document: str) -> dict[tuple[str, str, int], Row]:
    """The rows of the table in a document."""
    found = {}
    part = document.partition("<!-- outages: begin -->")[2].partition("<!-- outages: end -->")[0]
    for line in part.strip().splitlines()[2:]:
        server, way, after, *cells = (each.strip() for each in line.strip("|").split("|"))
        found[server, way, int(after.removesuffix(" s"))] = Row(*cells)
    return found


def main() -> None:
    """Measure everything, and write the table."""
    rows = {}
    with (
        LocalStack() as stack,
        tempfile.TemporaryDirectory() as directory,
        running(stack, Path(directory), "t0") as engine,
    ):
        for server, way in itertools.product(SERVERS, WAYS):
            for at_s, row in zip(AT_S, tried(engine, stack, server, way, AT_S), strict=True):
                rows[server, way, at_s] = row
                print(server, way, at_s, *row.cells(), sep=" | ", flush=True)
    OPERATIONS.write_text(with_table(OPERATIONS.read_text(), "outages", table(rows)))


if __name__ == "__main__":
    main()
