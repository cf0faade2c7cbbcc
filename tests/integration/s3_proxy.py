"""An HTTP proxy in front of an S3 server. Requests are signed, so they pass unchanged; answers may not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_OF_A_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
_STATUS = {
    "AccessDenied": 403,
    "SlowDown": 503,
    "ServiceUnavailable": 503,
    "ExpiredToken": 400,
    "PreconditionFailed": 412,
    "ConditionalRequestConflict": 409,
}


@dataclass(frozen=True)
class Answer:
    """What becomes of a request.

    Attributes:
        done: it reaches the server.
        code: the S3 error that is answered; if empty, the server's own answer.
        wait_s: how long that takes.
        is_lost: the connection is closed instead of answering.
        is_cut: the server gets half of the body and takes it for the whole, as when a client dies, and what is
            between them passes on what has arrived; the connection is closed instead of answering.
    """

    done: bool = True
    code: str = ""
    wait_s: float = 0.0
    is_lost: bool = False
    is_cut: bool = False


Rule = Callable[[str, str], Answer]
PASS = Answer()


class S3Proxy(ThreadingHTTPServer):
    """State: ``rule``, which decides by method and path; ``changed``, how many requests it did not simply pass."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = port
        self.rule: Rule = lambda *_: PASS
        self.changed = 0
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def following(self, rule: Rule) -> Iterator[None]:
        """Decide by this rule meanwhile."""
        before, self.rule = self.rule, rule
        yield
        self.rule = before

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may leave at any time."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: S3Proxy

    def _serve(self) -> None:
        body = self._body()
        if len(body) < int(self.headers.get("Content-Length") or 0):  # the client has died
            self.close_connection = True
            return
        answer = self.server.rule(self.command, self.path)
        self.server.changed += answer is not PASS
        self._hold(answer)
        status, content = 0, b""
        headers: list[tuple[str, str]] = []
        if answer.done:
            try:
                status, headers, content = self._forwarded(body, is_cut=answer.is_cut)
            except (OSError, HTTPException):
                answer = Answer(is_lost=True)  # the server is away
        if answer.is_lost:
            self.close_connection = True
            return
        if answer.code:
            status, headers = _STATUS[answer.code], [("Content-Type", "application/xml")]
            content = f"<Error><Code>{answer.code}</Code><Message>a test</Message></Error>".encode()
            headers.append(("Content-Length", str(len(content))))
        self._answer(status, headers, content)

    def _hold(self, answer: Answer) -> None:
        """Wait; but no longer than the rule holds."""
        rule, until = self.server.rule, time.monotonic() + answer.wait_s
        while time.monotonic() < until and self.server.rule is rule:
            time.sleep(0.05)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _forwarded(self, body: bytes, *, is_cut: bool) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = HTTPConnection("127.0.0.1", self.server.target, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _OF_A_CONNECTION:
                    connection.putheader(name, value)
            body = body[: len(body) // 2] if is_cut else body
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            if is_cut:
                raise ConnectionAbortedError
            content = answer.read()
            headers = [each for each in answer.getheaders() if each[0].lower() not in _OF_A_CONNECTION]
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            if length is not None and answer.status != 204:
                headers.append(("Content-Length", length))
            return answer.status, headers, content
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(OSError):
                self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve
