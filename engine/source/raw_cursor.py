"""A cursor of one member, read by raw commands: opened, read, ended.

The commands are sent as they are, with a raw codec, because a reply then costs the client almost nothing and is
whole (a change stream's carries its ``postBatchResumeToken``). The next reply can be asked for before the last one
is looked at, so that the server does not wait for the client.

State: the member that is read from, a session on it, the cursor's id, the request that is on its way in a thread,
and since when it is. Owner: whoever reads the cursor; nobody else uses the session.
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
    """Sends the commands of one reader, one cursor after the other.

    Args:
        members: whom to read from; chosen anew after ``forget``.
        options: gives those of the next getMore, at the time when it is sent.
        may_ask_ahead: whether to ask for the next reply as soon as one has come.
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
        """How long the request that is on its way has been so; 0 when there is none. For any thread."""
        sent_at = self._sent_at
        return 0.0 if sent_at is None else time.monotonic() - sent_at

    @property
    def is_open(self) -> bool:
        """Whether the server has more."""
        return bool(self._id)

    @property
    def member(self) -> Client:
        """The member that is read from.

        Raises:
            PyMongoError: there is none that serves.
        """
        if self._member is None:
            with self._under_way():
                self._member = self._members.choose()
        return self._member

    def open(self, command: dict[str, Any]) -> bytes:
        """The first reply of a new cursor.

        Raises:
            PyMongoError: as the driver has it.
        """
        return self._received(self._send(command))

    def more(self) -> bytes:
        """The next reply.

        Raises:
            PyMongoError: as the driver has it; nothing is on its way then.
        """
        asked, self._asked = self._asked, None
        return self._received(self._send(self._get_more()) if asked is None else asked.result())

    def forget(self) -> None:
        """Begin anew with the next command, perhaps on another member. The server's cursor times out by itself."""
        self._await_asked()
        self._id = 0
        if self._session is not None:
            self._session.end_session()
        self._member = self._session = None

    def close(self) -> None:
        """End the cursor on the server, if it is there, and the thread."""
        self.end()
        self._thread.shutdown(wait=False)

    def end(self) -> None:
        """End the cursor on the server, if it is there; the next command begins anew."""
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
