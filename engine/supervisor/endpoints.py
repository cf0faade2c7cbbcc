"""The HTTP server behind ``telemetry.listen``, built so that no client can harm the engine.

One thread with an event loop; uvicorn speaks HTTP. A connection has one request and a few seconds for all of it,
and the number of connections is limited: one more displaces the oldest. So clients that stay idle, or that shake
hands, send or read slowly, use up neither the engine's threads nor its file descriptors, and probes are still
answered.

State: the connections, oldest first. Owner: the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from h11 import LocalProtocolError
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from engine.errors import ConfigError
from engine.supervisor.access import Certificate, Credentials

MAX_CONNECTIONS = 128
# How many can wait to be accepted. They are all accepted at once, so there are briefly that many more.
BACKLOG = 128
REQUEST_TIMEOUT_S = 5.0
MAX_HEADERS_BYTES = 16 * 2**10
WARN_EVERY_S = 60.0
# Orchestrators' probes have no credentials. Without them, nothing but the verdict is told.
PROBES = ("/health", "/ready")
_METHODS = ("GET", "HEAD")
_TEXT = "text/plain; charset=utf-8"
_NOTHING_ELSE = "default-src 'none'; frame-ancestors 'none'"
_ALWAYS = (
    (b"connection", b"close"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

log = logging.getLogger("headrace")


class Reply(NamedTuple):
    """What is sent; ``policy`` is the Content-Security-Policy."""

    code: int
    kind: str
    body: bytes
    policy: str = _NOTHING_ELSE


class HttpServer:
    """Serves an address from its creation on.

    Args:
        listen: ``host:port``; an IPv6 address in brackets; port 0 for any free port.
        answer: the reply for a path; None if there is no such path.
        certificate: for TLS; None for none.
        credentials: what clients must present, except for ``PROBES``; None for nothing.

    Raises:
        ConfigError: the address cannot be used.
    """

    def __init__(
        self,
        listen: str,
        answer: Callable[[str], Reply | None],
        certificate: Certificate | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self._answer = answer
        self._certificate = certificate
        self._credentials = credentials
        self._warned_at = -WARN_EVERY_S
        self._socket = _bound(listen)
        host, port = self._socket.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._config = Config(
            self._app,
            interface="asgi3",
            proxy_headers=False,
            http=H11Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            h11_max_incomplete_event_size=MAX_HEADERS_BYTES,
        )
        # What a client sends is never worth a log line; our own failures are logged by ``_warn``.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._loop.set_exception_handler(lambda _, context: self._warn(context.get("exception"), str(context)))
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering, at once."""
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself, and is closed
            # Not ``stop``, which the loop would forget while it is still starting to serve.
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception:
            log.exception("the endpoints have stopped; the engine continues")
        finally:
            self._socket.close()
            self._loop.close()

    async def _serve(self) -> None:
        open_: dict[_Connection, None] = {}
        state = ServerState()
        await self._loop.create_server(
            lambda: _Connection(open_, self._config, state, self._loop, self._certificate),
            sock=self._socket,
            backlog=BACKLOG,
        )
        await self._closing.wait()
        # Not the server's ``close``: what has been accepted could no longer become a connection, and be closed.
        self._loop.remove_reader(self._socket)
        # What has been accepted, or shakes hands, has a task, which then ends.
        while open_ or asyncio.all_tasks() - {asyncio.current_task()}:
            for each in list(open_):
                each.end()
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # the transports close in the loop's next iteration

    async def _app(self, scope: Any, _: Any, send: Any) -> None:
        reply = self._reply(scope["method"], scope["path"], dict(scope["headers"]).get(b"authorization", b""))
        headers = [
            (b"content-type", reply.kind.encode()),
            (b"content-length", str(len(reply.body)).encode()),
            (b"content-security-policy", reply.policy.encode()),
            *_ALWAYS,
        ]
        if reply.code == 405:
            headers.append((b"allow", ", ".join(_METHODS).encode()))
        if reply.code == 401:
            headers.append((b"www-authenticate", Credentials.challenge))
        with contextlib.suppress(LocalProtocolError):  # the rest of the request was not HTTP, and was refused
            await send({"type": "http.response.start", "status": reply.code, "headers": headers})
            await send({"type": "http.response.body", "body": reply.body})

    def _reply(self, method: str, path: str, authorization: bytes) -> Reply:
        is_trusted = self._credentials is None or self._credentials.accept(authorization)
        if not is_trusted and path not in PROBES:
            return Reply(
                401, _TEXT, b"telemetry.username and telemetry.password, or the latter as a bearer token\n"
            )
        try:
            reply = self._answer(path)
        except Exception as error:  # a bug of ours, which must not stop anything else
            self._warn(error, f"answer {path}")
            return Reply(500, _TEXT, b"internal error; the log has the cause\n")
        if reply is None:
            return Reply(404, _TEXT, b"/ /health /ready /metrics /status\n")
        if method not in _METHODS:
            return Reply(405, _TEXT, b"GET or HEAD\n")
        return reply if is_trusted else reply._replace(body=reply.body.partition(b"\n")[0] + b"\n")

    def _warn(self, error: BaseException | None, what: str) -> None:
        """Log a failure, at most once per ``WARN_EVERY_S``: otherwise clients could fill the log."""
        if time.monotonic() - self._warned_at >= WARN_EVERY_S:
            self._warned_at = time.monotonic()
            fields = {"doing": what, "cause": repr(error)}
            log.warning("an endpoint has failed", extra={"fields": fields}, exc_info=error)


