"""Two-phase publish over fsspec: an object is uploaded first, and appears later, at once and whole.

``Upload.write`` and ``Upload.seal`` make nothing visible: on S3 a multipart upload is no object before it is
completed, and what is smaller than a part stays in memory; on a local disk the bytes lie under a hidden name.
``Upload.publish`` makes the object appear, replacing an earlier one of the same key, and returns when the
store has acknowledged it. The only room that imports s3fs, and the one that translates its errors.
"""

from __future__ import annotations

import contextlib
import glob
import io
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import fsspec
import psutil
from fsspec.implementations.local import LocalFileSystem

from engine.config.tree import SinkConfig
from engine.errors import ConfigError, HeadraceError, TransientError

PART_SIZE = 6 * 2**20
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
_PROBE = "_headrace_probe"
_STALE_AFTER_S = 3600
_numbers = itertools.count()


class Upload(Protocol):
    """One object on its way. A file object for writing, as far as an encoder needs one."""

    def write(self, data: bytes) -> int:
        """Add bytes."""

    def seal(self) -> None:
        """Nothing more is written; everything but the publishing is done now."""

    def publish(self) -> None:
        """Make the object appear."""

    def discard(self) -> None:
        """Leave nothing behind."""

    @property
    def held(self) -> int:
        """Bytes that wait in memory for the object to be published."""

    def spill(self) -> None:
        """Bring what is held to the store, where it is still invisible."""


class Sink:
    """Where objects go: a URL, and the file system that it names.

    Raises:
        ConfigError: no such file system, or it cannot be set up.
    """

    def __init__(self, config: SinkConfig) -> None:
        self._url = config.url.rstrip("/")
        self._proved = False
        with translated(f"open the sink {self._url}"):
            options = _s3_options(config) if self._url.startswith(("s3://", "s3a://")) else {}
            self._fs, self._root = fsspec.core.url_to_fs(self._url, **options)

    def check(self) -> None:
        """Make sure that objects can be made here, without making one.

        Raises:
            ConfigError: no such bucket, or no right to it.
            TransientError: nobody answers.
        """
        with translated(f"write to the sink {self._url}"):
            if isinstance(self._fs, LocalFileSystem):
                Path(self._root).mkdir(parents=True, exist_ok=True)
            elif hasattr(self._fs, "call_s3"):
                bucket = self._root.partition("/")[0]
                self._fs.call_s3("head_bucket", Bucket=bucket)
        probe = self.open(_PROBE)
        probe.write(b"x")
        probe.spill()  # to begin a multipart upload takes the right to write
        probe.discard()
        self._proved = True

    def open(self, key: str) -> Upload:
        """Begin an object; ``key`` is relative to the sink's URL."""
        path = f"{self._root}/{key}"
        if isinstance(self._fs, LocalFileSystem):
            return LocalUpload(Path(path), proved=self._proved)
        return StagedUpload(self._fs, path, proved=self._proved)

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        """The keys that begin with ``prefix`` and come after ``after``, ascending; relative to the sink's URL."""
        with translated(f"list {self._url}/{prefix}", proved=self._proved):
            if hasattr(self._fs, "call_s3"):
                yield from (key for page in self._pages(prefix, after) for key in page.keys)
            else:
                yield from sorted(key for key in self._find(prefix) if key > after)

    def directories(self, prefix: str) -> list[str]:
        """What ``prefix`` can go on with up to the next ``/``, with it, each with ``prefix`` in front."""
        with translated(f"list {self._url}/{prefix}", proved=self._proved):
            if hasattr(self._fs, "call_s3"):
                return [each for page in self._pages(prefix, "", "/") for each in page.directories]
            found = {
                key[: key.index("/", len(prefix)) + 1] for key in self._find(prefix) if "/" in key[len(prefix) :]
            }
            return sorted(found)

    def _pages(self, prefix: str, after: str, delimiter: str = "") -> Iterator[_Page]:
        bucket, _, path = self._root.partition("/")
        base = f"{path}/" if path else ""
        asked = {"Bucket": bucket, "Prefix": base + prefix, "Delimiter": delimiter, "StartAfter": base + after}
        asked = {name: value for name, value in asked.items() if value and (name != "StartAfter" or after)}
        while True:
            answer = self._fs.call_s3("list_objects_v2", **asked)
            keys = [each["Key"].removeprefix(base) for each in answer.get("Contents", ())]
            yield _Page(keys, [each["Prefix"].removeprefix(base) for each in answer.get("CommonPrefixes", ())])
            if not answer.get("IsTruncated"):
                return
            asked["ContinuationToken"] = answer["NextContinuationToken"]

    def _find(self, prefix: str) -> list[str]:
        """All keys below the last directory of ``prefix`` that begin with it, but for hidden files."""
        directory = f"{self._root}/{prefix.rpartition('/')[0]}".rstrip("/")
        found = (path.removeprefix(f"{self._root}/") for path in self._fs.find(directory))
        return [key for key in found if key.startswith(prefix) and not key.rpartition("/")[2].startswith(".")]


class _Page(NamedTuple):
    """One answer of a listing."""

    keys: list[str]
    directories: list[str]


