"""The conformance suite for sinks: an object is invisible until published, and then complete."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import aiohttp
import fsspec
import pytest
from botocore import exceptions as boto  # type: ignore[import-untyped]
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from fsspec.spec import AbstractBufferedFile
from msgspec.structs import replace
from s3fs.core import S3File
from s3fs.errors import translate_boto_error

from bench.local import LocalStack, S3Server
from engine.config import S3Config, Secret, SinkConfig
from engine.errors import ConfigError, HeadraceError, TransientError
from engine.objects.failures import translated
from engine.sink.objects import PART_SIZE, Sink
from tests.disks import mounted

SIZES = [0, 1, PART_SIZE, PART_SIZE + 1, 2 * PART_SIZE, 2 * PART_SIZE + 5]


class Place:
    """A sink, with its visible and hidden files."""

    def __init__(
        self, sink: Sink, visible: Callable[[], dict[str, bytes]], hidden: Callable[[], list[str]]
    ) -> None:
        self.sink = sink
        self.visible = visible
        self.hidden = hidden


def test_a_directory_that_cannot_be_listed_is_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk fails in one directory. A missing directory is empty."""
    sink = Sink(SinkConfig(url=f"file://{tmp_path}"))
    upload = sink.open("a/b/object")
    upload.seal()
    upload.publish()
    assert list(sink.keys("a/")) == ["a/b/object"]
    assert list(sink.keys("elsewhere/")) == []

    def fails(path: str) -> Any:
        if path.endswith("/b"):
            raise OSError(errno.EIO, "Input/output error", path)
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", fails)
    for read in (lambda: list(sink.keys("a/")), lambda: sink.directories("a/")):
        with pytest.raises(TransientError, match="Input/output error"):
            read()


@pytest.fixture(params=["s3", "s3, with heartbeats", "file"])
def place(request: pytest.FixtureRequest, stack: LocalStack, tmp_path: Path, unique: str) -> Place:
    return place_of(request.param, stack, tmp_path, unique)


@pytest.fixture(params=["s3", "file"])
def once(request: pytest.FixtureRequest, stack: LocalStack, tmp_path: Path, unique: str) -> Place:
    """In the layout of tables."""
    return place_of(request.param, stack, tmp_path, unique, "table")


def place_of(
    kind: str, stack: LocalStack, tmp_path: Path, unique: str, partition_by: Literal["hour", "table"] = "hour"
) -> Place:
    if kind == "file":
        root = tmp_path / "lake"

        def files() -> dict[str, bytes]:
            found = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
            return {str(path.relative_to(root)): path.read_bytes() for path in found}

        sink = Sink(SinkConfig(url=f"file://{root}", partition_by=partition_by))
        return Place(sink, files, lambda: [path.name for path in root.rglob(".*")])
    config = s3_config(stack, f"s3://{stack.bucket}/{unique}")
    fs: Any = stack.s3.filesystem()
    root_key = f"{stack.bucket}/{unique}"

    def objects() -> dict[str, bytes]:
        return {path.removeprefix(root_key + "/"): fs.cat_file(path) for path in fs.find(root_key)}

    def uploads() -> list[str]:
        listed = fs.call_s3("list_multipart_uploads", Bucket=stack.bucket, Prefix=unique)
        return [upload["Key"] for upload in listed.get("Uploads", [])]

    beat = (lambda: None) if "heartbeats" in kind else None
    return Place(Sink(replace(config, partition_by=partition_by), beat), objects, uploads)


def s3_config(stack: LocalStack, url: str, **changes: str) -> SinkConfig:
    settings = {
        "region": "us-east-1",
        "endpoint_url": stack.s3.endpoint_url,
        "access_key": stack.s3.access_key,
        "secret_key": stack.s3.secret_key,
    } | changes
    s3 = S3Config(
        settings["region"],
        settings["endpoint_url"],
        Secret(settings["access_key"]),
        Secret(settings["secret_key"]),
    )
    return SinkConfig(url=url, s3=s3)


