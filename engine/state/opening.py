"""Opening the configured state store; for callers that may wait, with retries while it is away.

The supervisor's loop must not wait, and has a thread for its calls (``thread``).
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from engine.config.tree import RetryConfig, StateConfig
from engine.retries import retrying
from engine.state.seam import StateStore


class _Retrying:
    """A store's methods with retries, which they allow whether or not the failed attempt took effect."""

    def __init__(self, config: StateConfig, retry: RetryConfig) -> None:
        self._store = open_store(config)
        self._retry = retrying(retry, what="the state store")

    def __getattr__(self, name: str) -> Any:
        return partial(self._retry, getattr(self._store, name))


def open_retrying(config: StateConfig, retry: RetryConfig) -> StateStore:
    """The store that ``state.url`` names, with retries within the budget; for use by one thread."""
    return cast(StateStore, _Retrying(config, retry))


def open_store(config: StateConfig, *, read_only: bool = False) -> StateStore:
    """The store that ``state.url`` names; it connects on first use.

    Args:
        read_only: only for reading or checking. A missing SQLite file is not created: reading it raises
            ``NoStateError``.
    """
    if config.url.startswith("sqlite:"):
        from engine.state.sqlite import SqliteStore

        return SqliteStore(config, read_only=read_only)
    from engine.state.redis import RedisStore

    return RedisStore(config, read_only=read_only)
