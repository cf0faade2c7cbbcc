"""A writer process, with the messages of a supervisor."""

from __future__ import annotations

from multiprocessing import Pipe
from pathlib import Path
from statistics import median

import psutil
import pytest

from bench.local import LocalStack
from engine.config import Config, Secret, SinkConfig
from engine.config.tree import SourceConfig, TelemetryConfig
from engine.core import messages as msg
from engine.core.actions import Child
from engine.core.budget import MIB, divide
from engine.processes import writer as writer_module
from engine.processes.child import ChildProcess
from engine.processes.forks import template
from engine.processes.link import ChildSettings
from engine.processes.writer import Writer
from engine.shared.arena import Arena
from engine.shared.slab import SlabLayout
from tests.exploring import rare
from tests.processes.test_builds import CONTENT, intent, rows
from tests.sink.test_objects import s3_config

SEGMENTS = 2000


WARM_UP = 200


EVERY = 20


@pytest.mark.parametrize("place", [rare("file"), "s3"])
def test_many_segments_take_no_more_memory_than_a_few(
    place: str, stack: LocalStack, tmp_path: Path, unique: str
) -> None:
    """A real writer process, with the messages of a supervisor."""
    sink = SinkConfig(url=f"file://{tmp_path}/lake")
    if place == "s3":
        sink = s3_config(stack, f"s3://{stack.bucket}/{unique}")
    source = SourceConfig(uri=Secret("mongodb://x"), database="shop")
    config = Config(source=source, sink=sink, telemetry=TelemetryConfig(log_level="error"))
    settings = ChildSettings(config, divide(config.memory.limit, 1, 1), "test")
    arena = Arena.create(1 << 22)
    layout = SlabLayout([(CONTENT, rows(20, 1000))])
    layout.write(arena.slab(0, layout.size))
    with template():
        writer = ChildProcess(Child("writer", 0), settings, arena.fd, arena.size)
        sizes = []
        try:
            for start in range(0, SEGMENTS, EVERY):
                for seq in range(start, start + EVERY):
                    writer.send(msg.Batch("s", 1, seq, 0, layout.size))
                    writer.send(msg.Seal("s", 1, intent(seq, 20)))
                    writer.send(msg.Publish("s", 1, seq))
                await_published(writer, start + EVERY - 1)
                if start >= WARM_UP:
                    sizes.append(psutil.Process(writer.pid).memory_full_info().uss)
        finally:
            writer.kill()
            writer.close()
            arena.close()
    quarter = len(sizes) // 4
    first, last = median(sizes[:quarter]), median(sizes[-quarter:])
    # Threads of the pool start when first needed, each with its own heap. Leaks used to be 27 MiB or more.
    assert last <= first * 1.05 + 3 * MIB, [size >> 10 for size in sizes]


def await_published(writer: ChildProcess, seq: int) -> None:
    while True:
        assert writer.connection.poll(60), "no message from the writer"
        message = msg.decode_from_child(writer.connection.recv_bytes())
        assert not isinstance(message, msg.Failed), message
        if isinstance(message, msg.Published) and message.seq == seq:
            return


@pytest.mark.parametrize("size", [None, 1], ids=["copied", "in place"])
def test_a_bug_with_a_slab_stops_the_stream_and_keeps_no_slab(
    size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slab that is never freed would be missing for as long as the writer lives."""

    def broken(*_: object, **__: object) -> None:
        raise TypeError("a bug of ours")

    monkeypatch.setattr(writer_module, "read_slab", broken)
    source = SourceConfig(uri=Secret("mongodb://x"), database="shop")
    config = Config(source=source, sink=SinkConfig(url=f"file://{tmp_path}/lake"))
    budget = divide(config.memory.limit, 1, 1)
    ours, theirs = Pipe()
    writer = Writer(ChildSettings(config, budget, "test"), theirs, Arena.create(1 << 20))
    writer._handle(msg.Batch("s", 1, 7, 4096, budget.writer_pending if size else 100))
    said = []
    while ours.poll(0):
        said.append(msg.decode_from_child(ours.recv_bytes()))
    assert [each.offset for each in said if isinstance(each, msg.SlabFreed)] == [4096]
    (failed,) = [each for each in said if isinstance(each, msg.Failed)]
    assert (failed.kind, failed.stream, failed.generation) == ("fatal", "s", 1)
    assert "TypeError: a bug of ours" in failed.cause
