"""Leases of dead owners: their successors need not wait for the lease to expire."""

from __future__ import annotations

import logging

from engine.owner import is_certainly_dead
from engine.state.seam import Acquired, HeldElsewhere, StateStore

log = logging.getLogger("headrace")


def take(store: StateStore, stream: str, owner: str, ttl_s: float, at_least: int = 0) -> Acquired | HeldElsewhere:
    """Acquire the stream's lease for ``ttl_s`` seconds if it is free or its holder is certainly dead.

    Args:
        at_least: the epoch that the record is known to have reached.

    Raises:
        StateLostError, TransientError: as ``StateStore.acquire``.
    """
    found = store.acquire(stream, owner, ttl_s, at_least=at_least)
    if isinstance(found, Acquired) or not is_certainly_dead(found.holder):
        return found
    # By name, so that another owner who took it in between keeps it.
    taken = store.acquire(stream, owner, ttl_s, replacing=found.holder, at_least=at_least)
    if isinstance(taken, Acquired):
        log.info("took over from a dead engine", extra={"fields": {"stream": stream, "holder": found.holder}})
    return taken
