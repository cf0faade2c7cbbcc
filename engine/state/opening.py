"""Opening the configured state store; for callers that may wait, with retries while it is away.

The supervisor's loop must not wait, and has a thread for its calls (``thread``).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from msgspec.structs import replace

from engine.config.tree import LAKE, RetryConfig, SinkConfig, StateConfig
from engine.errors import ConfigError, url_without_password
from engine.quantities import Secret
from engine.retries import retrying
from engine.state.seam import StateStore

# Where the state lies below ``sink.url``; names that begin with an underscore are no data to any reader.
PLACE = "_headrace"


class _Retrying:
    """A store's methods with retries, which they allow whether or not the failed attempt took effect."""

    def __init__(self, config: StateConfig, sink: SinkConfig | None, retry: RetryConfig) -> None:
        self._store = open_store(config, sink)
        self._retry = retrying(retry, what="the state store")

    def __getattr__(self, name: str) -> Any:
        return partial(self._retry, getattr(self._store, name))


def open_retrying(config: StateConfig, sink: SinkConfig | None, retry: RetryConfig) -> StateStore:
    """The store that ``state.url`` names, with retries within the budget; for use by one thread."""
    return cast(StateStore, _Retrying(config, sink, retry))


def open_store(config: StateConfig, sink: SinkConfig | None = None, *, read_only: bool = False) -> StateStore:
    """The store that ``state.url`` names; it connects on first use.

    Args:
        sink: where the lake is; needed if the state is kept there.
        read_only: only for reading or checking. A missing SQLite file is not created: reading it raises
            ``NoStateError``.

    Raises:
        ConfigError: the state cannot be kept in this sink.
    """
    if config.url == LAKE:
        assert sink is not None
        return _open_in_lake(config, sink, read_only=read_only)
    if config.url.startswith("sqlite:"):
        from engine.state.sqlite import SqliteStore

        return SqliteStore(config, read_only=read_only)
    from engine.state.redis import RedisStore

    return RedisStore(config, read_only=read_only)


def location(config: StateConfig, sink: SinkConfig) -> str:
    """Where the state is, for messages; without a password."""
    if config.url == LAKE:
        return f"{url_without_password(sink.url).rstrip('/')}/{PLACE}"
    return url_without_password(config.url)


def _open_in_lake(config: StateConfig, sink: SinkConfig, *, read_only: bool) -> StateStore:
    scheme = sink.url.partition("://")[0]
    if scheme in ("s3", "s3a"):
        from engine.objects.conditional import S3Objects
        from engine.state.lake import LakeStore

        objects = S3Objects(sink, f"{PLACE}/{quote(config.prefix, safe='')}/")
        return LakeStore(objects, objects.url, read_only=read_only)
    if scheme == "file":
        from fsspec.implementations.local import LocalFileSystem

        from engine.state.sqlite import SqliteStore

        path = Path(LocalFileSystem._strip_protocol(sink.url)) / PLACE / "state.db"
        inside = replace(config, url=Secret(f"sqlite:///{quote(str(path))}"))
        return SqliteStore(inside, read_only=read_only, makes_directory=True)
    cause = f"only s3:// and file:// sinks can hold the state, and sink.url is {url_without_password(sink.url)}"
    raise ConfigError("open the state store", cause, "Set state.url to redis://host:port/0 or to sqlite:///path.")
