"""mq-bridge (1.2.0 on PyPI, a library in Rust): a change stream and whole collections to Parquet on S3.

A route from ``mongodb`` to ``object_store``, of which ``program.py`` makes a program. What is not comparable:

- Its rows are the documents alone: an insert and an update look alike, and there is no time and no position.
- Objects are named by the time when they are written. By the position in the source, which would let a repeated
  object replace the first, it writes one object for each event of a change stream.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.peers import FromPyPI, Landed, Task, landed_in_bucket, objects_in_bucket

_PROGRAM = Path(__file__).parent / "program.py"
# By default 512 events are an object, which is slow; sixteen times as many are as the engine's peers have them.
_BATCH = 8192


class MqBridge(FromPyPI):
    """A route that captures, and for a load one that reads what is there first."""

    name = "mq-bridge 1.2.0"
    package = "mq-bridge==1.2.0"

    def first_command(self, task: Task) -> list[str]:
        """Until there is a checkpoint."""
        return [*self.command(task)[:-1], "start"]

    def command(self, task: Task) -> list[str]:
        """From a route in the directory of the task."""
        source: dict[str, Any] = {
            "url": task.uri,
            "database": task.database,
            "collection": task.collection,
            "consume": "capture_all" if task.kind == "load" else "capture_new",
            "cursor_id": "peer",
            "checkpoint_store": f"file://{task.directory / self.checkpoint}",
        }
        target = {"url": f"s3://{task.stack.bucket}/{task.prefix}", "format": "parquet", "name_by": "write_time"}
        route = {"input": {"mongodb": source}, "output": {"object_store": target}, "batch_size": _BATCH}
        path = task.directory / "route.json"
        path.write_text(json.dumps(route))
        last = "-"
        if task.events:  # a load has a checkpoint only when it has read what is there
            last = "start" if task.kind == "load" else task.last
        return [self.program("python"), str(_PROGRAM), str(path), str(task.directory / self.checkpoint), last]

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
