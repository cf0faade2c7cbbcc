"""The object store that a sink's URL names: its fsspec file system, and how it is set up."""

from __future__ import annotations

import contextlib
import os
import threading
from base64 import b64encode
from collections.abc import Iterator
from hashlib import md5
from typing import Any
from urllib.parse import urlencode

import fsspec

from engine.config.renewal import renewed_s3
from engine.config.tree import S3Config, SinkConfig
from engine.errors import HeadraceError, TransientError
from engine.objects.calls import Calls
from engine.objects.failures import is_refused, translated

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
# Of one request, with delays of up to 1, 2, 4, 8 and 16 s between them. After that it is for [retry].
ATTEMPTS = 6


class ObjectStore:
    """The file system of a sink, set up again when the store no longer accepts our credentials.

    State: the file system, with the credentials found when it was created, and the configuration that has them, or
    says where they are. Owner: the sink. Uploads in progress keep the file system that they started with, and fail
    with it. Publishing threads renew it too.

    Attributes:
        of_data: what requests that make a data object say besides what all of them do.

    Args:
        request: makes each request.
    """

    def __init__(self, config: SinkConfig, request: Calls) -> None:
        self.request = request
        self._s3 = config.s3
        self._url = config.url.rstrip("/")
        self._is_s3 = config.is_s3
        storage_class = config.s3.storage_class if self._is_s3 else ""
        self.of_data = {"StorageClass": storage_class} if storage_class else {}
        self._lock = threading.Lock()
        self.filesystem, self.root = self._make()

    @contextlib.contextmanager
    def translated(self, operation: str, used: Any, *, proved: bool) -> Iterator[None]:
        """Like the function of that name, for operations of the file system ``used``.

        Credentials that were refused are read again; if they are others now, the error is worth another attempt.
        """
        try:
            with translated(operation, proved=proved):
                yield
        except HeadraceError as error:
            if not is_refused(error.__cause__) or not self._renew(used, proved=proved) or proved:
                raise
            remedy = "These credentials have been read again, and are others now."
            raise TransientError(error.operation, error.cause, remedy) from error.__cause__

    def _renew(self, refused: Any, *, proved: bool) -> bool:
        """Read the credentials again, once however many calls were refused; whether they may be others now."""
        with self._lock:
            if self.filesystem is not refused:
                return True
            s3 = renewed_s3(self._s3)
            if proved or s3 != self._s3:  # where the AWS chain has them, that does not show
                self._s3 = s3
                self.filesystem, _ = self._make()
            return self.filesystem is not refused

    def _make(self) -> tuple[Any, str]:
        options = _s3_options(self._s3) if self._is_s3 else {}
        filesystem, root = fsspec.core.url_to_fs(self._url, **options)
        if self._is_s3:
            filesystem.retries = 1  # its own, which would multiply those of the client library
        return filesystem, root


def digest(body: bytes) -> dict[str, str]:
    """The parameter of a put by which the store can tell a whole body from one whose sender died.

    S3 refuses a body that is shorter than announced. Some stores, and proxies in between, take what has arrived
    for the whole, in place of what was there before, unless they know the digest.
    """
    return {"ContentMD5": b64encode(md5(body, usedforsecurity=False).digest()).decode()}


def request_parameters(s3: S3Config) -> dict[str, str]:
    """The parameters of every request."""
    return {"RequestPayer": "requester"} if s3.requester_pays else {}


def put_parameters(s3: S3Config) -> dict[str, str]:
    """The parameters that every object is created with, of ``PutObject`` and of ``CreateMultipartUpload``."""
    found: dict[str, str] = {}
    if s3.encryption == "sse-s3":
        found["ServerSideEncryption"] = "AES256"
    elif s3.encryption == "sse-kms":
        found["ServerSideEncryption"] = "aws:kms"
        if s3.kms_key_id:
            found["SSEKMSKeyId"] = s3.kms_key_id
    if s3.tags:
        found["Tagging"] = urlencode(s3.tags)
    return found


def client_parameters(s3: S3Config) -> dict[str, Any]:
    """What a client of S3 is created with: where the store is, and how it is spoken to."""
    found = {
        "region_name": s3.region,
        "endpoint_url": s3.endpoint_url,
        "aws_access_key_id": s3.access_key,
        "aws_secret_access_key": s3.secret_key,
        "aws_session_token": s3.session_token,
        "verify": s3.ca_file,
    }
    return {name: value for name, value in found.items() if value}


def addressing(s3: S3Config) -> dict[str, Any]:
    """The section ``s3`` of a client's settings: how the bucket's host is formed."""
    found: dict[str, Any] = {} if s3.addressing == "auto" else {"addressing_style": s3.addressing}
    return found | ({"use_accelerate_endpoint": True} if s3.accelerate else {})


def _retries() -> dict[str, Any]:
    """How a request is repeated: by the client library alone, which sends less while the store says SlowDown.

    What is set in the environment for all clients of AWS takes precedence.
    """
    ours = {"mode": ("AWS_RETRY_MODE", "adaptive"), "total_max_attempts": ("AWS_MAX_ATTEMPTS", ATTEMPTS)}
    return {name: value for name, (variable, value) in ours.items() if not os.environ.get(variable)}


def _s3_options(s3: S3Config) -> dict[str, Any]:
    options: dict[str, Any] = {
        "client_kwargs": client_parameters(s3),
        # Added to those requests that take them; those of open files only look at the second.
        "s3_additional_kwargs": request_parameters(s3) | put_parameters(s3),
        "requester_pays": s3.requester_pays,
        "config_kwargs": {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": _retries(),
            "s3": addressing(s3),
        },
        "use_listings_cache": False,
        "skip_instance_cache": True,
        "fixed_upload_size": True,
    }
    return options
