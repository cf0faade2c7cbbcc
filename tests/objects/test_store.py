"""What requests to a real S3 server say, recorded on their way through TLS with a certificate of our own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from botocore.exceptions import ClientError
from msgspec.structs import replace

from bench.local import LocalStack
from engine.config import S3Config, Secret, SinkConfig
from engine.errors import ConfigError, HeadraceError, TransientError
from engine.objects.calls import Calls
from engine.objects.conditional import S3Objects
from engine.objects.store import ObjectStore
from engine.sink.objects import PART_SIZE, Sink
from tests.aws import role_of_a_pod
from tests.integration.s3_proxy import Answer, S3Proxy
from tests.tls import tls_in_front_of, written_ca

pytestmark = pytest.mark.usefixtures("impatient_s3")
TAGS = {"team": "data & more", "pii": "no"}


class Recorded:
    """A store behind TLS, and the heads of the requests to it."""

    def __init__(self, config: SinkConfig, seen: list[bytes]) -> None:
        self.config = config
        self._seen = seen

    def heads(self, start: str) -> list[dict[str, str]]:
        """The header fields of each request whose first line has this, and a path that ends as given."""
        text = b"".join(self._seen).decode("latin-1")
        found = []
        for head in re.findall(rf"{start}[^\r]* HTTP/1.1\r\n(.*?)\r\n\r\n", text, re.DOTALL):
            pairs = (line.partition(": ") for line in head.split("\r\n"))
            found.append({name.lower(): value for name, _, value in pairs})
        return found


@pytest.fixture
def recorded(stack: LocalStack, tmp_path: Path, unique: str) -> Iterator[Recorded]:
    authority, seen = trustme.CA(), list[bytes]()
    with tls_in_front_of(stack.s3.port, authority, seen=seen) as port:
        config = config_of(stack, unique, f"https://localhost:{port}")
        ca_file = str(written_ca(authority, tmp_path))
        yield Recorded(replace(config, s3=replace(config.s3, ca_file=ca_file)), seen)


def config_of(stack: LocalStack, unique: str, url: str) -> SinkConfig:
    s3 = S3Config(
        region="us-east-1",
        endpoint_url=url,
        access_key=Secret(stack.s3.access_key),
        secret_key=Secret(stack.s3.secret_key),
    )
    return SinkConfig(url=f"s3://{stack.bucket}/{unique}", s3=s3)


def write_all_ways(config: SinkConfig) -> None:
    """A small object, a large one, and one that is not data; the server here refuses encrypted ones."""
    sink = Sink(config)
    for size in (10, 2 * PART_SIZE + 1):
        upload = sink.open(f"object-{size}")
        try:
            upload.write(b"x" * size)
            upload.seal()
            upload.publish()
        except HeadraceError:
            upload.discard()
    state = S3Objects(config, "_headrace/")
    with closing(state), suppress(HeadraceError):
        state.put("state", b"{}", None)


KMS = {"x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "alias/lake"}


@pytest.mark.parametrize(
    ("changes", "headers"),
    [
        ({}, {}),
        ({"tags": TAGS}, {"x-amz-tagging": "team=data+%26+more&pii=no"}),
        ({"encryption": "sse-s3"}, {"x-amz-server-side-encryption": "AES256"}),
        ({"encryption": "sse-kms", "kms_key_id": "alias/lake"}, KMS),
    ],
)
def test_every_request_that_makes_an_object_says_how(
    recorded: Recorded, changes: dict[str, Any], headers: dict[str, str]
) -> None:
    s3 = replace(recorded.config.s3, storage_class="STANDARD_IA", **changes)
    write_all_ways(replace(recorded.config, s3=s3))
    for start, storage_class in (
        (r"PUT [^ ?]*/object-10", "STANDARD_IA"),
        (r"POST [^ ]*\?uploads", "STANDARD_IA"),
        (r"PUT [^ ?]*/state", None),
    ):
        head = recorded.heads(start)[0]
        said = {name: value for name, value in head.items() if "encryption" in name or "tagging" in name}
        assert said == headers, start
        assert head.get("x-amz-storage-class") == storage_class
    parts = recorded.heads(r"PUT [^ ]*partNumber")
    assert len(parts) == 3 or "encryption" in changes
    assert not any("encryption" in name or "tagging" in name for head in parts for name in head)


def test_the_requester_pays_for_every_request(recorded: Recorded) -> None:
    config = replace(recorded.config, s3=replace(recorded.config.s3, requester_pays=True))
    write_all_ways(config)
    sink = Sink(config)
    list(sink.keys(""))
    sink.read("object-10", 0, 1)
    with closing(S3Objects(config, "_headrace/")) as state:
        state.get("state")
        state.listed("")
        state.delete("state")
    heads = [head for method in ("PUT", "POST", "GET", "DELETE") for head in recorded.heads(f"{method} ")]
    assert len(heads) >= 9
    assert [head["x-amz-request-payer"] for head in heads] == ["requester"] * len(heads)


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        ({"addressing": "path"}, "https://s3.eu-central-1.amazonaws.com/lake/a"),
        ({"accelerate": True}, "https://lake.s3-accelerate.amazonaws.com/a"),
        ({"endpoint_url": "http://minio:9000"}, "http://minio:9000/lake/a"),
        ({"endpoint_url": "http://minio:9000", "addressing": "virtual"}, "http://lake.minio:9000/a"),
        (
            {"endpoint_url": "https://bucket.vpce-1a2b-3c4d.s3.eu-central-1.vpce.amazonaws.com"},
            "https://bucket.vpce-1a2b-3c4d.s3.eu-central-1.vpce.amazonaws.com/lake/a",
        ),
    ],
)
def test_where_requests_go(changes: dict[str, Any], url: str) -> None:
    """Those for data and those for the state: seen in the URLs that their clients sign."""
    s3 = S3Config(region="eu-central-1", access_key=Secret("a"), secret_key=Secret("s"))
    config = SinkConfig("s3://lake", s3=replace(s3, **changes))
    data = ObjectStore(config, Calls(None)).filesystem.url("lake/a")
    with closing(S3Objects(config, "")) as objects:
        state = objects._client().generate_presigned_url("get_object", {"Bucket": "lake", "Key": "a"})
    assert {each.partition("?")[0] for each in (data, state)} == {url}


def test_a_request_is_repeated_by_one_library_only(
    stack: LocalStack, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not by each in turn as often as it likes; the limit is the one that the environment sets for AWS."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    proxy = S3Proxy(stack.s3.port)
    try:
        config = config_of(stack, unique, proxy.url)
        sink = Sink(config)
        sink.check()
        upload = sink.open("object")
        upload.write(b"x")
        upload.seal()
        busy = Answer(done=False, code="SlowDown")
        with proxy.following(lambda *_: busy), pytest.raises(TransientError, match="SlowDown"):
            upload.publish()
        assert proxy.changed == 2
        upload.discard()
    finally:
        proxy.shutdown()
        proxy.server_close()


@pytest.mark.parametrize(
    ("environment", "mode", "attempts"),
    [
        ({}, "adaptive", 6),
        ({"AWS_MAX_ATTEMPTS": "9"}, "adaptive", 9),
        ({"AWS_RETRY_MODE": "standard", "AWS_MAX_ATTEMPTS": "3"}, "standard", 3),
    ],
)
def test_less_is_sent_while_the_store_is_busy(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], mode: str, attempts: int
) -> None:
    """The library's adaptive mode, unless the environment says otherwise."""
    monkeypatch.delenv("AWS_MAX_ATTEMPTS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    filesystem = ObjectStore(SinkConfig("s3://lake", s3=S3Config(region="x")), Calls(None)).filesystem
    filesystem.connect()
    assert filesystem.s3.meta.config.retries == {"mode": mode, "total_max_attempts": attempts}


def test_credentials_of_a_role_are_renewed_before_they_expire(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IRSA: by the libraries, in the file system of the data and in the client of the state, without a refusal."""
    token, asked = tmp_path / "token", list[str]()
    none = Secret("")
    config = replace(recorded.config, s3=replace(recorded.config.s3, access_key=none, secret_key=none))
    with role_of_a_pod(token, asked) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        filesystem = ObjectStore(config, Calls(None)).filesystem
        with closing(S3Objects(config, "")) as objects:
            state = objects._client()
            for number in range(3):
                token.write_text(f"token-of-pod-{number}")  # Kubernetes replaces it, too
                for list_ in (partial(filesystem.call_s3, "list_objects_v2"), state.list_objects_v2):
                    with suppress(OSError, ClientError):  # the server here knows of no sessions
                        list_(Bucket="lake", MaxKeys=number + 1)
    keys = [re.findall(r"Credential=(KEY\d+)/", head["authorization"]) for head in recorded.heads("GET ")]
    assert len({key for (key,) in keys}) == len(keys) == 6
    assert {f"token-of-pod-{number}" for number in range(3)} <= set(asked)


def test_a_session_token_is_sent(recorded: Recorded) -> None:
    s3 = replace(recorded.config.s3, session_token=Secret("t0ken"))
    with pytest.raises(ConfigError, match="credentials"):
        Sink(replace(recorded.config, s3=s3)).check()  # the server here knows of no sessions
    assert recorded.heads("GET ")[0]["x-amz-security-token"] == "t0ken"


@pytest.mark.parametrize("fault", ["another authority", "another name"])
def test_a_certificate_that_is_not_trusted(
    stack: LocalStack, recorded: Recorded, tmp_path: Path, fault: str
) -> None:
    """It is a mistake in the configuration, and not retried."""
    authority = trustme.CA()
    names = ("elsewhere.example",) if fault == "another name" else ("localhost",)
    trusted = authority if fault == "another name" else trustme.CA()
    with tls_in_front_of(stack.s3.port, authority, names) as port:
        s3 = replace(
            recorded.config.s3,
            endpoint_url=f"https://localhost:{port}",
            ca_file=str(written_ca(trusted, tmp_path, "other.pem")),
        )
        with pytest.raises(ConfigError, match=r"sink\.s3\.ca_file"):
            Sink(replace(recorded.config, s3=s3)).check()


def test_half_a_body_replaces_nothing(stack: LocalStack, unique: str) -> None:
    """The sender has died: of a record of the state, and of an object whose upload is repeated."""
    proxy = S3Proxy(stack.s3.port)
    try:
        s3 = S3Config("us-east-1", proxy.url, Secret(stack.s3.access_key), Secret(stack.s3.secret_key))
        config = SinkConfig(url=f"s3://{stack.bucket}/{unique}", s3=s3)
        with closing(S3Objects(config, "state/")) as state:
            etag = state.put("record", b"the former one" * 100, None)
            with proxy.following(lambda method, _: Answer(is_cut=method == "PUT")), suppress(HeadraceError):
                state.put("record", b"the next one" * 100, etag)
            found = state.get("record")
            assert found is not None
            assert (found.body, found.etag) == (b"the former one" * 100, etag)
        sink = Sink(config)
        for data, is_cut in ((b"whole" * 100, False), (b"whole" * 200, True)):
            with proxy.following(lambda method, _, cut=is_cut: Answer(is_cut=cut and method == "PUT")):  # type: ignore[misc]
                upload = sink.open("k")
                upload.write(data)
                upload.seal()
                with suppress(HeadraceError):
                    upload.publish()
        assert stack.s3.filesystem().cat_file(f"{stack.bucket}/{unique}/k") == b"whole" * 100
    finally:
        proxy.shutdown()
        proxy.server_close()