@pytest.mark.parametrize("size", SIZES)
def test_visible_only_once_published(place: Place, size: int) -> None:
    data = os.urandom(size)
    upload = place.sink.open("a/b.parquet")
    for at in range(0, size, 3 * 2**20):
        upload.write(data[at : at + 3 * 2**20])
    assert place.visible() == {}
    upload.seal()
    assert place.visible() == {}
    upload.publish()
    assert place.visible() == {"a/b.parquet": data}
    assert place.hidden() == []


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("size", [1, PART_SIZE + 1])
def test_a_discarded_upload_leaves_nothing(place: Place, size: int, sealed: bool) -> None:
    upload = place.sink.open("x")
    upload.write(bytes(size))
    if sealed:
        upload.seal()
    upload.discard()
    assert place.visible() == {}
    assert place.hidden() == []


def test_a_part_that_fails_ends_its_own_upload_alone(
    stack: LocalStack, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in flight while the next bytes are written, also those of others."""
    sink = Sink(s3_config(stack, f"s3://{stack.bucket}/{unique}"), lambda: None)
    upload_chunk: Any = S3File._upload_chunk

    def fails(self: Any, final: bool = False) -> Any:
        if self.path.endswith("fails"):
            raise OSError("the connection was lost")
        return upload_chunk(self, final)

    monkeypatch.setattr(S3File, "_upload_chunk", fails)
    failing, other = sink.open("fails"), sink.open("other")
    failing.write(bytes(PART_SIZE + 1))
    other.write(bytes(2 * PART_SIZE + 1))
    with pytest.raises(HeadraceError, match="the connection was lost"):
        failing.seal()
    failing.discard()
    other.seal()
    other.publish()
    filesystem: Any = stack.s3.filesystem()
    assert filesystem.find(f"{stack.bucket}/{unique}") == [f"{stack.bucket}/{unique}/other"]
    assert filesystem.size(f"{stack.bucket}/{unique}/other") == 2 * PART_SIZE + 1
    assert not filesystem.call_s3("list_multipart_uploads", Bucket=stack.bucket, Prefix=unique).get("Uploads")


def test_discarding_a_published_upload_changes_nothing(place: Place) -> None:
    for size in (1, PART_SIZE + 1):
        upload = place.sink.open(f"x{size}")
        upload.write(bytes(size))
        upload.seal()
        upload.publish()
        upload.discard()
    assert set(place.visible()) == {"x1", f"x{PART_SIZE + 1}"}


@pytest.mark.parametrize("size", [10, PART_SIZE + 10])
def test_an_object_is_replaced_as_a_whole(place: Place, size: int) -> None:
    for content in (b"a", b"b"):
        upload = place.sink.open("k")
        upload.write(content * size)
        upload.seal()
        upload.publish()
    assert place.visible() == {"k": b"b" * size}


def test_two_processes_may_make_the_same_object(place: Place) -> None:
    """A paused writer completes an object late, after another writer has made it."""
    paused, other = place.sink.open("k"), place.sink.open("k")
    for upload in (paused, other):
        upload.write(b"same" * PART_SIZE)
        upload.seal()
    other.publish()
    with contextlib.suppress(ConfigError):  # the hidden file of a local sink may be cleared by then
        paused.publish()
    assert place.visible() == {"k": b"same" * PART_SIZE}


@pytest.mark.parametrize("size", [0, 7, PART_SIZE + 7])
@pytest.mark.parametrize("later", [1, PART_SIZE + 1])
def test_in_the_layout_of_tables_an_object_is_never_replaced(once: Place, size: int, later: int) -> None:
    """The later one succeeds all the same: what is there has the same events."""
    for count, content in ((size, b"a"), (later, b"b"), (size, b"c")):
        upload = once.sink.open("a/b.parquet")
        upload.write(content * count)
        upload.seal()
        upload.publish()
        assert upload.held == 0
    assert once.visible() == {"a/b.parquet": b"a" * size}
    assert once.hidden() == []


def test_of_two_at_once_one_is_published(once: Place) -> None:
    uploads = [once.sink.open("x") for _ in range(2)]
    for number, upload in enumerate(uploads):
        upload.write(bytes([number]) * (PART_SIZE + 1))
        upload.seal()
    for upload in reversed(uploads):
        upload.publish()
    assert once.visible() == {"x": bytes([1]) * (PART_SIZE + 1)}
    assert once.hidden() == []


def test_checking_creates_nothing(place: Place) -> None:
    place.sink.check()
    assert place.visible() == {}
    assert place.hidden() == []


@pytest.mark.parametrize("key", ["database=a%2Fb/collection=c%20d/x~0of2-1.parquet", "ü=1/ö.parquet"])
def test_keys_are_kept_verbatim(place: Place, key: str) -> None:
    upload = place.sink.open(key)
    upload.write(b"x")
    upload.seal()
    upload.publish()
    assert set(place.visible()) == {key}


@pytest.mark.parametrize(
    ("changes", "kind", "remedy"),
    [
        ({"secret_key": "wrong"}, ConfigError, "credentials"),
        ({"access_key": "nobody"}, ConfigError, "credentials"),
        ({"endpoint_url": "http://127.0.0.1:1"}, TransientError, "Is the store up"),
        ({"endpoint_url": "http://nowhere.invalid"}, TransientError, "cannot be resolved"),
        ({"endpoint_url": "https"}, TransientError, "is http or https"),
    ],
)
@pytest.mark.usefixtures("impatient_s3")
def test_s3_errors(stack: LocalStack, changes: dict[str, str], kind: type[Exception], remedy: str) -> None:
    if changes.get("endpoint_url") == "https":
        changes = {"endpoint_url": f"https://127.0.0.1:{stack.s3.port}"}
    with pytest.raises(kind, match=remedy):
        Sink(s3_config(stack, f"s3://{stack.bucket}/x", **changes)).check()


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A store with one key per permission."""
    directory = tmp_path_factory.mktemp("strict")
    server = S3Server(directory)
    path = directory / "s3.json"
    rights = json.loads(path.read_text())
    for right in ("Read", "Write", "List"):
        key = [{"accessKey": right, "secretKey": right}]
        rights["identities"].append({"name": right, "credentials": key, "actions": [right]})
    path.write_text(json.dumps(rights))
    server.start()
    server.make_bucket("lake")
    yield server
    server.process.kill()


@pytest.mark.parametrize(("right", "missing"), [("Write", "list"), ("List", "write"), ("Read", "write")])
def test_a_missing_permission_is_named(strict: S3Server, right: str, missing: str) -> None:
    """A HEAD request would only say 403, and a run would only notice at its first segment."""
    s3 = S3Config("us-east-1", strict.endpoint_url, Secret(right), Secret(right))
    with pytest.raises(ConfigError, match=r"s3:ListBucket on .* s3:PutObject") as caught:
        Sink(SinkConfig(url="s3://lake/x", s3=s3)).prove()
    assert "AccessDenied" in caught.value.cause, missing


def test_proving_reports_an_upload_that_cannot_be_aborted(
    stack: LocalStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The local store has no separate permission for this."""

    def denied(self: Any) -> None:
        raise PermissionError("Access Denied.") from refused("AccessDenied", "AbortMultipartUpload").__cause__

    monkeypatch.setattr("s3fs.core.S3File.discard", denied)
    sink = Sink(s3_config(stack, f"s3://{stack.bucket}/x"))
    sink.check()  # a run does not need it
    with pytest.raises(HeadraceError, match="abort the upload"):
        sink.prove()


def test_proving_leaves_nothing_behind(place: Place, tmp_path: Path) -> None:
    place.sink.prove()
    assert place.visible() == {}
    assert place.hidden() == []
    Sink(SinkConfig(url=f"file://{tmp_path}/a/new/lake")).prove()
    assert not (tmp_path / "a").exists()


def test_a_missing_bucket(stack: LocalStack) -> None:
    with pytest.raises(ConfigError, match="Create the bucket"):
        Sink(s3_config(stack, "s3://nowhere/x")).check()


def test_a_directory_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((ConfigError, TransientError)):
        Sink(SinkConfig(url=f"file://{tmp_path}/file/lake")).check()


def test_an_unknown_protocol() -> None:
    with pytest.raises(ConfigError, match=r"Check sink.url"):
        Sink(SinkConfig(url="nonsense://x/y"))


@pytest.mark.parametrize("bug", [TypeError, AttributeError, KeyError, AssertionError, RuntimeError])
@pytest.mark.parametrize("proved", [False, True])
def test_a_bug_is_not_reported_as_an_error_of_the_store(bug: type[Exception], proved: bool) -> None:
    with pytest.raises(bug), translated("write x", proved=proved):
        raise bug("ours")


@pytest.mark.parametrize("error", [ImportError, ValueError, NotImplementedError])
def test_a_url_error_is_a_bug_once_the_url_has_worked(error: type[Exception]) -> None:
    with pytest.raises(ConfigError, match=r"Check sink.url"), translated("write x"):
        raise error("no")
    with pytest.raises(error), translated("write x", proved=True):
        raise error("no")


def test_misuse_of_a_sink_raises(stack: LocalStack, tmp_path: Path, unique: str) -> None:
    text: Any = "no bytes"
    upload = Sink(SinkConfig(url=f"file://{tmp_path}")).open("x")
    with pytest.raises(TypeError):
        upload.write(text)
    upload.discard()
    upload = Sink(s3_config(stack, f"s3://{stack.bucket}/{unique}")).open("x")
    upload.publish()
    with pytest.raises(AssertionError):
        upload.publish()


@pytest.mark.parametrize("endpoint_url", ["http://h:99999", "ftp://h", "nothing", "http://a..b"])
def test_an_invalid_endpoint(stack: LocalStack, endpoint_url: str) -> None:
    with pytest.raises(ConfigError, match=r"sink.s3"):
        Sink(s3_config(stack, "s3://lake/x", endpoint_url=endpoint_url)).check()


@pytest.mark.usefixtures("impatient_s3")
def test_a_credentials_service_that_is_unavailable(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers have one, which may start after the engine."""
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    with pytest.raises(TransientError, match="provides credentials does not answer"):
        Sink(s3_config(stack, "s3://lake/x", access_key="", secret_key="")).check()


@pytest.mark.usefixtures("impatient_s3")
def test_s3_failures_during_an_upload_are_transient(stack: LocalStack, unique: str) -> None:
    """The server goes down between two parts."""
    directory = stack.directory / unique
    directory.mkdir()
    server = S3Server(directory)
    server.start()
    try:
        server.make_bucket("lake")
        s3 = S3Config("us-east-1", server.endpoint_url, Secret(server.access_key), Secret(server.secret_key))
        upload = Sink(SinkConfig(url="s3://lake/x", s3=s3)).open("k")
        upload.write(bytes(PART_SIZE + 1))
        server.process.kill()
        with pytest.raises(TransientError):
            upload.write(bytes(PART_SIZE + 1))
        upload.discard()
    finally:
        server.process.kill()


def refused(code: str, operation: str = "PutObject") -> Exception:
    """The error that s3fs raises for an answer of the store."""
    answer = {"Error": {"Code": code, "Message": "no"}}
    error = boto.ClientError(answer, operation)
    made: Exception = translate_boto_error(error)
    made.__cause__ = error
    return made


RENEW, BUSY, SPACE = "They worked before", "is retried", "Free space there"
UNKNOWN, EXPIRED, DENIED = (
    "does not accept these credentials",
    "have expired",
    "lack a right: grant them s3:ListBucket",
)
NONE, SILENT, AWAY = "There are no credentials", "does not answer in time", "Is the store up"


@pytest.mark.parametrize(
    ("error", "at_first", "later", "remedy_at_first", "remedy_later"),
    [
        *(
            (refused(code), ConfigError, TransientError, remedy, RENEW)
            for code, remedy in (
                ("403", DENIED),
                ("AccessDenied", DENIED),
                ("ExpiredToken", EXPIRED),
                ("RequestExpired", EXPIRED),
                ("InvalidAccessKeyId", UNKNOWN),
                ("InvalidToken", UNKNOWN),
                ("SignatureDoesNotMatch", UNKNOWN),
            )
        ),
        (boto.NoCredentialsError(), ConfigError, TransientError, NONE, RENEW),
        (boto.CredentialRetrievalError(provider="x", error_msg="y"), ConfigError, TransientError, NONE, RENEW),
        (refused("RequestTimeTooSkewed"), ConfigError, TransientError, "clock", "clock"),
        (refused("PermanentRedirect"), ConfigError, TransientError, "sink.s3.region", "sink.s3.region"),
        *(
            (refused(code), TransientError, TransientError, BUSY, BUSY)
            for code in (
                "429",
                "500",
                "503",
                "InternalError",
                "ServiceUnavailable",
                "SlowDown",
                "ThrottlingException",
            )
        ),
        *(
            (refused(code), TransientError, TransientError, SPACE, SPACE)
            for code in ("507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull")
        ),
        *(
            (OSError(number, "no"), TransientError, TransientError, SPACE, SPACE)
            for number in (errno.ENOSPC, errno.EDQUOT)
        ),
        (refused("NoSuchUpload"), TransientError, TransientError, "it is repeated", "it is repeated"),
        (refused("NoSuchBucket"), ConfigError, TransientError, "Create the bucket", "Create the bucket"),
        (FileNotFoundError(errno.ENOENT, "no"), ConfigError, TransientError, "(or directory)", "(or directory)"),
        (
            PermissionError(errno.EACCES, "no"),
            ConfigError,
            TransientError,
            "Let the engine's user",
            "Let the engine",
        ),
        (boto.ProfileNotFound(profile="x"), ConfigError, TransientError, "Check sink.url", "Check sink.url"),
        *(
            (error, TransientError, TransientError, remedy, remedy)
            for error, remedy in (
                (boto.EndpointConnectionError(endpoint_url="http://x"), AWAY),
                (boto.ReadTimeoutError(endpoint_url="http://x"), SILENT),
                (boto.ConnectTimeoutError(endpoint_url="http://x"), SILENT),
                (boto.SSLError(endpoint_url="http://x", error="y"), "secure connection"),
                (ConnectionResetError(), AWAY),
                (TimeoutError(), SILENT),
            )
        ),
        (OSError(errno.EMFILE, "no"), TransientError, TransientError, "ulimit -n", "ulimit -n"),
        (OSError(errno.EROFS, "no"), TransientError, TransientError, "read-only", "read-only"),
        (OSError(errno.ENAMETOOLONG, "no"), TransientError, TransientError, "too long", "too long"),
        (
            NotADirectoryError(errno.ENOTDIR, "no"),
            TransientError,
            TransientError,
            "not a directory",
            "not a directory",
        ),
        (OSError(errno.EIO, "no"), TransientError, TransientError, "", ""),
        (aiohttp.ClientPayloadError("no"), TransientError, TransientError, "", ""),
        (refused("SomethingNew"), TransientError, TransientError, "", ""),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, Exception) else "",
)
def test_each_class_of_error_has_its_kind_and_remedy(
    error: Exception,
    at_first: type[HeadraceError],
    later: type[HeadraceError],
    remedy_at_first: str,
    remedy_later: str,
) -> None:
    for proved, kind, remedy in ((False, at_first, remedy_at_first), (True, later, remedy_later)):
        with pytest.raises(HeadraceError) as caught, translated("write x", proved=proved):
            raise error
        assert type(caught.value) is kind
        assert caught.value.operation == "write x"
        assert remedy in caught.value.remedy
        assert bool(remedy) == bool(caught.value.remedy)


# --- local disks -----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "1m") as disk:
        yield disk


@pytest.mark.parametrize("at", ["write", "close"])
def test_a_full_disk_is_transient_and_nothing_is_left_on_it(small_disk: Path, at: str) -> None:
    sink = Sink(SinkConfig(url=f"file://{small_disk}/lake"))
    sink.check()
    upload = sink.open("a/b.parquet")
    if at == "write":
        with pytest.raises(TransientError, match=SPACE):
            upload.write(bytes(2 * 2**20))
    else:
        (small_disk / "other").write_bytes(bytes(small_disk_room(small_disk)))
        upload.write(b"x" * 100)  # buffered: the lack of space is noticed only when the file is closed
    upload.discard()
    assert [path for path in small_disk.rglob("*") if path.is_file()] == [small_disk / "other"][at == "write" :]


def small_disk_room(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_bsize


def test_only_hidden_files_of_dead_processes_are_cleared(tmp_path: Path) -> None:
    config = SinkConfig(url=f"file://{tmp_path}/lake")
    script = (
        "import os, sys; from engine.config import SinkConfig; from engine.sink.objects import Sink; "
        f"upload = Sink(SinkConfig(url={config.url!r})).open('a/dead'); upload.write(b'x'); "
        "print('made', flush=True); sys.stdin.read(); os._exit(1)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        other.stdout.readline()
        sink = Sink(config)
        mine = sink.open("a/mine")
        mine.write(b"x")
        sink.sweep()
        assert len(list(tmp_path.rglob(".headrace_*"))) == 2
        other.stdin.close()
        other.wait()
    sink.sweep()
    assert len(list(tmp_path.rglob(".headrace_*"))) == 1
    mine.seal()
    mine.publish()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


# --- credentials -----------------------------------------------------------------------------------------


def test_credentials_renewed_in_their_file_are_reread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In uploads and in listings, each time after a refusal."""
    server, file = S3Server(tmp_path), tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    server.start()
    try:
        server.write_credentials(file)
        server.make_bucket("lake")
        sink = Sink(SinkConfig(url="s3://lake/x", s3=S3Config("us-east-1", server.endpoint_url)))
        sink.check()
        put(sink, "a")
        steps: list[Callable[[], object]] = [lambda: list(sink.keys("")), lambda: put(sink, "b")]
        for step in steps:
            server.process.kill()
            server.renew_secret()
            server.start()
            for _ in range(2):
                with pytest.raises(TransientError, match=RENEW):
                    step()
            server.write_credentials(file)
            step()
        assert list(sink.keys("")) == ["a", "b"]
    finally:
        server.process.kill()


def put(sink: Sink, key: str) -> None:
    upload = sink.open(key)
    try:
        upload.write(b"x")
        upload.seal()
        upload.publish()
    finally:
        upload.discard()


class Buffered(AbstractBufferedFile):  # type: ignore[misc]
    """A file of a package of fsspec, with a store in memory."""

    def _initiate_upload(self) -> None:
        pass

    def _upload_chunk(self, final: bool = False) -> bool:
        if final and (self.autocommit or self.fs.is_eager):
            self.commit()
        return not final

    def commit(self) -> None:
        self.fs.store[self.path] = MemoryFile(self.fs, self.path, self.buffer.getvalue())

    def discard(self) -> None:
        pass


class TwoPhases(MemoryFileSystem):  # type: ignore[misc]
    protocol = "twophases"
    is_eager = False

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        options.pop("cache_options", None)
        return Buffered(self, path, mode, block_size, **options)


class OnePhase(TwoPhases):
    """As adlfs: what is uploaded is there once the file is closed."""

    protocol = "onephase"
    is_eager = True


def test_a_store_that_shows_what_is_not_published_is_refused() -> None:
    for each in (TwoPhases, OnePhase):
        fsspec.register_implementation(each.protocol, each, clobber=True)
    Sink(SinkConfig(url="twophases://lake")).check()
    with pytest.raises(ConfigError, match="OnePhase is visible before it is published"):
        Sink(SinkConfig(url="onephase://lake")).check()
    assert OnePhase().find("/") == []


class Timeless(TwoPhases):
    """As some packages of fsspec, it does not tell when an object was written."""

    protocol = "timeless"

    def modified(self, path: str) -> Any:
        raise NotImplementedError(path)


def test_a_listing_needs_no_times() -> None:
    fsspec.register_implementation(Timeless.protocol, Timeless, clobber=True)
    sink = Sink(SinkConfig(url="timeless://lake"))
    put(sink, "a/b")
    assert list(sink.keys("")) == ["a/b"]


def test_a_listing_tells_when_an_object_was_written(place: Place) -> None:
    before = time.time()
    put(place.sink, "a/b")
    (found,) = place.sink.stored("a/")
    assert found[:2] == ("a/b", len(place.visible()["a/b"]))
    assert abs(found.modified - before) < 60
