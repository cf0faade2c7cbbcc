"""A writer process, with the messages of a supervisor."""

from __future__ import annotations

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
from engine.processes.child import ChildProcess
from engine.processes.forks import template
from engine.processes.link import ChildSettings
from engine.shared.arena import Arena
from engine.shared.slab import SlabLayout
from tests.processes.test_builds import CONTENT, intent, rows
from tests.sink.test_objects import s3_config

SEGMENTS = 2000


WARM_UP = 200


EVERY = 20


@pytest.mark.parametrize("place", ["file", "s3"])
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
