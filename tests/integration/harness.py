"""An engine as a process, its lake, and a change stream of the plain driver to compare with."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from bson import json_util
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.json_util import RELAXED_JSON_OPTIONS as RELAXED
from bson.timestamp import Timestamp
from pymongo import MongoClient

from bench.local import LocalStack
from bench.local.servers import free_ports


@dataclass
class EngineConfig:
    """A configuration for one test, written to a file: small segments, short leases."""

    stack: LocalStack
    directory: Path
    name: str
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.stack.mongo is not None
        s3 = self.stack.s3
        (self.port,) = free_ports(1)
        defaults: dict[str, dict[str, Any]] = {
            "source": {
                "uri": self.stack.mongo.uri,
                "database": self.name,
                "collections": ["orders"],
                "start": "earliest",
            },
            "sink": {"url": f"s3://{self.stack.bucket}/{self.name}"},
            "sink.s3": {
                "endpoint_url": s3.endpoint_url,
                "access_key": s3.access_key,
                "secret_key": s3.secret_key,
                "region": "us-east-1",
            },
            "batch": {"rows": 500, "interval": "500ms"},
            "state": {"url": self.stack.valkey.url, "prefix": self.name},
            "lease": {"ttl": "2s"},
            "retry": {"initial_delay": "100ms", "max_delay": "1s"},
            "telemetry": {"listen": f"127.0.0.1:{self.port}", "log_level": "debug"},
        }
        for section, values in self.sections.items():
            defaults.setdefault(section, {}).update(values)
        self.sections = defaults
        self.path = self.directory / f"{self.name}.toml"
        self.write()

    def set(self, section: str, **values: Any) -> None:
        """Set keys, and write the file."""
        self.sections.setdefault(section, {}).update(values)
        self.write()

    def write(self) -> None:
        """Write the file."""
        lines = []
        for section, values in self.sections.items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {toml_value(value)}" for key, value in values.items()]
        self.path.write_text("\n".join(lines) + "\n")


def toml_value(value: Any) -> str:
    """A value in TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml_value(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(value)


# The engines of this process's tests, for reports on what they did.
started: list[Engine] = []


class Engine:
    """One engine process and its children."""

    def __init__(
        self,
        config: EngineConfig,
        *arguments: str,
        command: str = "run",
        environment: Mapping[str, str] | None = None,
        ignored: Sequence[signal.Signals] = (),
    ) -> None:
        self.config = config
        self.log_path = config.path.with_suffix(".log")
        started.append(self)
        before = {each: signal.signal(each, signal.SIG_IGN) for each in ignored}  # inherited by the engine
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "engine", command, "--config", str(config.path), *arguments],
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONFAULTHANDLER": "1"} | dict(environment or {}),
                process_group=0,
            )
        for each, handler in before.items():
            signal.signal(each, handler)

    def status(self) -> dict[str, Any] | None:
        """The answer of /status; None if there is none."""
        try:
            url = f"http://127.0.0.1:{self.config.port}/status"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return json.load(answer)  # type: ignore[no-any-return]
        except OSError:
            return None

    def get(self, path: str) -> tuple[int, str]:
        """The answer of an endpoint: status code and body."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.config.port}{path}") as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def wait_for(
        self, condition: Callable[[dict[str, Any]], bool], what: str, timeout_s: float = 60
    ) -> dict[str, Any]:
        """Wait until the status meets a condition."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status = self.status()
            if status and condition(status):
                return status
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.log_tail()}"
            time.sleep(0.05)
        raise AssertionError(f"{what}: not within {timeout_s} s: {self.log_tail()}")

    def wait_reading(self) -> dict[str, Any]:
        """Wait until all streams are being read."""
        return self.wait_for(
            lambda status: bool(status["streams"]) and all(each["reading"] for each in status["streams"]),
            "reading",
        )

    def pids(self, role: str) -> list[int]:
        """The pids of the ready children of a role."""
        status = self.status() or {"processes": []}
        return [each["pid"] for each in status["processes"] if each["process"].startswith(role) and each["ready"]]

    def template(self) -> list[int]:
        """The pid of the process that children are forked from, in a list."""
        found = []
        for each in self._children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just exited
                if each.ppid() == self.process.pid and "multiprocessing.forkserver" in " ".join(each.cmdline()):
                    found.append(each.pid)
        return found

    def kill_tree(self) -> None:
        """SIGKILL everything at once."""
        kill_all([self.process.pid, *self.children()])
        self.process.wait()

    def children(self) -> list[int]:
        """The pids of all processes below the supervisor."""
        return [child.pid for child in self._children()]

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill_supervisor(self) -> list[int]:
        """SIGKILL only the supervisor; the children that it leaves behind."""
        children = self.children()
        kill_all([self.process.pid])
        self.process.wait()
        return children

    def end(self, timeout_s: float = 60) -> int:
        """Wait for the engine to exit; the exit code. One that does not says what it was doing."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler prints the stacks of all threads
            self.process.wait(10)
            raise AssertionError(f"not ended after {timeout_s} s: {self.log_tail(20_000)}") from None

    def terminate(self, timeout_s: float = 60) -> int:
        """SIGTERM, and wait for the engine to exit; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.end(timeout_s)

    def log(self) -> str:
        """The whole log."""
        return self.log_path.read_text(errors="replace")

    def log_tail(self, size: int = 4000) -> str:
        """The end of the log."""
        return self.log()[-size:]

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill_tree()


