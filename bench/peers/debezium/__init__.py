"""Debezium's MongoDB connector (3.6.1.Final) in its embedded engine, as a program of one Java file.

``src/main/java/Peer.java`` has its settings, with the reason for each. Two sinks:

- ``null`` counts Kafka Connect records and drops them: an upper bound, as nothing is encoded or written.
- ``files`` writes JSON lines, compressed by zstd, one local file for each of its batches. It has no sink of its
  own for Parquet or S3: what would upload and convert these is not in its figures.

What is not comparable: its JSON has the document as JSON text within the envelope. It stores offsets in a file, by
default once a minute: that is what the documentation recommends, and after a SIGKILL it repeats what came since. A
variant stores them after every batch.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Literal

from bench.measure import PEERS
from bench.peers import Landed, Peer, Task, Tell, landed_in_files, last_written, succeed

Sink = Literal["null", "files"]

_SOURCES = Path(__file__).parent
_TARGET = PEERS / "debezium"
_STAMP = _TARGET / "stamp"
_FLUSH_MS = 60_000
# As Kafka's own script for Connect starts its JVM. Of the collectors, the parallel one needs the least CPU.
_JVM = ("-Xms256M", "-Xmx2G", "-XX:+UseParallelGC")


class Debezium(Peer):
    """The connector in the asynchronous engine.

    Args:
        flush_ms: ``offset.flush.interval.ms``; 60,000 is the default, 0 means after every batch.
    """

    def __init__(self, sink: Sink = "files", flush_ms: int = _FLUSH_MS) -> None:
        self._sink = sink
        self._flush_ms = flush_ms
        self.name = f"Debezium 3.6.1, {'null sink' if sink == 'null' else 'JSON files'}"
        self.settings = f"offset.flush.interval.ms = {flush_ms}"
        self.keeps = sink != "null"

    def built(self) -> bool:
        """Compiled from these sources."""
        return _STAMP.exists() and _STAMP.read_text() == _stamp()

    def build(self, tell: Tell) -> bool:
        """By Maven and a JDK, from Maven Central."""
        if self.built():
            return True
        maven, compiler = shutil.which("mvn"), shutil.which("javac")
        if not maven or not compiler or not shutil.which("java"):
            tell("there is no JDK of 17 or later, or no Maven, for Debezium; left out")
            return False
        tell(f"fetching Debezium to {_TARGET}")
        shutil.rmtree(_TARGET, ignore_errors=True)
        libraries, classes = _TARGET / "lib", _TARGET / "classes"
        pom = str(_SOURCES / "pom.xml")
        copy = "dependency:copy-dependencies"
        commands = [
            [maven, "-q", "-B", "-f", pom, copy, "-DincludeScope=runtime", f"-DoutputDirectory={libraries}"],
            [compiler, "-d", str(classes), "-cp", f"{libraries}/*", str(_SOURCES / "src/main/java/Peer.java")],
        ]
        if not succeed(commands, "Debezium cannot be built; left out", tell):
            return False
        _STAMP.write_text(_stamp())
        return True

    def command(self, task: Task) -> list[str]:
        """A JVM."""
        arguments = {
            "uri": task.uri,
            "database": task.database,
            "collection": task.collection,
            "directory": str(task.directory),
            "kind": task.kind,
            "start": task.start,
            "sink": self._sink,
            "flush-ms": self._flush_ms,
            "events": task.events,
        }
        words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        log = "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"
        return ["java", *_JVM, log, "-cp", f"{_TARGET}/classes:{_TARGET}/lib/*", "Peer", *words]

    def written(self, task: Task, log: Path) -> int:
        """By our sink's count."""
        return last_written(log)

    def landed(self, task: Task) -> Landed:
        """By the keys of the documents."""
        return landed_in_files(task, "json_extract_string(after, '$._id')", {"after": "VARCHAR"})


def _stamp() -> str:
    """A hash of the sources."""
    sources = [_SOURCES / "pom.xml", _SOURCES / "src/main/java/Peer.java"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