class StagedUpload:
    """An object in a store whose fsspec files have ``autocommit=False``: s3fs and its like.

    State: the bytes of a small object, or the open file of a large one.

    Args:
        proved: the store has let us write before; see ``translated``.
    """

    def __init__(self, filesystem: Any, path: str, *, proved: bool) -> None:
        self._fs = filesystem
        self._path = path
        self._proved = proved
        self._sealed = False
        self._small: io.BytesIO | None = io.BytesIO()
        self._file: Any = None

    def write(self, data: bytes) -> int:
        """Add bytes; a part that is full is uploaded."""
        if self._small is not None:
            self._small.write(data)
            if self._small.tell() > PART_SIZE:
                self.spill()
        else:
            with translated(f"upload {self._path}", proved=self._proved):
                self._file.write(data)
        return len(data)

    @property
    def held(self) -> int:
        """Bytes that wait in memory for the object to be published."""
        return 0 if self._small is None else self._small.tell()

    def spill(self) -> None:
        """Go from memory to a multipart upload."""
        assert self._small is not None
        data, self._small = self._small.getvalue(), None
        with translated(f"upload {self._path}", proved=self._proved):
            self._file = self._fs.open(self._path, "wb", block_size=PART_SIZE, autocommit=False)
            self._file.write(data)
            self._file.flush()
            if self._sealed:
                self._file.close()

    def seal(self) -> None:
        """Upload the last part, if there are parts."""
        self._sealed = True
        if self._file is not None:
            with translated(f"upload {self._path}", proved=self._proved):
                self._file.close()

    def publish(self) -> None:
        """Complete the multipart upload, or put the small object in one request."""
        with translated(f"publish {self._path}", proved=self._proved):
            if self._file is not None:
                self._file.commit()
            else:
                assert self._small is not None
                self._fs.pipe_file(self._path, self._small.getvalue())

    def discard(self) -> None:
        """Abort the multipart upload, if there is one."""
        self._small = None
        if self._file is not None:
            with contextlib.suppress(HeadraceError), translated(f"abort {self._path}"):
                self._file.discard()
            self._file.closed = True  # else it would upload what is left in it when it is collected


class LocalUpload:
    """A file under a hidden name beside its own, until it is renamed.

    fsspec's own two-phase file lies in the system's temporary directory, from where a rename need not be atomic.
    """

    def __init__(self, path: Path, *, proved: bool) -> None:
        self._path = path
        self._proved = proved
        self._hidden = path.with_name(f".{path.name}.{os.getpid()}.{next(_numbers)}.tmp")
        with translated(f"write {path}", proved=proved):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._hidden.open("wb")

    def write(self, data: bytes) -> int:
        """Add bytes."""
        with translated(f"write {self._path}", proved=self._proved):
            return self._file.write(data)

    @property
    def held(self) -> int:
        """Nothing waits in memory."""
        return 0

    def spill(self) -> None:
        """Nothing to do."""

    def seal(self) -> None:
        """Bring everything to the disk."""
        with translated(f"write {self._path}", proved=self._proved):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def publish(self) -> None:
        """Rename, and bring the rename to the disk; then clear what crashed processes left of this object."""
        with translated(f"publish {self._path}", proved=self._proved):
            self._hidden.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
            for hidden in self._path.parent.glob(f".{glob.escape(self._path.name)}.*.tmp"):
                if _is_stale(hidden):
                    hidden.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the hidden file."""
        with contextlib.suppress(OSError):
            self._file.close()
            self._hidden.unlink(missing_ok=True)


def _is_stale(hidden: Path) -> bool:
    """Whether a hidden file is a crashed process's; an engine on another machine may be writing it just now."""
    pid = hidden.name.split(".")[-3]
    if not pid.isdecimal() or psutil.pid_exists(int(pid)):
        return False
    with contextlib.suppress(FileNotFoundError):  # somebody else has cleared it
        return time.time() - hidden.stat().st_mtime > _STALE_AFTER_S
    return False


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


@contextlib.contextmanager
def translated(operation: str, *, proved: bool = False) -> Iterator[None]:
    """Raise the file system's errors as ours.

    Args:
        proved: the configuration has worked before. Whatever goes wrong then is worth another attempt: stores
            answer "not found" for an upload that was completed by a request whose answer was lost, and
            "forbidden" for a token that has just run out.
    """
    try:
        yield
    except HeadraceError:
        raise
    except Exception as error:
        found = _translate(operation, error)
        if proved and isinstance(found, ConfigError):
            found = TransientError(found.operation, found.cause, found.remedy)
        raise found from error


def _translate(operation: str, error: Exception) -> HeadraceError:
    cause = f"{type(error).__name__}: {error}"
    name = type(error).__name__
    if isinstance(error, ImportError | ValueError):
        return ConfigError(operation, cause, "Check sink.url; a URL of another kind needs its fsspec package.")
    if isinstance(error, FileNotFoundError):
        return ConfigError(operation, cause, "Create the bucket (or directory), or correct sink.url.")
    if isinstance(error, PermissionError) or name in ("NoCredentialsError", "PartialCredentialsError"):
        remedy = (
            "Give credentials by the AWS chain or [sink.s3], with s3:PutObject, s3:AbortMultipartUpload "
            "and s3:ListBucket."
        )
        return ConfigError(operation, cause, remedy)
    return TransientError(operation, cause, "Is the store up, and sink.s3.endpoint_url right?")