def kill_all(pids: Sequence[int]) -> None:
    """SIGKILL these processes, if they still exist."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run_engine(config: EngineConfig, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run an engine to its end."""
    return subprocess.run(
        [sys.executable, "-m", "engine", *arguments, "--config", str(config.path)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def catch_up(config: EngineConfig) -> None:
    """Run an engine until it has caught up."""
    done = run_engine(config, "run", "--until-caught-up")
    assert done.returncode == 0, done.stderr[-4000:]


_NOT_DATA = re.compile("^_headrace/|^[^/=]+/[^/=]+/(data|metadata|_delta_log)/")


class Lake:
    """The objects below a prefix, and the tokens in each; an object is read again only if it has changed."""

    def __init__(self, stack: LocalStack, prefix: str) -> None:
        self.filesystem = stack.s3.filesystem()
        self.root = f"{stack.bucket}/{prefix}"
        self._known: dict[str, tuple[str, list[str]]] = {}

    def object_keys(self) -> list[str]:
        """The keys of all objects below the prefix."""
        return sorted(self._find())

    def _find(self) -> dict[str, str]:
        found: dict[str, Any] = self.filesystem.find(self.root, detail=True)
        # Before there is any object, an upload in progress may be listed as a directory, which has no tag.
        # What the engine keeps there for itself is not data, nor what belongs to tables alone.
        keys = {path.removeprefix(self.root + "/"): info for path, info in found.items() if "ETag" in info}
        return {key: info["ETag"] for key, info in keys.items() if not _NOT_DATA.search(key)}

    def tokens(self) -> dict[str, list[str]]:
        """The tokens of each Parquet object."""
        result = {}
        for key, etag in self._find().items():
            if not key.endswith(".parquet"):
                continue
            known = self._known.get(key)
            if known is None or known[0] != etag:
                known = etag, self.table(key, ["_cdc_token"]).column(0).to_pylist()
                self._known[key] = known
            result[key] = known[1]
        return result

    def table(self, key: str, columns: list[str] | None = None) -> pa.Table:
        """One object."""
        with self.filesystem.open(f"{self.root}/{key}", "rb") as file:
            return pq.ParquetFile(file).read(columns=columns)

    def footer(self, key: str) -> dict[str, str]:
        """What the engine has written into the footer of a Parquet object."""
        metadata = pq.ParquetFile(pa.BufferReader(self.content(key))).metadata.metadata
        return {name.decode(): value.decode() for name, value in metadata.items() if name.startswith(b"headrace.")}

    def remove(self, key: str) -> None:
        """Delete one object."""
        self.filesystem.rm(f"{self.root}/{key}")

    def move(self, key: str, to: str) -> None:
        """Rename one object."""
        self.filesystem.mv(f"{self.root}/{key}", f"{self.root}/{to}")

    def content(self, key: str) -> bytes:
        """The bytes of one object."""
        found: bytes = self.filesystem.cat_file(f"{self.root}/{key}")
        return found

    def query(self, script: str, query: str) -> pa.Table:
        """Run a script in DuckDB, with the lake for ``{{url}}``, and a query; the result of the query."""
        with duckdb.connect() as database:
            database.register_filesystem(self.filesystem)
            database.execute(script.replace("{{url}}", f"s3://{self.root}"))
            return database.sql(query).to_arrow_table()

    def rows(self) -> list[dict[str, Any]]:
        """All rows of all objects, ordered by token."""
        found = [
            row for key in self.object_keys() if key.endswith(".parquet") for row in self.table(key).to_pylist()
        ]
        return sorted(found, key=lambda row: row["_cdc_token"] or "")

    def rows_in(self, directory: Path) -> list[dict[str, Any]]:
        """All rows of all objects below a local directory."""
        return [row for path in directory.rglob("*.parquet") for row in pq.ParquetFile(path).read().to_pylist()]

    def keys(self) -> dict[str, Any]:
        """The document keys of events, by token."""
        columns = ["_cdc_token", "_cdc_key"]
        tables = [self.table(key, columns) for key in self.object_keys() if key.endswith(".parquet")]
        found = pa.concat_tables(tables).to_pylist()
        return {row["_cdc_token"]: json.loads(row["_cdc_key"]) for row in found if row["_cdc_key"] is not None}

    def check_no_token_twice(self) -> set[str]:
        """All tokens; fails if one is in two objects, or in one twice."""
        seen: dict[str, str] = {}
        for key, tokens in self.tokens().items():
            for token in tokens:
                assert token not in seen, f"{token} is in {seen[token]} and in {key}"
                seen[token] = key
        return set(seen)


class PlainStream:
    """An independent change stream of a database, read by the plain driver in a thread.

    State: the tokens of all events, and their document keys as relaxed Extended JSON of the driver.
    """

    def __init__(
        self, client: MongoClient[dict[str, Any]], database: str, start: Timestamp, *, splits: bool = False
    ) -> None:
        self.tokens: list[str] = []
        self.keys: dict[str, Any] = {}
        self._stopped = threading.Event()
        lenient = CodecOptions[dict[str, Any]](datetime_conversion=DatetimeConversion.DATETIME_AUTO)
        source = client.get_database(database, codec_options=lenient)
        # A stream that splits large events has tokens of another version.
        stages: list[dict[str, Any]] = [{"$changeStreamSplitLargeEvent": {}}] if splits else []
        self._stream = source.watch(stages, start_at_operation_time=start, max_await_time_ms=200)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            event = self._stream.try_next()
            if event is not None:
                token = event["_id"]["_data"]
                self.tokens.append(token)
                if "documentKey" in event:
                    self.keys[token] = json.loads(json_util.dumps(event["documentKey"], json_options=RELAXED))
            elif self._stopped.is_set():
                return

    def stop(self) -> set[str]:
        """All tokens, once no more events arrive."""
        self._stopped.set()
        self._thread.join()
        self._stream.close()
        assert len(set(self.tokens)) == len(self.tokens)
        return set(self.tokens)


def operation_time(client: MongoClient[dict[str, Any]]) -> Timestamp:
    """The server's latest cluster time."""
    stamp: Timestamp = client.admin.command("hello")["operationTime"]
    return stamp
