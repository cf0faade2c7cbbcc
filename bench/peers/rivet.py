"""rivet (``rivet-cli`` on PyPI, a program in Rust): a change stream and whole collections to Parquet on S3.

Its Parquet has the document as one column of JSON text, beside ``_id`` and the operation. Its runs are bounded: a
run reads up to the present and ends, so no waiting is in its time but its own.
"""

from __future__ import annotations

from pathlib import Path

from bench.peers import FromPyPI, Landed, Task, landed_in_bucket, objects_in_bucket

# Rows per object when it is going to be killed: by default 100,000, of which there would be one.
_ROWS_TO_KILL = 10_000
# Of a load: by key, so that it resumes from the last page; this is its default for chunks of tables.
_PAGE = 100_000


class Rivet(FromPyPI):
    """``rivet run`` with ``environment: local``, which stands for its profile without pauses."""

    name = "rivet 0.32.2"
    package = "rivet-cli==0.32.2"

    def command(self, task: Task) -> list[str]:
        """From a configuration in the directory of the task."""
        path = task.directory / "rivet.yaml"
        page = _PAGE if task.events else _ROWS_TO_KILL
        mongo = f"  mongo: {{page_size: {page}, resume: true}}" if task.kind == "load" else ""
        rollover = "" if task.events else f", rollover: {_ROWS_TO_KILL}"
        cdc = f"    cdc: {{checkpoint: {task.directory / self.checkpoint}{rollover}}}"
        path.write_text(f"""\
source:
  type: mongo
  url: "{task.uri.replace("/?", f"/{task.database}?")}"
  environment: local
{mongo}
exports:
  - name: {task.collection}
    table: {task.collection}
    mode: {"full" if task.kind == "load" else "cdc"}
{"" if task.kind == "load" else cdc}
    format: parquet
    destination:
      type: s3
      bucket: {task.stack.bucket}
      prefix: {task.prefix}/
      region: us-east-1
      endpoint: {task.stack.s3.endpoint_url}
      access_key_env: RIVET_KEY
      secret_key_env: RIVET_SECRET
""")
        return [self.program("rivet"), "run", "--config", str(path)]

    def environment(self, task: Task) -> dict[str, str]:
        """Credentials."""
        return {"RIVET_KEY": task.stack.s3.access_key, "RIVET_SECRET": task.stack.s3.secret_key}

    def written(self, task: Task, log: Path) -> int:
        """By the objects that have landed: all but the last are full when it is going to be killed."""
        return objects_in_bucket(task) * _ROWS_TO_KILL

    def landed(self, task: Task) -> Landed:
        """By the keys of the documents."""
        return landed_in_bucket(task, "_id")
