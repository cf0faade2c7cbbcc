"""TCP proxies: one limits the throughput, one loses answers, one can be closed, silenced and slowed down."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

_AT_ONCE = 64 * 1024
_POLL_S = 0.2


class SlowProxy:
    """Limits what all clients together send to ``bytes_per_s``; answers pass at once.

    The socket buffers are small, so that clients notice the limit.
    """

    def __init__(self, port: int, bytes_per_s: float) -> None:
        self._server = port
        self.bytes_per_s = bytes_per_s
        self._pace = threading.Lock()
        self._free_at = 0.0
        self._stopped = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _AT_ONCE)
        self._listening.settimeout(_POLL_S)
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        self._listening.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Pass bytes both ways until one side closes."""
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._server)) as server:
            client.settimeout(None)
            others = {client: server, server: client}
            while not self._stopped.is_set():
                for ready in select.select([client, server], [], [], _POLL_S)[0]:
                    data = ready.recv(_AT_ONCE)
                    if not data:
                        return
                    if ready is client:
                        self._wait(len(data))
                    others[ready].sendall(data)

    def _wait(self, size: int) -> None:
        with self._pace:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size / self.bytes_per_s
            wait_s = self._free_at - now
        time.sleep(max(0.0, wait_s))


class Cuts:
    """Loses the next answers of a server: closes the connection instead of passing them on.

    State: ``left``, how many answers to lose; ``kept``, how many were lost.
    """

    def __init__(self, port: int) -> None:
        self.left = self.kept = 0
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server))
                threading.Thread(target=self._ask, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError), server:
            while data := client.recv(65536):
                server.sendall(data)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            while data := server.recv(65536):
                if self.left:
                    self.left, self.kept = self.left - 1, self.kept + 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)


@dataclass(eq=False)
class _Link:
    """One connection through a gate.

    Attributes:
        pid: the process that opened it.
        lost: bytes were swallowed, so that it can never be used again.
    """

    client: socket.socket
    server: socket.socket
    pid: int
    lost: bool = False

    def close(self) -> None:
        for each in (self.client, self.server):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


Which = Callable[[int], bool]


class Gate:
    """Passes connections on, until it is told otherwise about those of some processes.

    State: the open links, and whose connections are refused, swallowed or delayed at present, by pid. ``target``,
    the port of the server, may be changed: it is that of new connections.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self._links: list[_Link] = []
        self._refused: list[Which] = []
        self._silent: list[Which] = []
        self._delays: list[tuple[Which, float]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more connections, and close the open ones."""
        self._listener.close()
        self.drop(lambda _: True)

    def drop(self, whose: Which) -> None:
        """Close the open connections of some processes."""
        for link in [link for link in self._links if whose(link.pid)]:
            link.close()

    @contextmanager
    def closed(self, whose: Which) -> Iterator[None]:
        """Close and refuse connections."""
        self._refused.append(whose)
        self.drop(whose)
        yield
        self._refused.remove(whose)

    @contextmanager
    def silent(self, whose: Which) -> Iterator[None]:
        """Swallow what arrives. Connections that lost something stay open and dead, as behind a firewall."""
        self._silent.append(whose)
        yield
        self._silent.remove(whose)

    @contextmanager
    def slow(self, whose: Which, delay_s: float) -> Iterator[None]:
        """Delay everything, in both directions."""
        delay = whose, delay_s
        self._delays.append(delay)
        yield
        self._delays.remove(delay)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, address = self._listener.accept()
                threading.Thread(target=self._open, args=(client, address[1]), daemon=True).start()

    def _open(self, client: socket.socket, port: int) -> None:
        pid = _owner(port)
        try:
            if any(whose(pid) for whose in self._refused):
                raise ConnectionRefusedError
            link = _Link(client, socket.create_connection(("127.0.0.1", self.target)), pid)
        except OSError:
            client.close()
            return
        self._links.append(link)
        back = threading.Thread(target=self._pass, args=(link, link.server, client), daemon=True)
        back.start()
        self._pass(link, client, link.server)
        back.join()
        self._links.remove(link)
        for each in (client, link.server):
            each.close()

    def _pass(self, link: _Link, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_AT_ONCE):
                time.sleep(max((delay for whose, delay in self._delays if whose(link.pid)), default=0.0))
                link.lost = link.lost or any(whose(link.pid) for whose in self._silent)
                if not link.lost:
                    sink.sendall(data)
        link.close()


def _owner(port: int) -> int:
    """The process that has opened a connection from this port; 0 if it cannot be told."""
    for each in psutil.net_connections("tcp4"):
        if each.laddr and each.laddr.port == port and each.pid:
            return each.pid
    return 0
