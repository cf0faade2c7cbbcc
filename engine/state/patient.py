"""A state store whose every call is made again while the store is away, within the retry budget."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from engine.config import Config
from engine.retries import retrying
from engine.state import StateStore, open_store


def open_patient(config: Config) -> StateStore:
    """The configured store, for those who can wait for it."""
    return cast("StateStore", _Patient(config))


class _Patient:
    def __init__(self, config: Config) -> None:
        self._store = open_store(config.state)
        self._retry = config.retry

    def close(self) -> None:
        self._store.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(retrying(self._retry, what="the state store"), getattr(self._store, name))
