"""One change stream as raw replies: opened, read, resumed.

State: the server's cursor, the token up to which replies have been handed out, and the token up to which
events are skipped, because they were taken under another selection. Owner: the prefetch thread of one reader.

The rules for resuming are those of the change streams specification
(https://github.com/mongodb/specifications, source/change-streams).

A server does not find every token that was its own: not the last fragment's of a split event whose document has
shrunk or gone since, and no token whose type bits were not kept (records of former versions of this engine). The
stream then starts at the token's cluster time, and what lies up to the token is skipped by the order of tokens.
"""

from __future__ import annotations

import logging
from typing import Any

from bson import json_util
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from msgspec.structs import replace
from pymongo.errors import OperationFailure, PyMongoError

from engine.core.messages import StreamSpec
from engine.core.position import Position, is_behind, split_time, token_document
from engine.errors import ConfigError, FatalError, HeadraceError
from engine.source import large_events, watchable
from engine.source.failures import translate
from engine.source.raw_cursor import RawCursor
from engine.source.reply import Reply, SplitEvents
from engine.source.session import Client, Members

# How long the server waits for events before it answers with none; shorter while the end is looked for.
AWAIT_MS = 1000
AWAIT_END_MS = 100
SERVER_REPLY_SIZE = 16 * 2**20
_UNRECOGNIZED_STAGE = 40324
# InvalidResumeToken, ChangeStreamFatalError; and what a server says that cannot read the KeyString in a token.
_TOKEN_REFUSED = {260, 280}
_KEY_STRING_ERRORS = range(50790, 50900)
_FULL_DOCUMENT = {"update_lookup": "updateLookup", "when_available": "whenAvailable", "required": "required"}

log = logging.getLogger("headrace")


