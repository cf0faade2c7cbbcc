"""Asking for the next reply before the last one is looked at, so that the server never waits for the client.

State: one thread, and the request that it is busy with. Owner: whoever reads the cursor. A reply's bytes are
enough to know whether there is a next one to ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from engine.rawbson.elements import find
from engine.source.reply import INT64

Send = Callable[[dict[str, Any]], bytes]


class Ahead:
    """Sends commands for replies of cursors.

    Args:
        send: sends a command and waits for the reply's bytes.
        get_more: the command for the next reply of the cursor; None to ask for nothing ahead.
    """

    def __init__(self, send: Send, get_more: Callable[[int], dict[str, Any] | None]) -> None:
        self._send = send
        self._get_more = get_more
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._asked: Future[bytes] | None = None

    def reply(self, command: dict[str, Any]) -> bytes:
        """The reply that was asked for ahead, or else the one to this command; the next one is on its way.

        Raises:
            PyMongoError: as the driver has it; nothing is on its way then.
        """
        asked, self._asked = self._asked, None
        raw = asked.result() if asked is not None else self._send(command)
        cursor_id = _cursor_id(raw)
        if cursor_id and (following := self._get_more(cursor_id)) is not None:
            self._asked = self._thread.submit(self._send, following)
        return raw

    def close(self) -> None:
        """End the thread, when it has nothing more to do."""
        self._thread.shutdown(wait=False)

    def drop(self) -> None:
        """Forget what is on its way, when it is there: the session is not used by two at once."""
        if self._asked is not None:
            wait([self._asked])
            self._asked = None


def _cursor_id(raw: bytes) -> int:
    """The cursor's id in a reply; 0 when there is nothing more."""
    cursor = find(raw, 0, b"cursor")
    found = find(raw, cursor[1], b"id") if cursor else None
    return int(INT64(raw, found[1])[0]) if found else 0
