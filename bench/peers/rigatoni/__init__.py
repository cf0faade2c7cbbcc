"""Rigatoni (crates ``rigatoni-*`` 0.2.0), a change data capture library in Rust, to Parquet on S3.

``src/main.rs`` makes a program of it, with the settings that its guides recommend for throughput, cited there.
What is not comparable:

- Its Parquet has seven columns for any collection: the document is one column of JSON text.
- It reads the backlog from a resume token that is put into its state store beforehand, because by itself it can
  only start at the present time. The token is taken before the first insert, so it reads what the engine reads.
- It writes a batch when that is full, when a timer fires, or when it is told to stop. Its timer is set not to fire
  within a backlog, and it is told to stop after the last event, so its time includes no waiting.
- Its cost includes a write to the state store for every event, as far as that happens in its own process.
- It loads no collections.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Literal

from redis import Redis

from bench.measure import PEERS
from bench.peers import Landed, Peer, Task, Tell, landed_in_bucket, last_written

Watch = Literal["collection", "database"]

_SOURCES = Path(__file__).parent
_TARGET = PEERS / "rigatoni"
_PROGRAM, _STAMP = _TARGET / "release" / "rigatoni-peer", _TARGET / "stamp"
# "High throughput" in its production guide, and the most that it allows. It was a tenth faster than 5,000 when
# other processes used part of the machine, and as fast when none did (within the spread).
_BATCH = 10_000
# "Balanced (recommended)" in the same guide: events lost in a kill should be its fault, not that of our settings.
_BATCH_TO_KILL = 5000
# Longer than any backlog takes: its timer cuts a batch even while events keep coming.
_NEVER_S = 3600
# Its default.
_BATCH_TIMEOUT_S = 5
_PATIENCE_S = 120


class Rigatoni(Peer):
    """Rigatoni, watching a collection or its database.

    Watching the database it resumes as published. Watching the collection it gets help: version 0.2.0 does not
    resume there but opens its stream at the present time, so our program gives it the token from its store that it
    writes after each upload; that shows what it could do, not what it does.
    """

    name = "Rigatoni 0.2.0"
    kinds = ("stream",)

    def __init__(self, watch: Watch = "collection") -> None:
        self._watch = watch
        self.settings = f"watching the {watch}"

    def built(self) -> bool:
        """Built from these sources."""
        return _PROGRAM.exists() and _STAMP.exists() and _STAMP.read_text() == _stamp()

    def build(self, tell: Tell) -> bool:
        """By cargo, which takes some minutes the first time."""
        if self.built():
            return True
        cargo = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo" / "bin"))
        if not cargo:
            tell("there is no cargo to build Rigatoni with (see https://rustup.rs); left out")
            return False
        tell(f"building Rigatoni in {_TARGET}, which takes some minutes")
        command = [cargo, "build", "--release", "--locked", "--manifest-path", str(_SOURCES / "Cargo.toml")]
        if subprocess.run(command, env=os.environ | {"CARGO_TARGET_DIR": str(_TARGET)}, check=False).returncode:
            tell("Rigatoni could not be built; left out")
            return False
        _STAMP.write_text(_stamp())
        return True

    def prepare(self, task: Task) -> None:
        """Put the resume token where it looks for one."""
        name = task.collection if self._watch == "collection" else f"resume_token:database:{task.database}"
        with Redis.from_url(task.stack.valkey.url) as redis:
            for key in redis.scan_iter("rigatoni:*"):
                redis.delete(key)
            redis.set(f"rigatoni:resume_token:{name}", task.tokens[self._watch])

    def command(self, task: Task) -> list[str]:
        """With stderr discarded.

        It prints a warning there for most events of a quick burst, because it takes the counter in a cluster time
        for milliseconds, of which there are only a thousand in a second; it then writes the present time as
        ``cluster_time``. Its log is on stdout.
        """
        stack = task.stack
        arguments: dict[str, str | int] = {
            "uri": task.uri,
            "database": task.database,
            "collection": task.collection,
            "bucket": stack.bucket,
            "prefix": task.prefix,
            "endpoint": stack.s3.endpoint_url,
            "access-key": stack.s3.access_key,
            "secret-key": stack.s3.secret_key,
            "redis": stack.valkey.url,
            "watch": self._watch,
            "format": "parquet",
            "batch": _BATCH if task.events else _BATCH_TO_KILL,
            "batch-timeout-s": _NEVER_S if task.events else _BATCH_TIMEOUT_S,
            "patience-s": _PATIENCE_S,
            "events": task.events,
        }
        words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        return ["/bin/sh", "-c", 'exec "$0" "$@" 2>/dev/null', str(_PROGRAM), *words]

    def written(self, task: Task, log: Path) -> int:
        """By its own count."""
        return last_written(log)

    def landed(self, task: Task) -> Landed:
        """By its resume tokens."""
        return landed_in_bucket(task, "resume_token")


def _stamp() -> str:
    """A hash of the sources."""
    sources = sorted(path for path in _SOURCES.rglob("*") if path.suffix in (".rs", ".toml", ".lock"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
