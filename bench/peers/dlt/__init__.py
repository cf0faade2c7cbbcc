"""dlt (1.31.0 on PyPI, a library in Python): whole collections to Parquet on S3.

Its source for MongoDB is not on PyPI, so ``program.py`` gives it what that reads at its fastest: Arrow tables by
pymongoarrow, which dlt takes as they are. It has no change streams. What is not comparable: it writes all of a
collection to local files, then again as it wants them, and then copies these to S3.
"""

from __future__ import annotations

from pathlib import Path

from bench.peers import FromPyPI, Kind, Landed, Task, landed_in_bucket, last_written

_PROGRAM = Path(__file__).parent / "program.py"


class Dlt(FromPyPI):
    """A pipeline that replaces what an earlier one has loaded."""

    name = "dlt 1.31.0"
    kinds: tuple[Kind, ...] = ("load",)
    package = "dlt[filesystem,parquet]==1.31.0"
    companions = ("pymongoarrow==1.15.0", "s3fs==2026.9.0")

    def command(self, task: Task) -> list[str]:
        """With the pipeline's state in the directory of the task."""
        target = [task.stack.bucket, task.prefix, str(task.directory)]
        return [self.program("python"), str(_PROGRAM), task.uri, task.database, task.collection, *target]

    def environment(self, task: Task) -> dict[str, str]:
        """How it finds the bucket, zstd as the others have it, and no telemetry."""
        s3 = task.stack.s3
        credentials = "DESTINATION__FILESYSTEM__CREDENTIALS__"
        return {
            f"{credentials}AWS_ACCESS_KEY_ID": s3.access_key,
            f"{credentials}AWS_SECRET_ACCESS_KEY": s3.secret_key,
            f"{credentials}ENDPOINT_URL": s3.endpoint_url,
            f"{credentials}REGION_NAME": "us-east-1",
            "NORMALIZE__DATA_WRITER__COMPRESSION": "zstd",
            "DATA_WRITER__COMPRESSION": "zstd",
            "RUNTIME__DLTHUB_TELEMETRY": "false",
        }

    def written(self, task: Task, log: Path) -> int:
        """What it has read: it writes to S3 only at its end."""
        return last_written(log)

    def landed(self, task: Task) -> Landed:
        """By the keys of the documents."""
        return landed_in_bucket(task, "_id", f"**/{task.collection}/*.parquet")
