"""What the lake itself says about streams and backfills: their objects, by listing.

The state store says which segments of a stream may be in the lake. If the lake has later ones, the state was lost
or is older than the lake, and continuing from it would lose or duplicate events.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from typing import NamedTuple

from engine.config.tree import SinkConfig
from engine.core.naming import (
    DEAD_LETTER_PREFIX,
    LAYOUTS,
    TABLE_DIRECTORIES,
    Directories,
    collection_directory,
    number_in,
    partition_of,
    split_prefix,
)
from engine.core.specs import Spec, SplitSpec, StreamSpec
from engine.sink.objects import Sink

WAIT_S = 1.0
_SHARD = re.compile("[0-9a-f]{4}/")
_NOT_DATABASES = {f"{DEAD_LETTER_PREFIX}/", "_headrace/"}


class Range(NamedTuple):
    """Keys to list: those with a prefix that come after ``after``."""

    prefix: str
    after: str = ""


def object_beyond(
    sink: Sink,
    config: SinkConfig,
    spec: StreamSpec,
    since: int | None,
    known: int,
    pool: Executor,
    beat: Callable[[int], None],
) -> str | None:
    """The key of an object of the stream whose segment is later than ``known``; None if there is none.

    Args:
        since: a cluster time before which such an object has no events; None to look everywhere.
        pool: threads that list; a stream of many collections has at least as many ranges to list.
        beat: called at intervals meanwhile, with the number of keys seen so far.
    """
    seen = 0

    def first_beyond(range_: Range) -> str | None:
        nonlocal seen
        for key in sink.keys(range_.prefix, range_.after):
            seen += 1
            number = number_in(key, spec.stream)
            if number is not None and number > known:
                return key
        return None

    left = {pool.submit(first_beyond, range_) for range_ in ranges(sink, config, spec, since)}
    try:
        while left:
            done, left = wait(left, WAIT_S, FIRST_COMPLETED)
            beat(seen)
            if found := next((key for each in done if (key := each.result())), None):
                return found
        return None
    finally:
        for each in left:
            each.cancel()


def newest_of_splits(
    config: SinkConfig, database: str, collection: str, plan: str | None, since: int | None
) -> dict[str, str]:
    """The key of the newest object of each split of a collection's backfills, by the split's id.

    Args:
        plan: the id of its unfinished plan; None if there is none.
        since: the cluster time of the plan, before which nothing of it was read; None if not known.
    """
    sink = Sink(config)
    prefix = split_prefix(database, collection, plan)
    spec = SplitSpec(prefix, database, collection)
    newest: dict[str, str] = {}
    for range_ in ranges(sink, config, spec, since):
        for key in sink.keys(range_.prefix, range_.after):
            split = key.rpartition("/")[2].rpartition("-")[0]
            if split.startswith(prefix) and number_in(key, split) is not None:
                newest[split] = max(newest.get(split, ""), key, key=lambda each: number_in(each, split) or 0)
    return newest


def ranges(sink: Sink, config: SinkConfig, spec: Spec, since: int | None) -> Iterator[Range]:
    """Where objects of a stream can be that have events from the cluster time ``since`` on.

    Without a time, nothing is known about them, not even that they have the present layout.
    """
    yield Range(f"{DEAD_LETTER_PREFIX}/{spec.stream}")
    for shard in _shards(config) if since else all_shards(sink):
        if config.partition_by == "none" or not since:
            yield Range(shard + spec.stream)
        if config.partition_by == "none" and since:
            continue
        for directories in LAYOUTS:
            partition_by = "table" if directories is TABLE_DIRECTORIES else config.partition_by
            for directory in directories_of(sink, spec, directories, shard):
                if not since:
                    yield Range(directory)
                elif partition_by == "collection":
                    yield Range(directory + spec.stream)
                else:  # the order of keys is the order of times
                    yield Range(directory, f"{directory}{partition_of(since, partition_by, directories)}/")


def _shards(config: SinkConfig) -> list[str]:
    return [f"{number:04x}/" for number in range(config.prefix_shards)] or [""]


def all_shards(sink: Sink) -> list[str]:
    """Those of any ``sink.prefix_shards`` that was ever used."""
    return ["", *(each for each in sink.directories("") if _SHARD.fullmatch(each))]


def directories_of(sink: Sink, spec: Spec | None, directories: Directories, shard: str = "") -> Iterator[str]:
    """The directories of the collections that a stream can have events of; without one, of all collections."""
    if spec is not None and spec.named:
        carries_database = isinstance(spec, StreamSpec) and spec.carries_database
        names = (*spec.named, "") if carries_database else spec.named
        yield from (shard + collection_directory(spec.database, name, directories) for name in names)
        return
    databases = (
        [shard + collection_directory(spec.database, "", directories).partition("/")[0] + "/"]
        if spec is not None and spec.database
        else [each for each in sink.directories(shard) if _is_database(each.removeprefix(shard), directories)]
    )
    for database in databases:
        yield from (each for each in sink.directories(database) if each.endswith(f"{directories.suffix}/"))


def _is_database(directory: str, directories: Directories) -> bool:
    """Whether a directory at the top of the lake is a database's, in this layout."""
    if directories.database:
        return directory.startswith(directories.database)
    return "=" not in directory and directory not in _NOT_DATABASES
