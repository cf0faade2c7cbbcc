"""One conformance suite for every sink: nothing is visible before it is published, and then all of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.config import S3Config, Secret, SinkConfig
from engine.errors import ConfigError, TransientError
from engine.local import LocalStack
from engine.sink import PART_SIZE, Sink

SIZES = [0, 1, PART_SIZE, PART_SIZE + 1, 2 * PART_SIZE, 2 * PART_SIZE + 5]


class Place:
    """A sink, and what can be seen in it."""

    def __init__(
        self, sink: Sink, visible: Callable[[], dict[str, bytes]], hidden: Callable[[], list[str]]
    ) -> None:
        self.sink = sink
        self.visible = visible
        self.hidden = hidden


@pytest.fixture(params=["s3", "file"])
def place(request: pytest.FixtureRequest, stack: LocalStack, tmp_path: Path, unique: str) -> Place:
    if request.param == "file":
        root = tmp_path / "lake"

        def files() -> dict[str, bytes]:
            found = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
            return {str(path.relative_to(root)): path.read_bytes() for path in found}

        sink = Sink(SinkConfig(url=f"file://{root}"))
        return Place(sink, files, lambda: [path.name for path in root.rglob(".*")])
    config = s3_config(stack, f"s3://{stack.bucket}/{unique}")
    fs: Any = stack.s3.filesystem()
    root_key = f"{stack.bucket}/{unique}"

    def objects() -> dict[str, bytes]:
        return {path.removeprefix(root_key + "/"): fs.cat_file(path) for path in fs.find(root_key)}

    def uploads() -> list[str]:
        listed = fs.call_s3("list_multipart_uploads", Bucket=stack.bucket, Prefix=unique)
        return [upload["Key"] for upload in listed.get("Uploads", [])]

    return Place(Sink(config), objects, uploads)


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
def test_visible_when_published_and_not_before(place: Place, size: int) -> None:
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
def test_what_is_discarded_leaves_nothing(place: Place, size: int, sealed: bool) -> None:
    upload = place.sink.open("x")
    upload.write(bytes(size))
    if sealed:
        upload.seal()
    upload.discard()
    assert place.visible() == {}
    assert place.hidden() == []


def test_discarding_what_is_published_changes_nothing(place: Place) -> None:
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
    """A writer that was paused completes late what another has made meanwhile."""
    paused, other = place.sink.open("k"), place.sink.open("k")
    for upload in (paused, other):
        upload.write(b"same" * PART_SIZE)
        upload.seal()
    other.publish()
    with contextlib.suppress(ConfigError):  # a local file's hidden name may be cleared by then
        paused.publish()
    assert place.visible() == {"k": b"same" * PART_SIZE}


def test_checking_makes_nothing(place: Place) -> None:
    place.sink.check()
    assert place.visible() == {}
    assert place.hidden() == []


@pytest.mark.parametrize("key", ["database=a%2Fb/collection=c%20d/x~0of2-1.parquet", "ü=1/ö.parquet"])
def test_keys_are_kept_as_they_are(place: Place, key: str) -> None:
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
    ],
)
def test_s3_errors(stack: LocalStack, changes: dict[str, str], kind: type[Exception], remedy: str) -> None:
    with pytest.raises(kind, match=remedy):
        Sink(s3_config(stack, f"s3://{stack.bucket}/x", **changes)).check()


def test_a_missing_bucket(stack: LocalStack) -> None:
    with pytest.raises(ConfigError, match="Create the bucket"):
        Sink(s3_config(stack, "s3://nowhere/x")).check()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((ConfigError, TransientError)):
        Sink(SinkConfig(url=f"file://{tmp_path}/file/lake")).check()


def test_an_unknown_protocol() -> None:
    with pytest.raises(ConfigError, match=r"Check sink.url"):
        Sink(SinkConfig(url="nonsense://x/y"))


def test_s3_failures_under_way_are_transient(stack: LocalStack, unique: str) -> None:
    """A server that goes away between the parts."""
    from engine.local import S3Server

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
