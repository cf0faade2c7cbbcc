"""The HTTP server behind ``telemetry.listen``, built so that no client can harm the engine.

One thread with an event loop; uvicorn speaks HTTP. A connection has one request and a few seconds for all of it,
and the number of connections is limited: one more displaces the oldest. So clients that stay idle, or that send or
read slowly, use up neither the engine's threads nor its file descriptors, and probes are still answered.

State: the connections, oldest first. Owner: the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from h11 import LocalProtocolError
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from engine.errors import ConfigError

MAX_CONNECTIONS = 128
# How many can wait to be accepted. They are all accepted at once, so there are briefly that many more.
BACKLOG = 128
REQUEST_TIMEOUT_S = 5.0
MAX_HEADERS_BYTES = 16 * 2**10
WARN_EVERY_S = 60.0
_METHODS = ("GET", "HEAD")

log = logging.getLogger("headrace")


# A status code, a content type, and the body.
Reply = tuple[int, str, bytes]


class HttpServer:
    """Serves an address from its creation on.

    Args:
        listen: ``host:port``; an IPv6 address in brackets; port 0 for any free port.
        answer: the reply for a path; None if there is no such path.

    Raises:
        ConfigError: the address cannot be used.
    """

    def __init__(self, listen: str, answer: Callable[[str], Reply | None]) -> None:
        self._answer = answer
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
            lambda: _Connection(open_, self._config, state, self._loop), sock=self._socket, backlog=BACKLOG
        )
        await self._closing.wait()
        for each in list(open_):
            each.end()
        await asyncio.sleep(0)  # the transports close in the loop's next iteration

    async def _app(self, scope: Any, _: Any, send: Any) -> None:
        code, kind, body = self._reply(scope["method"], scope["path"])
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if code == 405:
            headers.append((b"allow", ", ".join(_METHODS).encode()))
        with contextlib.suppress(LocalProtocolError):  # the rest of the request was not HTTP, and was refused
            await send({"type": "http.response.start", "status": code, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _reply(self, method: str, path: str) -> Reply:
        try:
            reply = self._answer(path)
        except Exception as error:  # a bug of ours, which must not stop anything else
            self._warn(error, f"answer {path}")
            return 500, "text/plain", b"internal error; the log has the cause\n"
        if reply is None:
            return 404, "text/plain", b"/health /ready /metrics /status\n"
        if method not in _METHODS:
            return 405, "text/plain", b"GET or HEAD\n"
        return reply

    def _warn(self, error: BaseException | None, what: str) -> None:
        """Log a failure, at most once per ``WARN_EVERY_S``: otherwise clients could fill the log."""
        if time.monotonic() - self._warned_at >= WARN_EVERY_S:
            self._warned_at = time.monotonic()
            fields = {"doing": what, "cause": repr(error)}
            log.warning("an endpoint has failed", extra={"fields": fields}, exc_info=error)


class _Connection(H11Protocol):
    """One connection, from its acceptance to its end; ``open_`` holds all open ones, oldest first."""

    def __init__(
        self, open_: dict[_Connection, None], config: Config, state: ServerState, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(config, state, {}, loop)
        self._open = open_
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self._open) >= MAX_CONNECTIONS:
            next(iter(self._open)).end()
        self._open[self] = None
        self._deadline = self.loop.call_later(REQUEST_TIMEOUT_S, self.end)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def end(self) -> None:
        """Close it at once, finished or not."""
        self._forget()
        self.transport.abort()

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
