"""A cursor on one member, opened, read and killed by raw commands.

Raw commands with a raw codec make a reply almost free for the client, and keep it whole (a change stream's
contains its ``postBatchResumeToken``). The next reply can be requested before the last one is processed, so that
the server does not wait for the client.

State: the member being read, a session on it, the cursor's id, the request in flight in a thread, and when it was
sent. Owner: the reader of the cursor; nothing else uses the session.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.client_session import ClientSession
from pymongo.errors import PyMongoError

from engine.source.reply import cursor_of
from engine.source.session import Client, Members

_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)


class RawCursor:
    """Sends the commands of one reader, for one cursor after another.

    Args:
        members: where to choose the member to read, at first and after ``forget``.
        options: gives the options of each getMore when it is sent.
        may_ask_ahead: whether to request the next reply as soon as one has arrived.
    """

    def __init__(
        self,
        members: Members,
        database: str,
        options: Callable[[], dict[str, Any]],
        may_ask_ahead: Callable[[], bool],
    ) -> None:
        self._members = members
        self._database = database
        self._options = options
        self._may_ask_ahead = may_ask_ahead
        self._member: Client | None = None
        self._session: ClientSession | None = None
        self._id = 0
        self._collection = ""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._asked: Future[bytes] | None = None
        self._sent_at: float | None = None

    @property
    def unanswered_s(self) -> float:
        """How long the request in flight has been unanswered; 0 if there is none. Thread-safe."""
        sent_at = self._sent_at
        return 0.0 if sent_at is None else time.monotonic() - sent_at

    @property
    def is_open(self) -> bool:
        """Whether the server has more."""
        return bool(self._id)

    @property
    def member(self) -> Client:
        """The member being read.

        Raises:
            PyMongoError: no suitable member is available.
        """
        if self._member is None:
            with self._under_way():
                self._member = self._members.choose()
        return self._member

    def open(self, command: dict[str, Any]) -> bytes:
        """The first reply of a new cursor.

        Raises:
            PyMongoError: from the driver.
        """
        return self._received(self._send(command))

    def more(self) -> bytes:
        """The next reply.

        Raises:
            PyMongoError: from the driver; no request is in flight then.
        """
        asked, self._asked = self._asked, None
        return self._received(self._send(self._get_more()) if asked is None else asked.result())

    def forget(self) -> None:
        """Start over with the next command, perhaps on another member. The server's cursor times out by itself."""
        self._await_asked()
        self._id = 0
        if self._session is not None:
            self._session.end_session()
        self._member = self._session = None

    def close(self) -> None:
        """Kill the cursor on the server, if there is one, and end the thread."""
        self.end()
        self._thread.shutdown(wait=False)

    def end(self) -> None:
        """Kill the cursor on the server, if there is one; the next command starts over."""
        self._await_asked()
        try:
            if self._id:
                self._send({"killCursors": self._collection, "cursors": [self._id]})
        except PyMongoError:
            pass  # it times out by itself
        self.forget()

    def _received(self, raw: bytes) -> bytes:
        self._id, self._collection = cursor_of(raw)
        if self._id and self._may_ask_ahead():
            self._asked = self._thread.submit(self._send, self._get_more())
        return raw

    def _get_more(self) -> dict[str, Any]:
        return {"getMore": self._id, "collection": self._collection, **self._options()}

    def _send(self, command: dict[str, Any]) -> bytes:
        member = self.member
        if self._session is None:
            self._session = member.start_session(causal_consistency=False)
            if self._members.cluster_time is not None:
                self._session.advance_cluster_time(self._members.cluster_time)
        with self._under_way():
            reply = member[self._database].command(
                command, session=self._session, codec_options=_RAW, read_preference=self._members.preference
            )
        raw = reply.raw
        return raw if isinstance(raw, bytes) else bytes(raw)

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        self._sent_at = time.monotonic()
        try:
            yield
        finally:
            self._sent_at = None

    def _await_asked(self) -> None:
        if self._asked is not None:
            wait([self._asked])
            self._asked = None
