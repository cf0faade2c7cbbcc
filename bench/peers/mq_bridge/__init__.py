"""mq-bridge (1.2.0 on PyPI, a library in Rust): a change stream and whole collections to Parquet on S3.

A route from ``mongodb`` to ``object_store``, of which ``program.py`` makes a program. What is not comparable:

- Its rows are the documents alone: an insert and an update look alike, and there is no time and no position.
- By itself it starts at the present time; a run before the first insert leaves a checkpoint there.
- Objects are named by the time when they are written. By the position in the source, which would let a repeated
  object replace the first, it writes one object for each event of a change stream.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from bench.peers import Environment, Landed, Peer, Task, Tell, landed_in_bucket, objects_in_bucket

_ENVIRONMENT = Environment("mq-bridge", ("mq-bridge==1.2.0",))
_PROGRAM = Path(__file__).parent / "program.py"
# By default 512 events are an object, which is slow; sixteen times as many are as the engine's peers have them.
_BATCH = 8192


class MqBridge(Peer):
    """A route that captures, and for a load one that reads what is there first."""

    name = "mq-bridge 1.2.0"

    def built(self) -> bool:
        """Installed."""
        return _ENVIRONMENT.built()

    def build(self, tell: Tell) -> bool:
        """From PyPI."""
        return _ENVIRONMENT.build(tell)

    def anchor(self, task: Task) -> None:
        """Let it leave a checkpoint at the present time."""
        if task.kind == "stream":
            task.directory.mkdir(parents=True, exist_ok=True)
            command = [*self.command(task)[:-1], "start"]
            subprocess.run(command, env=self.environment(task), check=True, capture_output=True, timeout=60)
            shutil.copy(_checkpoint(task), _anchor(task))

    def prepare(self, task: Task) -> None:
        """Put that checkpoint in place."""
        if task.kind == "stream":
            shutil.copy(_anchor(task), _checkpoint(task))

    def command(self, task: Task) -> list[str]:
        """From a route in the directory of the task."""
        source: dict[str, Any] = {
            "url": task.uri,
            "database": task.database,
            "collection": task.collection,
            "consume": "capture_all" if task.kind == "load" else "capture_new",
            "cursor_id": "peer",
            "checkpoint_store": f"file://{_checkpoint(task)}",
        }
        target = {"url": f"s3://{task.stack.bucket}/{task.prefix}", "format": "parquet", "name_by": "write_time"}
        route = {"input": {"mongodb": source}, "output": {"object_store": target}, "batch_size": _BATCH}
        path = task.directory / "route.json"
        path.write_text(json.dumps(route))
        last = "-"
        if task.events:  # a load has a checkpoint only when it has read what is there
            last = "start" if task.kind == "load" else task.last
        return [_ENVIRONMENT.program("python"), str(_PROGRAM), str(path), str(_checkpoint(task)), last]

    def environment(self, task: Task) -> dict[str, str]:
        """How it finds the bucket."""
        s3 = task.stack.s3
        return {
            "AWS_ACCESS_KEY_ID": s3.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.secret_key,
            "AWS_ENDPOINT_URL": s3.endpoint_url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
        }

    def written(self, task: Task, log: Path) -> int:
        """By the objects that have landed; reading them takes longer than writing them."""
        return objects_in_bucket(task) * _BATCH

    def landed(self, task: Task) -> Landed:
        """By the keys of the documents."""
        return landed_in_bucket(task, '_id."$oid"')


def _checkpoint(task: Task) -> Path:
    return task.directory / "checkpoint.json"


def _anchor(task: Task) -> Path:
    return task.directory.parent / "mq-bridge-checkpoint.json"