class ChangeStream:
    """Reads one stream from a position on.

    Args:
        client: a client of the deployment; or whom to read from, chosen anew whenever the stream is opened.
        reply_size: bytes of a reply, about; the server makes none larger than ``SERVER_REPLY_SIZE``.
        ahead: ask for the next reply before the last one is looked at.
    """

    def __init__(
        self,
        client: Client | Members,
        spec: StreamSpec,
        position: Position,
        *,
        reply_size: int = SERVER_REPLY_SIZE,
        await_ms: int = AWAIT_MS,
        ahead: bool = False,
    ) -> None:
        members = client if isinstance(client, Members) else Members(client, "", "primary")
        database = spec.database if spec.level != "deployment" else "admin"
        self._cursor = RawCursor(members, database, self._more_options, self._may_ask_ahead)
        self._asks_ahead = ahead
        self._spec = spec
        self._position = position
        self._skip_to = "" if position.exact else position.token
        self._reply_size = reply_size
        self._await_ms = await_ms
        self._batch_size: int | None = None
        self._split_events = SplitEvents()
        self._can_split_events = True
        self._leaves_out = False  # from the failure at an event that is too large until that has come
        self._operation = f"read the change stream {spec.stream}"

    def next(self) -> Reply:
        """The next reply; opens or reopens the stream first where that is needed.

        Raises:
            TransientError: worth another call, which resumes behind the last reply that was handed out.
            StreamLostError: the history is gone.
            ConfigError: the pipeline, the options or the rights do not serve.
        """
        try:
            reply = self._read()
        except PyMongoError as error:
            self._forget_cursor()
            raise self._translated(error) from error
        if self._skip_to and reply.token and self._has_passed(reply):
            self._skip_to = ""
        if reply.token and not self._skip_to and (reply.token != self._position.token or not self._position.exact):
            time = reply.token_time or self._position.time
            self._position = Position(reply.token, time, after_invalidate=reply.ends_invalidated)
        if self._position.token and self._position.exact:
            reply.position = self._position
        self._adapt_batch_size(reply)
        return reply

    def _translated(self, error: PyMongoError) -> HeadraceError:
        translated = translate(self._operation, error)
        code = error.code if isinstance(error, OperationFailure) else None
        if code == large_events.TOO_LARGE:
            return FatalError(self._operation, f"an event is too large (code {code})", large_events.REMEDY)
        if code == watchable.NOT_SUPPORTED_ON_VIEW:
            return ConfigError(self._operation, translated.cause, watchable.REMEDY)
        return translated

    def _has_passed(self, reply: Reply) -> bool:
        """Whether the server has passed what was taken before: one that stands at it may have more fragments."""
        is_there = reply.ends_invalidated and not is_behind(self._skip_to, reply.token)
        return is_there or is_behind(reply.token, self._skip_to)

    def _adapt_batch_size(self, reply: Reply) -> None:
        """Ask for as many events next as will make a reply of the wanted size, as far as one can tell."""
        if len(reply) and self._reply_size < SERVER_REPLY_SIZE:
            mean = (reply.offsets[-1] - reply.offsets[0]) / len(reply)
            self._batch_size = max(1, int(self._reply_size / mean))

    @property
    def unanswered_s(self) -> float:
        """How long the server has owed an answer."""
        return self._cursor.unanswered_s

    def close(self) -> None:
        """End the cursor on the server, if it is there."""
        self._cursor.close()
        self._split_events = SplitEvents()

    def _read(self) -> Reply:
        while True:
            try:
                return self._take(self._cursor.more() if self._cursor.is_open else self._open())
            except OperationFailure as error:
                if error.code == _UNRECOGNIZED_STAGE and self._can_split_events:
                    self._can_split_events = False  # a server before 6.0.9 or 7.0
                elif error.code == large_events.TOO_LARGE and not self._leaves_out:
                    self._forget_cursor()
                    self._leaves_out = True
                elif _refuses_token(error) and self._position.token and self._position.exact:
                    self._forget_cursor()
                    self._start_at_time(error)
                else:
                    raise

    def _start_at_time(self, error: OperationFailure) -> None:
        fields = {"stream": self._spec.stream, "code": error.code, "token": self._position.token}
        log.warning("the server does not find the resume token; starting at its time", extra={"fields": fields})
        self._position = replace(self._position, exact=False)
        self._skip_to = self._position.token

    def _open(self) -> bytes:
        target: str | int = self._spec.collections[0] if self._spec.level == "collection" else 1
        command = {"aggregate": target, "pipeline": self._pipeline(), "cursor": self._batch_options()}
        return self._cursor.open(command)

    def _may_ask_ahead(self) -> bool:
        """Not before the size of events is known, and not where each of them is a reply by itself."""
        return self._asks_ahead and self._batch_size is not None and self._batch_size > 1

    def _more_options(self) -> dict[str, int]:
        return {"maxTimeMS": self._await_ms} | self._batch_options()

    def _batch_options(self) -> dict[str, int]:
        return {} if self._batch_size is None else {"batchSize": self._batch_size}

    def _take(self, raw: bytes) -> Reply:
        reply = Reply.parse(raw)
        reply.token = reply.token_behind()
        if self._skip_to:
            reply = reply.after(self._skip_to)
        reply = self._split_events.join(reply)
        # The server closes a change stream only behind an invalidate event; a pipeline may hide it.
        reply.ends_invalidated = not self._cursor.is_open
        if self._leaves_out and not reply.is_partial:
            self._look_for_shortened(reply)
        return reply

    def _look_for_shortened(self, reply: Reply) -> None:
        """Behind the event that was too large, the stream goes on as it is configured."""
        for fields in large_events.shortened_events(reply):
            what = "an event past 16 MiB has landed without what was looked up for it"
            log.warning(what, extra={"fields": {"stream": self._spec.stream} | fields})
            self._leaves_out = False
        if not self._leaves_out:
            self._cursor.end()

    def _forget_cursor(self) -> None:
        self._cursor.forget()
        self._split_events = SplitEvents()

    def _pipeline(self) -> list[dict[str, Any]]:
        spec = self._spec
        options: dict[str, Any] = _start_option(self._position)
        if spec.full_document != "default":
            options["fullDocument"] = _FULL_DOCUMENT[spec.full_document]
        if spec.full_document_before_change != "off":
            options["fullDocumentBeforeChange"] = _FULL_DOCUMENT[spec.full_document_before_change]
        if spec.expanded_events:
            options["showExpandedEvents"] = True
        if spec.level == "deployment":
            options["allChangesForCluster"] = True
        stages: list[dict[str, Any]] = [{"$changeStream": options}]
        if spec.level == "database" and spec.collections:
            stages.append(_collections_stage(spec))
        elif spec.parts > 1:
            stages.append(_split_stage(spec.part, spec.parts))
        stages += json_util.loads(spec.pipeline)
        if self._leaves_out:
            stages.append(large_events.leave_out_stage())
        if self._can_split_events:
            stages.append({"$changeStreamSplitLargeEvent": {}})
        return stages


def _refuses_token(error: OperationFailure) -> bool:
    """Whether the server cannot resume from the token, which its cluster time may serve instead of."""
    return error.code in _TOKEN_REFUSED or error.code in _KEY_STRING_ERRORS


def _start_option(position: Position) -> dict[str, Any]:
    if not position.token or not position.exact:
        return {"startAtOperationTime": Timestamp(*split_time(position.time))}
    name = "startAfter" if position.after_invalidate else "resumeAfter"
    return {name: RawBSONDocument(token_document(position.token))}


def _collections_stage(spec: StreamSpec) -> dict[str, Any]:
    """Only these collections; what concerns the whole database goes with one of such streams.

    Another collection that is renamed to the name of one of these concerns them: ``to`` is a rename's alone.
    """
    names = {"$in": list(spec.collections)}
    wanted: list[dict[str, Any]] = [{"ns.coll": names}, {"to.coll": names}]
    if spec.carries_database:
        wanted.append({"ns.coll": {"$exists": False}})
    return {"$match": {"$or": wanted}}


def _split_stage(part: int, parts: int) -> dict[str, Any]:
    """Documents whose hash falls into this part; events without a document have one hash too.

    A remainder has the sign of the dividend, and the hash may be negative.
    """
    remainder = {"$mod": [{"$toHashedIndexKey": "$documentKey._id"}, parts]}
    return {"$match": {"$expr": {"$eq": [{"$mod": [{"$add": [remainder, parts]}, parts]}, part]}}}
