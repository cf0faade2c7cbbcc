"""The documents of a collection's source, as far as it takes to compare them with the lake, on disk.

Of each document there are 16 bytes, a hash of its ``_cdc_id`` and one of its normal form, and its ``_id``. They
are divided as the fold divides its rows, so that one partition is in memory at a time: 16 bytes for each of its
documents, whatever their size.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from engine.lake.folding.fold import PARTITIONS, partition_of
from engine.scratch import scratch

_PAIR = np.dtype([("id", "<u8"), ("document", "<u8")])
# Bytes that wait in memory for each partition's files, before they are written.
_BUFFER_BYTES = 2**16

Pairs = npt.NDArray[np.void]
Matched = Literal["same", "different", "absent"]


def digest(data: bytes) -> bytes:
    """Eight bytes of a hash. Two different documents of one ``_id`` have the same once in 10 ** 19 times."""
    return blake2b(data, digest_size=8).digest()


class Digests:
    """See the module's docstring; a context manager, which removes what it has on disk.

    State: what waits to be written, by partition. Owner: the command that compares.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = scratch("verify", directory)
        self._pairs = [bytearray() for _ in range(PARTITIONS)]
        self._ids = [bytearray() for _ in range(PARTITIONS)]
        self.documents = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._directory)

    def add(self, id_: str, key: bytes, normal: bytes) -> None:
        """Add a document: its ``_cdc_id``, a document with only its ``_id``, and its normal form."""
        number = partition_of(id_)
        self._pairs[number] += digest(id_.encode()) + digest(normal)
        self._ids[number] += key
        self.documents += 1
        if len(self._pairs[number]) + len(self._ids[number]) >= _BUFFER_BYTES:
            self._write(number)

    def _write(self, number: int) -> None:
        for name, waiting in (("pairs", self._pairs[number]), ("ids", self._ids[number])):
            with self._file(name, number).open("ab") as file:
                file.write(waiting)
            waiting.clear()

    def _file(self, name: str, number: int) -> Path:
        return self._directory / f"{name}-{number}"

    def partition(self, number: int) -> Partition:
        """The documents of one partition, to be matched once."""
        self._write(number)
        pairs = np.fromfile(self._file("pairs", number), _PAIR)
        return Partition(pairs, self._file("ids", number))


class Partition:
    """The source's documents of one partition, and which of them the lake has.

    State: which have been matched. Owner: the command that compares.
    """

    def __init__(self, pairs: Pairs, ids: Path) -> None:
        self._order = np.argsort(pairs["id"], kind="stable")
        self._sorted = pairs[self._order]
        self._is_matched = np.zeros(len(pairs), np.bool_)
        self._ids = ids

    def match(self, documents: Sequence[tuple[bytes, bytes]]) -> list[Matched]:
        """How documents of the lake, each a hash of its ``_cdc_id`` and one of its normal form, match."""
        mine = np.frombuffer(b"".join(part for each in documents for part in each), _PAIR)
        if not len(self._sorted):
            return ["absent"] * len(mine)
        at = np.searchsorted(self._sorted["id"], mine["id"])
        at[at == len(self._sorted)] = 0
        is_there = self._sorted["id"][at] == mine["id"]
        is_same = is_there & (self._sorted["document"][at] == mine["document"])
        self._is_matched[at[is_there]] = True
        return [
            "same" if same else "different" if there else "absent"
            for same, there in zip(is_same.tolist(), is_there.tolist(), strict=True)
        ]

    def unmatched(self) -> Iterator[bytes]:
        """The ``_id``s, each as a document, of those that the lake does not have."""
        left = np.zeros(len(self._order), np.bool_)
        left[self._order[~self._is_matched]] = True
        if not left.any():
            return
        with self._ids.open("rb") as file:
            for is_left in left.tolist():
                size = file.read(4)
                key = size + file.read(int.from_bytes(size, "little") - 4)
                if is_left:
                    yield key
