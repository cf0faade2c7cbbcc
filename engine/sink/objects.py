"""Two-phase publish over fsspec: an object is uploaded first and becomes visible later, atomically.

``Upload.write`` and ``Upload.seal`` make nothing visible: on S3 a multipart upload is not an object until it is
completed, and an object smaller than a part stays in memory; on a local disk the bytes go to a hidden file.
``Upload.publish`` makes the object visible, replacing an earlier one with the same key, and returns once the store
has acknowledged it. ``objects.failures`` translates the file system's errors.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fsspec.implementations.local import LocalFileSystem

from engine.config.tree import SinkConfig
from engine.core.budget import MIN_PART
from engine.errors import ConfigError, HeadraceError, TransientError
from engine.objects.calls import Calls
from engine.objects.failures import error_code, translated
from engine.objects.store import ObjectStore, digest
from engine.sink.local import LocalUpload, is_stale

PART_SIZE = MIN_PART  # unless there is memory for more
_PROBE = "_headrace_probe"
_EXISTS = {"PreconditionFailed", "412"}


class Upload(Protocol):
    """One object being uploaded. A file object for writing, as far as an encoder needs one."""

    def write(self, data: bytes) -> int:
        """Add bytes."""

    def seal(self) -> None:
        """Finish writing: do everything but publish."""

    def publish(self) -> None:
        """Make the object visible."""

    def discard(self) -> None:
        """Remove all traces, as far as possible."""

    def abort(self) -> None:
        """Remove all traces.

        Raises:
            HeadraceError: something is left behind.
        """

    @property
    def held(self) -> int:
        """Bytes held in memory."""

    @property
    def spillable(self) -> int:
        """How many of them ``spill`` could upload now."""

    def spill(self) -> None:
        """Upload what is held; the object stays invisible."""


class StoredObject(NamedTuple):
    """What a listing says of an object: its key below the sink's URL, size in bytes, and time of its writing."""

    key: str
    size: int
    modified: float


