"""A state store for those who may wait: each call is made again while the store is away, within the budget.

Not for the supervisor's loop, which has a thread for that (``worker``).
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from engine.config.tree import RetryConfig, StateConfig
from engine.retries import retrying
from engine.state.seam import StateStore


class _Patient:
    """A store's methods, with retries: whether the attempt before had come through does not matter to them."""

    def __init__(self, config: StateConfig, retry: RetryConfig) -> None:
        self._store = open_store(config)
        self._retry = retrying(retry, what="the state store")

    def __getattr__(self, name: str) -> Any:
        return partial(self._retry, getattr(self._store, name))


def open_patiently(config: StateConfig, retry: RetryConfig) -> StateStore:
    """The store that ``state.url`` names, for one thread."""
    return cast(StateStore, _Patient(config, retry))


def open_store(config: StateConfig, *, read_only: bool = False) -> StateStore:
    """The store that ``state.url`` names. The connection is made by its first use.

    Args:
        read_only: it is only looked at (or checked), and not made where there is none: ``NoStateError`` then.
    """
    if config.url.startswith("sqlite:"):
        from engine.state.sqlite import SqliteStore

        return SqliteStore(config, read_only=read_only)
    from engine.state.redis import RedisStore

    return RedisStore(config, read_only=read_only)
