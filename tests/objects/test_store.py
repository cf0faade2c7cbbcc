"""What requests to a real S3 server say, recorded on their way through TLS with a certificate of our own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from msgspec.structs import replace

from bench.local import LocalStack
from engine.config import S3Config, Secret, SinkConfig
from engine.errors import ConfigError, HeadraceError
from engine.objects.conditional import S3Objects
from engine.sink.objects import PART_SIZE, Sink
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
        s3 = S3Config(
            region="us-east-1",
            endpoint_url=f"https://localhost:{port}",
            access_key=Secret(stack.s3.access_key),
            secret_key=Secret(stack.s3.secret_key),
            ca_file=str(written_ca(authority, tmp_path)),
        )
        yield Recorded(SinkConfig(url=f"s3://{stack.bucket}/{unique}", s3=s3), seen)


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
