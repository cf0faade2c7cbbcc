"""Files are added to a table once, whoever else adds them meanwhile, and whatever the commit says."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress

import pyarrow as pa
import pytest

from engine.tables import table as module
from engine.tables.table import Bounds, ConflictError, DataFile, TableFile, add


def file(stream: str, seq: int, part: int = 0) -> DataFile:
    key = f"d/c_changes/cdc_date=2026-01-01/{stream}-{seq:012d}.{part}"
    return DataFile(stream, seq, key, 10, 2, datetime.date(2026, 1, 1), pa.schema([]), 1, Bounds(0, 0))


class Shared:
    """What is in the store: the files, and the coverage."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.covered: dict[str, int] = {}
        self.version = 0


class Format:
    """A table whose commits fail, or succeed and say otherwise, at random, while others commit in between."""

    identity, metadata_directory = "one", ""
    _compares = True

    def __init__(self, shared: Shared, rng: random.Random, others: Sequence[DataFile] = ()) -> None:
        self._shared, self._rng, self._others = shared, rng, others
        self._version = 0

    def coverage(self) -> Mapping[str, int]:
        self._version = self._shared.version
        return dict(self._shared.covered)

    def files(self) -> Sequence[TableFile]:
        raise NotImplementedError

    def expire(self, before: float) -> None:
        raise NotImplementedError

    def unused(self, keys: Collection[str], before: float, beat: Callable[[], None]) -> Collection[str]:
        raise NotImplementedError

    def commit(
        self,
        files: Sequence[DataFile],
        coverage: Mapping[str, int],
        removed: Sequence[TableFile] = (),
        *,
        same_rows: bool = False,
    ) -> None:
        if self._others and self._rng.random() < 0.4:
            with suppress(ConflictError):
                add(Format(self._shared, random.Random(self._rng.random())), prefix(self._others, self._rng))
        if self._compares and self._version != self._shared.version:
            raise ConflictError("commit", "stale")
        if (how := self._rng.random()) < 0.2:
            raise ConflictError("commit", "lost")
        self._shared.files += [each.key for each in files]
        self._shared.covered |= coverage
        self._shared.version += 1
        self._version = self._shared.version
        if how < 0.4:
            raise ConflictError("commit", "the answer was lost")


def test_each_file_is_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILES_MAX", 3)
    files = [file(f"s{stream}", seq, part) for stream in range(3) for seq in range(1, 6) for part in range(2)]
    for seed in range(500):
        rng, shared = random.Random(seed), Shared()
        for _ in range(5):
            with suppress(ConflictError):
                add(Format(shared, rng, prefix(files, rng)), prefix(files, rng))
            assert len(shared.files) == len(set(shared.files)), seed
        while len(shared.files) < len(files):
            with suppress(ConflictError):
                add(Format(shared, rng), files)
        assert sorted(shared.files) == sorted(each.key for each in files), seed


def test_a_commit_that_is_not_compared_is_caught() -> None:
    """The test above would see it."""

    class Careless(Format):
        _compares = False

    files = [file("s0", seq) for seq in range(1, 6)]
    doubled = 0
    for seed in range(50):
        rng, shared = random.Random(seed), Shared()
        with suppress(ConflictError):
            add(Careless(shared, rng, files), files)
        doubled += len(shared.files) > len(set(shared.files))
    assert doubled


def prefix(files: Sequence[DataFile], rng: random.Random) -> list[DataFile]:
    """The files of each stream up to some segment."""
    last = {f"s{number}": rng.randrange(6) for number in range(3)}
    return [each for each in files if each.seq <= last[each.stream]]
