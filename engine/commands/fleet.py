"""Before an engine runs, it joins the others on its state store: see ``core.generations``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress

import msgspec

from engine.config import Config
from engine.core.generations import (
    FLEET_DOCUMENT,
    Generation,
    Generations,
    claimed,
    decode_generations,
    encode_generations,
    joined,
    selection_of,
)
from engine.core.sharing import Member, decode_members
from engine.core.specs import StreamSpec
from engine.errors import ConfigError, HeadraceError
from engine.owner import is_certainly_dead, this_owner
from engine.state.opening import open_retrying, open_store
from engine.state.seam import Acquired, StateStore
from engine.state.shared import amend

_POLL_S = 1.0

log = logging.getLogger("headrace")


def join(config: Config, specs: Sequence[StreamSpec], *, stays: bool = True) -> Generation:
    """The generation that an engine with these streams belongs to; it is introduced if it is new.

    An engine of a replaced selection waits for as long as one that has just died is still announced.

    Args:
        stays: it goes on running; see ``joined``.

    Raises:
        ConfigError: the selection has been replaced by another.
        StateLostError, TransientError: from the state store.
    """
    selection = selection_of(specs, config.sink.identity)
    until = time.monotonic() + config.lease.ttl
    with closing(open_retrying(config.state, config.sink, config.retry)) as store:
        while True:
            try:
                return _join(store, config, specs, selection, stays=stays)
            except ConfigError:
                if config.fleet.generation or time.monotonic() > until:
                    raise
            time.sleep(_POLL_S)


def _join(
    store: StateStore, config: Config, specs: Sequence[StreamSpec], selection: str, *, stays: bool
) -> Generation:
    living = {each.selection for each in _members(store).values()}

    def changed(found: Generations) -> Generations | None:
        return joined(found, specs, selection, config.fleet.generation, living, this_owner(), stays=stays)

    mine = _amend(store, changed).of(selection)
    assert mine is not None, "it has just joined"
    return mine


def leave(config: Config) -> None:
    """Release what this engine still holds, as far as the state store answers."""
    with suppress(HeadraceError), closing(open_store(config.state, config.sink)) as store:
        for stream, (_, holder) in store.read_all().items():
            if holder == this_owner():
                found = store.acquire(stream, holder, config.lease.ttl)
                if isinstance(found, Acquired):
                    store.release(found.lease)
        store.announce(this_owner(), "", config.lease.ttl)


def lead(store: StateStore, config: Config, generation: Generation) -> str | None:
    """Become the engine that hands over to this generation; returns the one that already is, if there is one."""
    member = Member(selection=generation.selection, generation=generation.number)
    store.announce(this_owner(), msgspec.json.encode(member).decode(), config.lease.ttl)
    living = _members(store)
    found = _amend(store, lambda found: claimed(found, generation.selection, this_owner(), living))
    mine = found.of(generation.selection)
    return None if mine is None or mine.by == this_owner() else mine.by


def _members(store: StateStore) -> dict[str, Member]:
    """The living engines, by owner."""
    texts = {owner: text for owner, text in store.announced().items() if not is_certainly_dead(owner)}
    return decode_members(texts)


def _amend(store: StateStore, change: Callable[[Generations], Generations | None]) -> Generations:
    def changed(_: int, text: str) -> str | None:
        made = change(decode_generations(text))
        return None if made is None else encode_generations(made)

    return decode_generations(amend(store, FLEET_DOCUMENT, changed)[1])
