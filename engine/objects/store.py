"""The object store that a sink's URL names: its fsspec file system, and how it is set up."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import fsspec

from engine.config.tree import SinkConfig
from engine.errors import HeadraceError
from engine.objects.calls import Calls
from engine.objects.failures import is_refused, translated

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60


class ObjectStore:
    """The file system of a sink, set up again when the store no longer accepts our credentials.

    State: the file system, with the credentials found when it was created. Owner: the sink. Uploads in progress
    keep the one that they started with, and fail with it. Publishing threads renew it too.

    Args:
        request: makes each request.
    """

    def __init__(self, config: SinkConfig, request: Calls) -> None:
        self.request = request
        url = config.url.rstrip("/")
        options = _s3_options(config) if url.startswith(("s3://", "s3a://")) else {}
        self._lock = threading.Lock()
        self._make: Callable[[], tuple[Any, str]] = partial(fsspec.core.url_to_fs, url, **options)
        self.filesystem, self.root = self._make()

    @contextlib.contextmanager
    def translated(self, operation: str, used: Any, *, proved: bool) -> Iterator[None]:
        """Like the function of that name, for operations of the file system ``used``."""
        try:
            with translated(operation, proved=proved):
                yield
        except HeadraceError as error:
            if proved and is_refused(error.__cause__):
                self._renew(used)
            raise

    def _renew(self, refused: Any) -> None:
        """The store refuses these credentials: read them again, once however many calls were refused."""
        with self._lock:
            if self.filesystem is refused:
                self.filesystem, _ = self._make()


def _s3_options(config: SinkConfig) -> dict[str, Any]:
    s3 = config.s3
    options: dict[str, Any] = {
        "key": s3.access_key or None,
        "secret": s3.secret_key or None,
        "endpoint_url": s3.endpoint_url or None,
        "client_kwargs": {"region_name": s3.region} if s3.region else {},
        "config_kwargs": {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S},
        "use_listings_cache": False,
        "skip_instance_cache": True,
        "fixed_upload_size": True,
    }
    return options


def put_parameters(config: SinkConfig) -> dict[str, str]:
    """The parameters that every object is created with, of ``PutObject`` and of ``CreateMultipartUpload``."""
    return {}
