"""What a rate of events takes: cores, streams, writers and engines, estimated from what was measured.

The figures are those of ``bench/README.md``, and a test holds them against it: none of its workloads costs more
than is said here of its documents, or is slower.
"""

from __future__ import annotations

import math
from itertools import pairwise

from msgspec import Struct

SOURCE = "`headrace docs benchmarks`: two shared virtual cores, with MongoDB and S3 on them"
ASSUMPTIONS = (
    "half of the cores' time stays free, for peaks and for catching up after an outage",
    "the events are spread evenly over the streams; of a hot collection, source.split makes several",
    "inserts, replacements and deletes; where most events are updates that MongoDB looks up, twice the CPU, and "
    "half the events of a stream",
    "Parquet with zstd; MongoDB and the network are not counted",
)
UTILISATION = 0.5
# Of the CPU time of an event, at most: the rest is reading and decoding.
WRITERS_SHARE = 0.75
# Of a document's bytes of BSON, at most what lands as Parquet.
LANDED_SHARE = 0.3


class Measured(Struct, frozen=True):
    """Of documents of this size: the CPU time per event of all processes, and the events of one stream.

    Attributes:
        cpu_us: the most of any workload of such documents.
        events_per_s: the fewest.
    """

    document_bytes: int
    cpu_us: float
    events_per_s: float


MEASURED = (
    Measured(45, 3.4, 100_000),
    Measured(205, 5.9, 87_000),
    Measured(324, 6.2, 82_000),
    Measured(1_719, 32.5, 27_000),
    Measured(93_597, 991.0, 1_300),
)


class Needed(Struct, frozen=True):
    """What a rate takes.

    Attributes:
        cpu_us: CPU time per event.
        busy_cores: how many cores that keeps busy.
        cores: how many to provide.
        streams: change streams.
        writers: ``writers.processes``, of all engines together.
        engines: how many, each with the cores given.
        from_mongodb, to_sink: bytes per second, of documents and at most of objects.
    """

    events_per_s: float
    document_bytes: int
    cpu_us: float
    busy_cores: float
    cores: float
    streams: int
    writers: int
    engines: int
    from_mongodb: float
    to_sink: float


def needed_for(events_per_s: float, document_bytes: int, cores_per_engine: float) -> Needed:
    """What these events take."""
    measured = at_size(document_bytes)
    busy = events_per_s * measured.cpu_us / 1e6
    cores = busy / UTILISATION
    return Needed(
        events_per_s=events_per_s,
        document_bytes=document_bytes,
        cpu_us=measured.cpu_us,
        busy_cores=busy,
        cores=cores,
        streams=_whole(events_per_s / (measured.events_per_s * UTILISATION)),
        writers=_whole(cores * WRITERS_SHARE),
        engines=_whole(cores / cores_per_engine),
        from_mongodb=events_per_s * document_bytes,
        to_sink=events_per_s * document_bytes * LANDED_SHARE,
    )


def at_size(document_bytes: int) -> Measured:
    """What holds for documents of this size: between two that were measured, in proportion.

    Smaller documents than these cost as much as the smallest; larger ones in proportion to their size.
    """
    if document_bytes <= MEASURED[0].document_bytes:
        return Measured(document_bytes, MEASURED[0].cpu_us, MEASURED[0].events_per_s)
    for low, high in pairwise(MEASURED):
        if document_bytes <= high.document_bytes:
            share = (document_bytes - low.document_bytes) / (high.document_bytes - low.document_bytes)
            cpu_us = low.cpu_us + share * (high.cpu_us - low.cpu_us)
            interval = 1 / low.events_per_s + share * (1 / high.events_per_s - 1 / low.events_per_s)
            return Measured(document_bytes, cpu_us, 1 / interval)
    largest = MEASURED[-1]
    factor = document_bytes / largest.document_bytes
    return Measured(document_bytes, largest.cpu_us * factor, largest.events_per_s / factor)


def _whole(number: float) -> int:
    return max(1, math.ceil(number))
