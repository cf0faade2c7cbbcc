"""TCP proxies: one limits the throughput, one loses answers."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from types import TracebackType
from typing import Self

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