class _Connection(H11Protocol):
    """One connection, from its acceptance to its end; ``open_`` holds all open ones, oldest first.

    With TLS, it counts and its time run from its acceptance too, not only from the end of the handshake.
    """

    def __init__(
        self,
        open_: dict[_Connection, None],
        config: Config,
        state: ServerState,
        loop: asyncio.AbstractEventLoop,
        certificate: Certificate | None,
    ) -> None:
        super().__init__(config, state, {}, loop)
        self._open = open_
        self._certificate = certificate
        self._tcp: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._handshake: asyncio.Task[None] | None = None  # the loop itself keeps no task
        self._early = b""
        self._is_secured = certificate is None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self._open) >= MAX_CONNECTIONS:
            next(iter(self._open)).end()
        self._open[self] = None
        self._deadline = self.loop.call_later(REQUEST_TIMEOUT_S, self.end)
        self._tcp = transport
        if self._certificate is None:
            super().connection_made(transport)
        else:
            self._handshake = self.loop.create_task(self._shake_hands(transport, self._certificate.context()))

    async def _shake_hands(self, transport: asyncio.Transport, context: ssl.SSLContext) -> None:
        secure = None
        with contextlib.suppress(OSError):  # what the client sends is not TLS, or it has gone away
            secure = await self.loop.start_tls(
                transport,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=REQUEST_TIMEOUT_S,
                ssl_shutdown_timeout=REQUEST_TIMEOUT_S,
            )
        if secure is None:
            self.end()
            return
        self._is_secured = True
        super().connection_made(secure)
        if self._early:  # nothing would mean the end to h11
            super().data_received(self._early)

    def data_received(self, data: bytes) -> None:
        if not self._is_secured:  # it came with the end of the handshake, of which we are only told next
            self._early += data
        else:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        if self._is_secured:
            super().connection_lost(exc)

    def end(self) -> None:
        """Close it at once, finished or not."""
        self._forget()
        if self._tcp is not None:
            self._tcp.abort()

    def _forget(self) -> None:
        self._open.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()


def _bound(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        remedy = 'Choose another telemetry.listen, or "" for none.'
        raise ConfigError(f"listen on {listen}", str(error), remedy) from error
