"""Passwords that are compared, and certificates that are replaced while the server runs."""

from __future__ import annotations

import logging
import ssl
from base64 import b64encode
from pathlib import Path

import pytest
import trustme

from engine.errors import ConfigError
from engine.supervisor.access import LOOK_EVERY_S, Certificate, Credentials
from tests.tls import written_certificate

PASSWORD = "pl4nted: pässword"


def basic(user: str, password: str) -> bytes:
    return b"Basic " + b64encode(f"{user}:{password}".encode())


@pytest.mark.parametrize(
    ("authorization", "right"),
    [
        (basic("ops", PASSWORD), True),
        (basic("ops", PASSWORD).replace(b"Basic", b"basic"), True),
        (b"Bearer " + PASSWORD.encode(), True),
        (b"bearer   " + PASSWORD.encode(), True),
        (basic("root", PASSWORD), False),
        (basic("ops", PASSWORD[:-1]), False),
        (basic("ops", ""), False),
        (b"Basic " + PASSWORD.encode(), False),
        (b"Bearer " + basic("ops", PASSWORD).partition(b" ")[2], False),
        (b"Bearer", False),
        (b"Digest " + PASSWORD.encode(), False),
        (PASSWORD.encode(), False),
        (b"", False),
        (b"\xff\xfe \xff", False),
    ],
)
def test_who_is_let_in(authorization: bytes, right: bool) -> None:
    assert Credentials("ops", PASSWORD).accept(authorization) is right


class Rotated:
    """A certificate whose files are replaced; time goes on when it is asked for."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.authority, self.directory = trustme.CA(), directory
        now = [0.0]
        monkeypatch.setattr("engine.supervisor.access.time.monotonic", lambda: now[0])
        self.paths = self.write("first")
        self.certificate = Certificate(str(self.paths[0]), str(self.paths[1]))
        self._now = now

    def write(self, name: str) -> tuple[Path, Path]:
        return written_certificate(self.authority, self.directory, name)

    def context(self) -> ssl.SSLContext:
        self._now[0] += LOOK_EVERY_S
        return self.certificate.context()


@pytest.fixture
def rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rotated:
    return Rotated(tmp_path, monkeypatch)


def test_a_new_certificate_is_used_once_both_files_are_there(
    rotated: Rotated, caplog: pytest.LogCaptureFixture
) -> None:
    first = rotated.context()
    assert rotated.context() is first, "unchanged files are not loaded again"
    certificate, key = rotated.write("second")
    certificate.rename(rotated.paths[0])
    with caplog.at_level(logging.INFO, "headrace"):
        assert rotated.context() is first, "the key is still the former one's"
        assert rotated.context() is first
        key.rename(rotated.paths[1])
        second = rotated.context()
    assert second is not first
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "key values mismatch" in str(caplog.records[0].__dict__["fields"])


@pytest.mark.parametrize("content", [b"", b"not PEM\n", None])
def test_the_former_certificate_stays_while_the_new_one_is_unusable(
    content: bytes | None, rotated: Rotated, caplog: pytest.LogCaptureFixture
) -> None:
    first = rotated.context()
    rotated.paths[0].unlink()
    if content is not None:
        rotated.paths[0].write_bytes(content)
    assert rotated.context() is first
    assert rotated.context() is first
    assert len(caplog.records) == 1, "once for each change"


def test_a_link_that_is_switched_is_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Kubernetes does with secrets."""
    rotated = Rotated(tmp_path, monkeypatch)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written_certificate(rotated.authority, tmp_path / name, "tls")
    data = tmp_path / "data"
    data.symlink_to("one")
    rotated.certificate = Certificate(str(data / "tls.pem"), str(data / "tls.pem"))
    first = rotated.context()
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(data)
    assert rotated.context() is not first


@pytest.mark.parametrize("broken", ["missing", "encrypted", "of another"])
def test_a_certificate_that_cannot_be_loaded_is_refused(broken: str, tmp_path: Path) -> None:
    """Without asking for a password on the terminal."""
    authority = trustme.CA()
    certificate, key = written_certificate(authority, tmp_path, "server")
    if broken == "missing":
        key.unlink()
    elif broken == "encrypted":
        certificate, key = written_certificate(authority, tmp_path, "encrypted", password="pl4nted")
    else:
        key = written_certificate(authority, tmp_path, "other")[1]
    with pytest.raises(ConfigError, match=r"telemetry.certificate_file .*Give files in PEM"):
        Certificate(str(certificate), str(key))