class Sink:
    """Where objects go: a URL, and the file system that it names.

    Args:
        beat: called every second while the thread that created this object waits for the store.
        part_size: bytes of a part of an upload; smaller objects are one request.

    Raises:
        ConfigError: the file system does not exist or cannot be set up.
    """

    def __init__(
        self, config: SinkConfig, beat: Callable[[], None] | None = None, part_size: int = PART_SIZE
    ) -> None:
        self._part_size = part_size
        self._url = config.url.rstrip("/")
        self._proved = False
        with translated(f"open the sink {self._url}"):
            self._store = ObjectStore(config, Calls(beat))
        self._root = self._store.root
        self._is_local = isinstance(self._store.filesystem, LocalFileSystem)
        self._once = config.partition_by == "table"

    @property
    def unanswered_s(self) -> float:
        """How long the oldest request has been unanswered."""
        return self._store.request.unanswered_s

    def check(self) -> None:
        """Check that objects can be written here, without creating one.

        Raises:
            ConfigError: no such bucket, or no right to it.
            TransientError: the store does not answer.
        """
        used = self._store.filesystem
        try:
            self._check()
        except TransientError:
            if self._store.filesystem is used:
                raise
            self._check()  # with the credentials as they are now
        self._proved = True

    def _check(self) -> None:
        with self._translated(f"write to the sink {self._url}"):
            if self._is_local:
                Path(self._root).mkdir(parents=True, exist_ok=True)
            elif hasattr(self._store.filesystem, "call_s3"):
                # Not head_bucket: the answer to a HEAD request does not say what is wrong.
                bucket, _, path = self._root.partition("/")
                list_ = partial(self._store.filesystem.call_s3, "list_objects_v2")
                self._store.request(partial(list_, Bucket=bucket, Prefix=path, MaxKeys=1))
        self._probe().discard()

    def prove(self) -> None:
        """As ``check``, and that an abandoned upload can be removed. Leaves nothing behind, not even a directory.

        The probe is published only on local disks: on S3 publishing needs no other right than uploading parts, and
        removing the object needs a right that a run does not.

        Raises:
            ConfigError, TransientError: as ``check``.
        """
        root = Path(self._root)
        missing = [each for each in (root, *root.parents) if not each.exists()] if self._is_local else []
        try:
            self.check()
            probe = self._probe()
            if self._is_local:
                probe.publish()
                with translated(f"remove {root / _PROBE}"):
                    (root / _PROBE).unlink()
                    next(os.scandir(root), None)
            else:
                probe.abort()
        finally:
            for directory in missing:
                with contextlib.suppress(OSError):  # it is in use by another process by now
                    directory.rmdir()

    def prove_readable(self) -> None:
        """Check that objects can be listed and read here.

        Raises:
            ConfigError, TransientError: as ``check``.
        """
        filesystem, request = self._store.filesystem, self._store.request
        with translated(f"list the sink {self._url}"):
            if not hasattr(filesystem, "call_s3"):
                request(partial(filesystem.ls, self._root))
                return
            bucket, _, path = self._root.partition("/")
            request(partial(filesystem.call_s3, "list_objects_v2", Bucket=bucket, Prefix=path, MaxKeys=1))
        with translated(f"read an object of the sink {self._url}"), contextlib.suppress(FileNotFoundError):
            # Whoever may list and read is told that there is no such object.
            request(partial(filesystem.call_s3, "get_object", Bucket=bucket, Key=f"{path}/{_PROBE}".lstrip("/")))

    def _probe(self) -> Upload:
        """An object that is all but published."""
        probe = self.open(_PROBE)
        try:
            probe.write(b"x")
            probe.seal()
            probe.spill()  # starting a multipart upload requires the right to write
            if not self._is_local and not hasattr(self._store.filesystem, "call_s3"):
                self._prove_hidden(f"{self._root}/{_PROBE}")
        except BaseException:
            probe.discard()
            raise
        return probe

    def _prove_hidden(self, path: str) -> None:
        """Check that what is uploaded is not there before it is published, as not every package of fsspec does it.

        Raises:
            ConfigError: it is.
        """
        filesystem, request = self._store.filesystem, self._store.request
        filesystem.invalidate_cache()
        if not request(partial(filesystem.exists, path)):
            return
        request(partial(filesystem.rm_file, path))
        name = type(filesystem).__name__
        cause = f"what is uploaded with {name} is visible before it is published, so that events could land twice"
        raise ConfigError(f"write to the sink {self._url}", cause, "Use s3://, gs:// or file:// for sink.url.")

    def open(self, key: str) -> Upload:
        """Start an object; ``key`` is relative to the sink's URL.

        In the layout of tables it does not replace one that is there: that has the same events, and a table may
        already name it, with its size.
        """
        path = f"{self._root}/{key}"
        if self._is_local:
            return LocalUpload(Path(path), proved=self._proved, once=self._once)
        return StagedUpload(self._store, path, self._part_size, proved=self._proved, once=self._once)

    def sweep(self) -> None:
        """Remove the hidden files of dead processes, which only local disks have."""
        if self._is_local:
            for directory, _, names in os.walk(self._root):
                for name in names:
                    if is_stale(path := Path(directory, name)):
                        with contextlib.suppress(OSError):  # another process has removed it
                            path.unlink(missing_ok=True)

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        """The keys that start with ``prefix`` and sort after ``after``, ascending; relative to the sink's URL."""
        return (key for key, _ in self.entries(prefix, after))

    def entries(self, prefix: str, after: str = "") -> Iterator[tuple[str, int]]:
        """As ``keys``, each with the object's size in bytes."""
        with self._translated(f"list {self._url}/{prefix}"):
            if hasattr(self._store.filesystem, "call_s3"):
                yield from (entry[:2] for page in self._pages(prefix, after) for entry in page.entries)
                return
            for key in self._found(prefix, after):
                yield key, self._size(key)

    def stored(self, prefix: str) -> Iterator[StoredObject]:
        """As ``keys``, each with what a listing says of the object; not every file system has times."""
        with self._translated(f"list {self._url}/{prefix}"):
            if hasattr(self._store.filesystem, "call_s3"):
                yield from (entry for page in self._pages(prefix, "") for entry in page.entries)
                return
            for key in self._found(prefix, ""):
                modified: datetime = self._store.filesystem.modified(f"{self._root}/{key}")
                yield StoredObject(key, self._size(key), modified.timestamp())

    def _found(self, prefix: str, after: str) -> list[str]:
        return sorted(key for key in self._find(prefix) if key > after)

    def _size(self, key: str) -> int:
        return int(self._store.filesystem.size(f"{self._root}/{key}"))

    def remove(self, key: str) -> None:
        """Remove an object, if it is there.

        Raises:
            ConfigError: no right to.
        """
        with self._translated(f"remove {self._url}/{key}"), contextlib.suppress(FileNotFoundError):
            self._store.request(partial(self._store.filesystem.rm_file, f"{self._root}/{key}"))

    def read(self, key: str, start: int, stop: int) -> bytes:
        """The bytes of an object from ``start`` up to but excluding ``stop``, in one request.

        Raises:
            ConfigError: there is no such object, or no right to read it.
        """
        with self._translated(f"read {self._url}/{key}"):
            read = partial(self._store.filesystem.cat_file, f"{self._root}/{key}", start=start, end=stop)
            return bytes(self._store.request(read))

    def directories(self, prefix: str) -> list[str]:
        """The directories that start with ``prefix``, up to and including the next ``/``."""
        with self._translated(f"list {self._url}/{prefix}"):
            if hasattr(self._store.filesystem, "call_s3"):
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
            answer = self._store.request(partial(self._store.filesystem.call_s3, "list_objects_v2", **asked))
            entries = [
                StoredObject(each["Key"].removeprefix(base), int(each["Size"]), each["LastModified"].timestamp())
                for each in answer.get("Contents", ())
            ]
            directories = [each["Prefix"].removeprefix(base) for each in answer.get("CommonPrefixes", ())]
            yield _Page(entries, directories)
            if not answer.get("IsTruncated"):
                return
            asked["ContinuationToken"] = answer["NextContinuationToken"]

    def _find(self, prefix: str) -> list[str]:
        """All keys that start with ``prefix``, except hidden files."""
        directory = f"{self._root}/{prefix.rpartition('/')[0]}".rstrip("/")
        find = partial(self._store.filesystem.find, directory)
        paths = _files(directory) if self._is_local else self._store.request(find)
        found = (path.removeprefix(f"{self._root}/") for path in paths)
        return [key for key in found if key.startswith(prefix) and not key.rpartition("/")[2].startswith(".")]

    def _translated(self, operation: str) -> AbstractContextManager[None]:
        return self._store.translated(operation, self._store.filesystem, proved=self._proved)


