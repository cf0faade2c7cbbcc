"""A day of tables: 1,440 commits, a merge of the mirror every five, with maintenance every 60; then without."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
from msgspec import Struct, structs

from bench.local import LocalStack
from bench.merge import config_of, land
from engine.config import load
from engine.config.tree import Config
from engine.core.budget import MIB
from engine.core.naming import parts_of
from engine.lake.objects import Objects
from engine.quantities import Duration
from engine.sink.objects import Sink
from engine.state.opening import open_store
from engine.tables.formats import tables_of
from engine.tables.maintenance import Maintenance
from engine.tables.mirror import Mirror

_ROWS, _DOCUMENTS, _MERGE_EVERY = 50, 20_000, 5


class DayResult(Struct):
    """What a day leaves.

    Attributes:
        commits: to the changelog table.
        files: of the changelog table, and of the mirror.
        objects, bytes: below both roots, what only the metadata has; the lake's own objects are not counted.
        commit_first_s, commit_last_s: of one commit, the medians of the first and the last 60.
        uss: the unique memory of this process at each look, which is before each maintenance, in bytes.
        read_s: to open the changelog table and to count its rows, through the table.
    """

    format: str
    maintained: bool
    commits: int
    changelog_files: int
    mirror_files: int
    objects: int
    bytes: int
    commit_first_s: float
    commit_last_s: float
    read_s: float
    uss: list[int]


def measure(
    stack: LocalStack,
    commits: int,
    tell: Callable[[str], None],
    formats: Sequence[str] = ("iceberg", "delta"),
    maintain_every: int = 60,
) -> Iterator[DayResult]:
    """Each format, with maintenance, and for a third of the day without, whose commits become ever slower."""
    for format_ in formats:
        for maintained in (True, False):
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / "engine.toml"
                text = config_of(stack, format_, directory)
                path.write_text(text.replace(f"merge-{format_}", f"day-{format_}-{maintained}"))
                count = commits if maintained else commits // 3
                yield _day(load(path), format_, count, maintained, maintain_every, tell)


def _day(
    config: Config,
    format_: str,
    commits: int,
    maintained: bool,
    maintain_every: int,
    tell: Callable[[str], None],
) -> DayResult:
    rng = random.Random(1)
    tables, objects = tables_of(config), Objects(config.sink)
    store = open_store(config.state, config.sink)
    changes, table = tables.open("bench", "docs_changes", by_day=True), tables.open("bench", "docs", by_day=False)
    mirror = Mirror(Sink(config.sink), config.sink, objects, changes, table, "bench/docs/", lambda: None, {})
    times: list[float] = []
    sizes: list[int] = []
    since = time.time()
    for number in range(1, commits + 1):
        started = time.perf_counter()
        land(config, objects, tables, number, sorted(rng.sample(range(_DOCUMENTS), _ROWS)), 1)
        times.append(time.perf_counter() - started)
        if number % _MERGE_EVERY == 0:
            mirror.merge()
        if number % maintain_every == 0:
            sizes.append(psutil.Process().memory_full_info().uss)
            what = f"{format_}, {'with' if maintained else 'without'} maintenance"
            tell(f"{what}: {number:,} commits, {sizes[-1] / MIB:.0f} MiB")
            if maintained:
                keep = structs.replace(config.maintenance, keep_snapshots=Duration(time.time() - since))
                done = Maintenance(structs.replace(config, maintenance=keep), store, tables).run_once()
                assert not done.failed, done.failed
            since = time.time()
    started = time.perf_counter()
    changes.coverage()
    files = changes.files()
    rows = sum(
        batch.num_rows for each in files for batch in objects.batches(each, 10**6, columns=lambda *_: ["_cdc_id"])
    )
    read_s = time.perf_counter() - started
    assert rows == commits * _ROWS
    table.coverage()
    sink = Sink(config.sink)
    own = [each for each in sink.stored("bench/") if parts_of(each.key) is None]
    return DayResult(
        format=format_,
        maintained=maintained,
        commits=commits,
        changelog_files=len(files),
        mirror_files=len(table.files()),
        objects=len(own),
        bytes=sum(each.size for each in own),
        commit_first_s=_median(times[:60]),
        commit_last_s=_median(times[-60:]),
        read_s=read_s,
        uss=sizes,
    )


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]
