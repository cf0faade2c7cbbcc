"""Small objects that are replaced only if nobody else has replaced them: conditional writes to S3.

A write names the entity tag (ETag) of the object that it replaces, or that there must be none. The store compares
and writes in one step: of several writers, one wins. Whoever is told otherwise reads the object to learn what
happened, because an answer that was lost may have made the same write arrive twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, NamedTuple, Protocol

from msgspec.structs import replace

from engine.config.renewal import renewed_s3
from engine.config.tree import SinkConfig
from engine.errors import HeadraceError, TransientError
from engine.objects.failures import error_code, is_refused, translated
from engine.objects.store import (
    CONNECT_TIMEOUT_S,
    addressing,
    client_parameters,
    digest,
    put_parameters,
    request_parameters,
)

READ_TIMEOUT_S = 15
_READERS = 16
# Answers to a conditional write that did not happen, as far as the store knows: the condition does not hold;
# another write of the object was in progress; there is no such object.
_CONDITION_FAILED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404"}
_ABSENT = {"NoSuchKey", "404"}


class Stored(NamedTuple):
    """An object, and the entity tag that its replacement names."""

    body: bytes
    etag: str


class Listed(NamedTuple):
    """An object in a listing.

    Attributes:
        age_s: the time since it was last written, by the store's own clock.
    """

    etag: str
    age_s: float


class ConditionalObjects(Protocol):
    """Any method may raise ``TransientError`` or ``ConfigError``; a write may have happened all the same."""

    def get(self, key: str) -> Stored | None:
        """The object; None if there is none."""

    def get_all(self, keys: Collection[str]) -> Mapping[str, Stored]:
        """Several objects, as far as they exist."""

    def put(self, key: str, body: bytes, replacing: str | None) -> str | None:
        """Replace the object with this entity tag, or create it if ``replacing`` is None.

        Returns its new entity tag; None if the store did not do it, though an earlier attempt of the same write
        may have succeeded.
        """

    def put_always(self, key: str, body: bytes) -> None:
        """Create or replace the object, whatever is there."""

    def listed(self, prefix: str) -> Mapping[str, Listed]:
        """All objects whose keys start with ``prefix``, by key."""

    def delete(self, key: str) -> None:
        """Delete the object, if there is one."""

    def close(self) -> None:
        """Drop the connections."""


class S3Objects:
    """Objects below the URL of an S3 sink.

    State: the client, with the credentials found when it was created; created again when they are refused. The
    driver's own retries are off: they would turn a write that won into one that lost.

    Args:
        place: the part of the keys that all objects here begin with, such as ``_headrace/production/``.
    """

    def __init__(self, config: SinkConfig, place: str) -> None:
        self._config = config
        bucket, _, path = config.url.partition("://")[2].rstrip("/").partition("/")
        self._of_all = {"Bucket": bucket} | request_parameters(config.s3)
        self._base = f"{path}/{place}" if path else place
        self.url = f"{config.url.rstrip('/')}/{place}"
        self._lock = threading.Lock()
        self._made: Any = None
        self._proved = False

    def get(self, key: str) -> Stored | None:
        """The object; None if there is none."""
        with self._translated(f"read {self.url}{key}"):
            try:
                answer = self._client().get_object(**self._of_all, Key=self._base + key)
                return Stored(answer["Body"].read(), answer["ETag"])
            except Exception as error:
                if error_code(error) in _ABSENT:
                    return None
                raise

    def get_all(self, keys: Collection[str]) -> Mapping[str, Stored]:
        """Several objects, as far as they exist; some are read at the same time."""
        with ThreadPoolExecutor(_READERS, thread_name_prefix="state") as pool:
            found = zip(keys, pool.map(self.get, keys), strict=True)
            return {key: stored for key, stored in found if stored is not None}

    def put(self, key: str, body: bytes, replacing: str | None) -> str | None:
        """Replace the object with this entity tag, or create it; see ``ConditionalObjects.put``."""
        condition = {"IfNoneMatch": "*"} if replacing is None else {"IfMatch": replacing}
        with self._translated(f"write {self.url}{key}"):
            try:
                return self._put(key, body, condition)
            except Exception as error:
                if error_code(error) in _CONDITION_FAILED:
                    return None
                raise

    def put_always(self, key: str, body: bytes) -> None:
        """Create or replace the object, whatever is there."""
        with self._translated(f"write {self.url}{key}"):
            self._put(key, body, {})

    def _put(self, key: str, body: bytes, condition: Mapping[str, str]) -> str:
        answer = self._client().put_object(
            **self._of_all,
            Key=self._base + key,
            Body=body,
            ContentType="application/json",
            **digest(body),
            **condition,
            **put_parameters(self._config.s3),
        )
        return str(answer["ETag"])

    def listed(self, prefix: str) -> Mapping[str, Listed]:
        """All objects whose keys start with ``prefix``, by key."""
        found: dict[str, Listed] = {}
        with self._translated(f"list {self.url}{prefix}"):
            pages = self._client().get_paginator("list_objects_v2")
            for page in pages.paginate(**self._of_all, Prefix=self._base + prefix):
                now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
                for each in page.get("Contents", ()):
                    age_s = (now - each["LastModified"]).total_seconds()
                    found[each["Key"].removeprefix(self._base)] = Listed(each["ETag"], age_s)
        return found

    def delete(self, key: str) -> None:
        """Delete the object, if there is one."""
        with self._translated(f"delete {self.url}{key}"):
            self._client().delete_object(**self._of_all, Key=self._base + key)

    def close(self) -> None:
        """Drop the connections."""
        with self._lock:
            if self._made is not None:
                self._made.close()
                self._made = None

    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = _make_client(self._config)
            return self._made

    @contextmanager
    def _translated(self, operation: str) -> Iterator[None]:
        try:
            with translated(operation, proved=self._proved):
                yield
        except HeadraceError as error:
            if not is_refused(error.__cause__):
                raise
            known, self._config = self._config, replace(self._config, s3=renewed_s3(self._config.s3))
            if self._proved or self._config != known:
                self.close()
            if self._proved or self._config == known:
                raise
            remedy = "These credentials have been read again, and are others now."
            raise TransientError(error.operation, error.cause, remedy) from error.__cause__
        self._proved = True


def _make_client(config: SinkConfig) -> Any:
    import botocore.config
    import botocore.session

    settings = botocore.config.Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=_READERS,
        retries={"total_max_attempts": 1},
        s3=addressing(config.s3),
        # Checksums in trailers are not understood by every store; the entity tag and TLS are what counts here.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # A session of its own, which looks for credentials anew.
    session = botocore.session.get_session()
    session.register_component("data_loader", _descriptions())
    return session.create_client("s3", **client_parameters(config.s3), config=settings)


@cache
def _descriptions() -> Any:
    """The descriptions of services, which take a tenth of a second to parse."""
    import botocore.session

    return botocore.session.get_session().get_component("data_loader")


def refuses_conditions(objects: ConditionalObjects, key: str, body: Callable[[int], bytes]) -> str | None:
    """Try whether the store honours both conditions, on an object of this key, which must be nobody else's.

    Returns what it does wrong; None if it does it right.
    """
    first = objects.put(key, body(0), None)
    if first is None:
        return "it does not create an object that must not exist yet (If-None-Match: *)"
    if objects.put(key, body(1), None) is not None:
        return "it replaces an object that must not exist yet (If-None-Match: *)"
    second = objects.put(key, body(2), first)
    if second is None:
        return "it does not replace an object by its entity tag (If-Match)"
    if objects.put(key, body(3), first) is not None:
        return "it replaces an object by an entity tag that the object no longer has (If-Match)"
    found = objects.get(key)
    if found is None or found != Stored(body(2), second):
        return "what it returns is not what was last written"
    if key not in (found_there := objects.listed(key)) or found_there[key].etag != second:
        return "its listing does not show what was last written"
    objects.delete(key)
    if objects.put(key, body(4), second) is not None:
        return "it creates an object where one was to be replaced (If-Match)"
    return None
