"""What a child tells its supervisor about its work: what a batch holds, and how long things took."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pyarrow.compute as pc

from engine.core.messages import Counted, Work
from engine.decode.decoder import DecodedBatch


def counted(batches: Sequence[DecodedBatch]) -> tuple[Counted, ...]:
    """The events of some batches by collection and operation."""
    return tuple(
        Counted(each.database, each.collection, found["values"] or "", found["counts"])
        for each in batches
        if "_cdc_op" in each.batch.schema.names
        for found in pc.value_counts(each.batch.column("_cdc_op")).to_pylist()
    )


def work_since(began: float, elsewhere_s: float = 0.0) -> Work:
    """Work that has just been done, since this moment of the monotonic clock.

    Args:
        elsewhere_s: how much of the time was spent on something else.
    """
    now = time.monotonic()
    return Work(began, now, now - began - elsewhere_s)