def _files(directory: str) -> Iterator[str]:
    """All files below a directory. Unlike with fsspec, one that cannot be listed is an error, not empty."""

    def unless_missing(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for below, _, names in os.walk(directory, onerror=unless_missing, followlinks=True):
        yield from (f"{below}/{name}" for name in names)


class _Page(NamedTuple):
    """One answer of a listing."""

    entries: list[StoredObject]
    directories: list[str]


class StagedUpload:
    """An object in a store whose fsspec files support ``autocommit=False``, such as s3fs.

    State: the bytes of a small object, or of the part that is being filled; the open file of a large object, and
    what waits for its last full part, which is uploaded meanwhile.

    Args:
        part_size: bytes of a part; up to this size, the object is small.
        proved: writing to the store has worked before; see ``translated``.
        once: an object that is there is not replaced.
    """

    def __init__(self, store: ObjectStore, path: str, part_size: int, *, proved: bool, once: bool = False) -> None:
        self._once = once
        self._store = store
        self._part_size = part_size
        self._path = path
        self._proved = proved
        self._sealed = False
        self._part: io.BytesIO | None = io.BytesIO()
        self._file: Any = None
        self._sent: Callable[[], object] | None = None

    def write(self, data: bytes) -> int:
        """Add bytes; full parts are uploaded, so that a large object is never held as a whole."""
        assert self._part is not None
        rest = memoryview(data)
        while rest:
            if self.held == self._part_size:
                self._send_part()
            piece = rest[: self._part_size - self.held]
            self._part.write(piece)
            rest = rest[len(piece) :]
        return len(data)

    def _send_part(self) -> None:
        """Begin to upload the part, once the one before has arrived."""
        with self._translated("upload"):
            self._await_sent()
            self._open()
            self._sent = self._store.request.begin(partial(self._file.write, self._taken()))

    def _await_sent(self) -> None:
        if self._sent is not None:
            sent, self._sent = self._sent, None
            sent()

    def _open(self) -> None:
        if self._file is None:
            options = {"block_size": self._part_size, "autocommit": False, **self._store.of_data}
            self._file = self._store.filesystem.open(self._path, "xb" if self._once else "wb", **options)

    def _taken(self) -> memoryview:
        assert self._part is not None
        part, self._part = self._part, io.BytesIO()
        return part.getbuffer()

    @property
    def held(self) -> int:
        """Bytes held in memory, besides the part that is being uploaded."""
        return 0 if self._part is None else self._part.tell()

    @property
    def spillable(self) -> int:
        """All that is held once sealed; nothing before, because only the last part of an upload may be small."""
        return self.held if self._sealed else 0

    def spill(self) -> None:
        """Move a sealed object from memory to a multipart upload."""
        if self._sealed and self._file is None:
            self._upload_rest()

    def seal(self) -> None:
        """Upload the last part, if it is a multipart upload."""
        self._sealed = True
        if self._file is not None:
            self._upload_rest()

    def _upload_rest(self) -> None:
        with self._translated("upload"):
            self._await_sent()
            self._open()
            self._store.request(partial(_finish, self._file, self._taken()))

    def publish(self) -> None:
        """Complete the multipart upload, or put the small object in one request, and free the memory."""
        try:
            with self._translated("publish"):
                self._publish()
        except HeadraceError as error:
            if not (self._once and self._is_there(error.__cause__)):
                raise
            self.discard()
        self._part = self._file = None

    def _publish(self) -> None:
        if self._file is not None:
            self._store.request(self._file.commit)
            return
        assert self._part is not None
        put, body = self._store.filesystem.pipe_file, self._part.getvalue()
        parameters: dict[str, Any] = digest(body) if hasattr(self._store.filesystem, "call_s3") else {}
        if self._once:
            parameters["mode"] = "create"
        self._store.request(partial(put, self._path, body, **parameters, **self._store.of_data))

    def _is_there(self, error: BaseException | None) -> bool:
        """Whether publishing has failed because the object is there, by another attempt or by this very one."""
        if isinstance(error, FileExistsError) or error_code(error) in _EXISTS:
            return True
        if error_code(error) != "NoSuchUpload":
            return False
        with self._translated("look at"):
            return bool(self._store.request(partial(self._store.filesystem.exists, self._path)))

    def discard(self) -> None:
        """Abort the multipart upload, if there is one."""
        with contextlib.suppress(HeadraceError):
            self.abort()

    def abort(self) -> None:
        """Abort the multipart upload, if there is one.

        Raises:
            HeadraceError: the store did not.
        """
        file, self._part, self._file = self._file, None, None
        if file is not None:
            file.fs = self._store.filesystem  # its credentials may have been renewed meanwhile
            try:
                with self._translated("abort the upload of"):
                    self._store.request(file.discard)
            finally:
                file.closed = True  # otherwise it would upload the rest when garbage-collected

    def _translated(self, verb: str) -> AbstractContextManager[None]:
        used = self._store.filesystem if self._file is None else self._file.fs
        return self._store.translated(f"{verb} {self._path}", used, proved=self._proved)


def _finish(file: Any, rest: memoryview) -> None:
    """Upload what an object ends with."""
    file.write(rest)
    file.close()
