"""The HTTP server: what can be tested without an engine. ``integration/test_endpoints.py`` has the rest."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import trustme

from engine.supervisor.access import Certificate, Credentials
from engine.supervisor.endpoints import MAX_CONNECTIONS, HttpServer, Reply
from tests.tls import written_certificate


def test_it_can_be_closed_at_any_moment(caplog: pytest.LogCaptureFixture) -> None:
    """Also while it is still starting."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(600):
            server = HttpServer("127.0.0.1:0", lambda _: None)
            for _ in range(number):
                pass
            server.close()
            server.close()
    finally:
        sys.setswitchinterval(interval)
    assert not caplog.records


def test_it_answers_until_it_is_closed() -> None:
    server = HttpServer("127.0.0.1:0", lambda path: Reply(200, "text/plain", path.encode()))
    with urllib.request.urlopen(f"http://{server.address}/x", timeout=30) as answer:
        assert answer.read() == b"/x"
    server.close()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{server.address}/x", timeout=30)


# --- TLS and passwords -------------------------------------------------------------------------------------

PASSWORD = "pl4nted-p4ssword"
FLOOD = 400


@dataclass
class Secured:
    """A server with TLS and a password, and what clients trust."""

    port: int
    context: ssl.SSLContext
    directory: Path
    authority: trustme.CA

    def ask(self, path: str, authorization: str = "") -> tuple[int, str, http.client.HTTPMessage]:
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=self.context)
        with contextlib.closing(connection):
            headers = {"Authorization": authorization} if authorization else {}
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer.headers

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 30)


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    certificate, key = written_certificate(authority, tmp_path, "server")

    def answer(path: str) -> Reply | None:
        return Reply(503, "text/plain", f"verdict\nmore of {path}\n".encode()) if path != "/x" else None

    server = HttpServer(
        "127.0.0.1:0", answer, Certificate(str(certificate), str(key)), Credentials("ops", PASSWORD)
    )
    yield Secured(int(server.address.rpartition(":")[2]), context, tmp_path, authority)
    server.close()


def test_what_is_told_without_the_password(secured: Secured) -> None:
    """The verdicts, for probes; not even whether a path exists."""
    right = f"Bearer {PASSWORD}"
    assert secured.ask("/health")[:2] == (503, "verdict\n")
    assert secured.ask("/ready", "Bearer wrong")[:2] == (503, "verdict\n")
    assert secured.ask("/ready", right)[:2] == (503, "verdict\nmore of /ready\n")
    for path in ("/", "/status", "/metrics", "/x", "//health", "/health/"):
        code, body, headers = secured.ask(path)
        assert code == 401
        assert "more of" not in body
        assert headers["WWW-Authenticate"].startswith("Basic ")
    assert secured.ask("/x", right)[0] == 404
    assert secured.ask("/status", right)[:2] == (503, "verdict\nmore of /status\n")
    assert secured.ask("/status", f"Basic {b64encode(f'ops:{PASSWORD}'.encode()).decode()}")[0] == 503


def test_handshakes_count_as_connections(secured: Secured) -> None:
    """Clients that never finish one, or never begin, keep nobody out, and use up no more files than others."""
    before = psutil.Process().num_fds()
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(secured.connect()) for _ in range(FLOOD)]
        for each in kept[::2]:
            with contextlib.suppress(ConnectionError):
                each.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03")  # the first bytes of a handshake
        assert secured.ask("/health")[0] == 503
        # Ours and the server's ends are in one process.
        assert psutil.Process().num_fds() - before - FLOOD <= MAX_CONNECTIONS + 20
        assert secured.ask("/health")[0] == 503
        for each in kept:  # the server ends them all, although their clients keep them
            with contextlib.suppress(ConnectionError):
                assert each.recv(1) == b""
    assert psutil.Process().num_fds() <= before + 20


def test_a_slow_client_is_cut_off_whatever_it_does(secured: Secured) -> None:
    with secured.connect() as plain, contextlib.suppress(ConnectionError):
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"verdict" not in plain.recv(65536), "not without TLS"
    with secured.connect() as tcp, secured.context.wrap_socket(tcp, server_hostname="127.0.0.1") as shaken:
        shaken.sendall(b"GET /health HTTP/1.1\r\nX-")
        with contextlib.suppress(OSError):
            assert shaken.recv(1) == b""
    assert secured.ask("/health")[0] == 503


def test_a_replaced_certificate_is_served(secured: Secured) -> None:
    authority = trustme.CA()
    for path in written_certificate(authority, secured.directory, "new"):
        path.rename(secured.directory / path.name.replace("new", "server"))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            secured.ask("/health")
        except ssl.SSLCertVerificationError:
            break
        time.sleep(0.1)
    secured.context = ssl.create_default_context()
    authority.configure_trust(secured.context)
    assert secured.ask("/health")[0] == 503


def test_a_server_with_tls_can_be_closed_at_any_moment(
    secured: Secured, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = Certificate(str(tmp_path / "server.pem"), str(tmp_path / "server.key"))
    for number in range(50):
        server = HttpServer("127.0.0.1:0", lambda _: None, certificate)
        address = "127.0.0.1", int(server.address.rpartition(":")[2])
        with socket.create_connection(address, 30) as silent:
            if number % 2:
                silent.sendall(b"\x16\x03\x01")
            server.close()
    assert not caplog.records
