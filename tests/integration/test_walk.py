"""The commands of the README and of the guide to operations, run as they are written, in their order.

Under the repository's own configurations, with a server and stores given as the guide says: by the environment.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import DuplicateKeyError

from bench.local import LocalStack, Mongo
from bench.local.servers import free_ports
from tests.integration import workload
from tests.test_documents import ROOT, commands

Client = MongoClient[dict[str, Any]]
DATABASE = "production"
COLLECTIONS = ("users", "orders", "payments")
DOCUMENTS = ("README.md", "configs/OPERATIONS.md")
# What other tests run: the servers of the quickstart, the suite itself, an installation, tables of measurements.
ELSEWHERE = re.compile(r"\./scripts/|pip install|python -m (bench|tests|engine\.commands\.reference)")
ENDLESS = "headrace --config configs/prod.toml"
READY_S = 60


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a server to restore into."""
    mongo = Mongo(tmp_path_factory.mktemp("target"))
    mongo.start()
    yield mongo.uri
    mongo.stop()


class Walk:
    """A shell in a directory with the repository's ``configs``."""

    def __init__(self, stack: LocalStack, directory: Path, target: str) -> None:
        assert stack.mongo is not None
        shutil.copytree(ROOT / "configs", directory / "configs")
        self.directory, self.bucket = directory, f"walk-{directory.name.lower().replace('_', '-')}"
        stack.s3.make_bucket(self.bucket)
        (self.port,) = free_ports(1)
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "MONGODB_URI": stack.mongo.uri,
            "MONGODB_DATABASE": DATABASE,
            "S3_BUCKET": self.bucket,
            "REDIS_URL": f"{stack.valkey.url.rpartition('/')[0]}/7",  # nothing else is in that database
            "AWS_ACCESS_KEY_ID": stack.s3.access_key,
            "AWS_SECRET_ACCESS_KEY": stack.s3.secret_key,
            "AWS_ENDPOINT_URL_S3": stack.s3.endpoint_url,
            "HEADRACE_TELEMETRY__LISTEN": f"127.0.0.1:{self.port}",
            "TARGET_URI": target,
        }

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command line."""
        line = re.sub(r"(?<![\w/])headrace(?= )", f"{sys.executable} -m engine", command)
        if "--config" not in line and not re.search(r"--help|engine (docs|completion)", line):
            line += " --config configs/prod.toml"
        return subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", line],
            cwd=self.directory, env=self.environment, text=True, process_group=0,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, command: str) -> str:
        """Run a command line, one that runs for ever until it reads; what is wrong, "" for nothing."""
        if " top" in command:
            with self.running():
                return self._ended(self.start(command))
        if command == ENDLESS:
            with self.running():
                return ""
        return self._ended(self.start(command))

    def _ended(self, process: subprocess.Popen[str]) -> str:
        out, err = process.communicate(timeout=300)
        return f"{process.returncode}\n{out[-2000:]}\n{err[-2000:]}" if process.returncode else ""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While an engine runs, and after it ended well."""
        process = self.start(ENDLESS)
        try:
            self._wait_ready(process)
            yield
            os.killpg(process.pid, signal.SIGTERM)
            assert not self._ended(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _wait_ready(self, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            assert process.poll() is None, process.stderr and process.stderr.read()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("not ready")


def test_every_command_of_the_guides(mongo: Client, stack: LocalStack, tmp_path: Path, target: str) -> None:
    walk, rng = Walk(stack, tmp_path, target), random.Random(5)
    database = mongo[DATABASE]
    keys: dict[str, list[Any]] = {name: [] for name in COLLECTIONS}

    def write(count: int) -> None:
        for name in COLLECTIONS:
            for number in range(count):
                with contextlib.suppress(DuplicateKeyError):
                    workload.write(database[name], keys[name], rng, number)

    write(50)
    moment = datetime.now(UTC)
    lines = [line for name in DOCUMENTS for line in commands((ROOT / name).read_text())]
    written = [line.partition("#")[0].strip() for line in lines if not ELSEWHERE.search(line)]
    wanted = dict.fromkeys(each.replace("python -m engine", "headrace") for each in written)
    wrong = {}
    for command in wanted:
        if re.search(r"headrace --config|rewind", command):
            write(5)
        if "--until-caught-up" in command:
            moment = datetime.now(UTC)
        shown = re.sub(r"2026-\d\d-\d\dT0\d:00:00Z", moment.strftime("%Y-%m-%dT%H:%M:%SZ"), command)
        problem = walk.run(shown)
        if "backfill" in command and "--since" in command:  # the collections have keys of all types
            problem = "" if "--since and --until need ObjectIds" in problem else f"not refused: {problem}"
        if problem:
            wrong[shown] = problem
    mongo.drop_database(DATABASE)  # which no other test expects
    assert not wrong, "\n\n".join(f"{command}: {problem}" for command, problem in wrong.items())
    assert len(wanted) > 25
