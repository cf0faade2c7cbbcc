"""One change stream as raw replies: opening, reading and resuming it.

State: the server's cursor, the token up to which replies have been returned, and the token up to which events are
skipped because they were already read under another selection. Owner: the prefetch thread of one reader.

It resumes by the rules of the change streams specification
(https://github.com/mongodb/specifications, source/change-streams).

A server does not find every token that it issued: not that of the last fragment of a split event whose document
has since shrunk or been deleted, and not a token without its type bits (in records of earlier versions of this
engine). The stream then starts at the token's cluster time, and skips events up to the token by the order of
tokens.
"""

from __future__ import annotations

import logging
from typing import Any

from bson import json_util
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from msgspec.structs import replace
from pymongo.errors import OperationFailure, PyMongoError

from engine.core.position import Position, is_after, split_time, token_document
from engine.core.specs import StreamSpec
from engine.errors import ConfigError, FatalError, HeadraceError
from engine.source import large_events, watchable
from engine.source.failures import translate
from engine.source.raw_cursor import RawCursor
from engine.source.reply import Reply, SplitEvents
from engine.source.selection import selection_stage
from engine.source.session import Client, Members

# How long the server waits for events before it returns an empty reply; shorter when reading up to a known end. An
# event is returned at once. At one request a second, those of an idle stream take a thousandth of a core.
AWAIT_MS = 3000
AWAIT_END_MS = 100
SERVER_REPLY_SIZE = 16 * 2**20
_UNRECOGNIZED_STAGE = 40324
# InvalidResumeToken, ChangeStreamFatalError; and the errors of a server that cannot parse a token's KeyString.
_TOKEN_REFUSED = {260, 280}
_KEY_STRING_ERRORS = range(50790, 50900)
_NO_IMAGE = 47  # NoMatchingDocument
_IMAGE_REMEDY = (
    'Set source.{key} to "when_available": the event then lands without that document. Images are kept from when '
    "the collection's changeStreamPreAndPostImages was enabled, for as long as the cluster's "
    "expireAfterSeconds allows: see to both before you require them again."
)
_FULL_DOCUMENT = {"update_lookup": "updateLookup", "when_available": "whenAvailable", "required": "required"}

log = logging.getLogger("headrace")


class ChangeStream:
    """Reads one stream from the given position on.

    Args:
        client: a client of the deployment, or the members to choose from whenever the stream is opened.
        reply_size: approximate bytes of a reply; the server's limit is ``SERVER_REPLY_SIZE``.
        ahead: request the next reply before the last one is processed.
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
        self._truncates = False  # from the failure at an event that is too large until that event has been read
        self._operation = f"read the change stream {spec.stream}"

    def next(self) -> Reply:
        """The next reply; opens or reopens the stream first if needed.

        Raises:
            TransientError: worth another call, which resumes after the last reply that was returned.
            StreamLostError: the oplog no longer reaches back to the position.
            ConfigError: the pipeline, the options or the user's rights do not allow it.
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
        if code == _NO_IMAGE and (missing := self._required_image(translated.cause)):
            # No retry brings it back, also of a stream that has been read before.
            return FatalError(self._operation, translated.cause, _IMAGE_REMEDY.format(key=missing))
        if code == watchable.NOT_SUPPORTED_ON_VIEW:
            return ConfigError(self._operation, translated.cause, watchable.REMEDY)
        return translated

    def _required_image(self, cause: str) -> str | None:
        """The key that requires the document that the server does not have; None if none does."""
        before, full = "full_document_before_change", "full_document"
        required = [key for key in (before, full) if getattr(self._spec, key) == "required"]
        return before if before in required and "pre-image" in cause else required[-1] if required else None

    def _has_passed(self, reply: Reply) -> bool:
        """Whether the server is past what was already read; at the token itself more fragments may follow."""
        at_invalidate = reply.ends_invalidated and not is_after(self._skip_to, reply.token)
        return at_invalidate or is_after(reply.token, self._skip_to)

    def _adapt_batch_size(self, reply: Reply) -> None:
        """Request as many events next as should make up a reply of the wanted size."""
        if len(reply) and self._reply_size < SERVER_REPLY_SIZE:
            mean = (reply.offsets[-1] - reply.offsets[0]) / len(reply)
            self._batch_size = max(1, int(self._reply_size / mean))

    @property
    def unanswered_s(self) -> float:
        """How long the current request has been unanswered."""
        return self._cursor.unanswered_s

    def close(self) -> None:
        """Kill the cursor on the server, if there is one."""
        self._cursor.close()
        self._split_events = SplitEvents()

    def _read(self) -> Reply:
        while True:
            try:
                return self._take(self._cursor.more() if self._cursor.is_open else self._open())
            except OperationFailure as error:
                if error.code == _UNRECOGNIZED_STAGE and self._can_split_events:
                    self._can_split_events = False  # a server before 6.0.9 or 7.0
                elif error.code == large_events.TOO_LARGE and not self._truncates:
                    self._forget_cursor()
                    self._truncates = True
                elif _refuses_token(error) and self._position.token and self._position.exact:
                    self._forget_cursor()
                    self._start_at_time(error)
                else:
                    raise

    def _start_at_time(self, error: OperationFailure) -> None:
        fields = {"stream": self._spec.stream, "code": error.code, "token": self._position.token}
        log.warning("the server cannot find the resume token; starting at its time", extra={"fields": fields})
        self._position = replace(self._position, exact=False)
        self._skip_to = self._position.token

    def _open(self) -> bytes:
        target: str | int = self._spec.collections[0] if self._spec.level == "collection" else 1
        command = {"aggregate": target, "pipeline": self._pipeline(), "cursor": self._batch_options()}
        return self._cursor.open(command)

    def _may_ask_ahead(self) -> bool:
        """Not before the size of events is known, and not if each of them is a reply by itself."""
        return self._asks_ahead and self._batch_size is not None and self._batch_size > 1

    def _more_options(self) -> dict[str, int]:
        return {"maxTimeMS": self._await_ms} | self._batch_options()

    def _batch_options(self) -> dict[str, int]:
        return {} if self._batch_size is None else {"batchSize": self._batch_size}

    def _take(self, raw: bytes) -> Reply:
        reply = Reply.parse(raw)
        reply.token = reply.last_token()
        if self._skip_to:
            reply = reply.after(self._skip_to)
        reply = self._split_events.join(reply)
        # The server closes a change stream only after an invalidate event, which a pipeline may hide.
        reply.ends_invalidated = not self._cursor.is_open
        if self._truncates and not reply.is_partial:
            self._look_for_truncated(reply)
        return reply

    def _look_for_truncated(self, reply: Reply) -> None:
        """After the event that was too large, reopen the stream as configured."""
        for fields in large_events.truncated_events(reply):
            what = "an event past 16 MiB has landed without what was looked up for it"
            log.warning(what, extra={"fields": {"stream": self._spec.stream} | fields})
            self._truncates = False
            reply.truncated += 1
        if not self._truncates:
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
        if spec.level != "collection" and (spec.collections or spec.patterns):
            stages.append(selection_stage(spec))
        elif spec.parts > 1:
            stages.append(_split_stage(spec.part, spec.parts))
        stages += json_util.loads(spec.pipeline)
        if self._truncates:
            stages.append(large_events.truncate_stage())
        if self._can_split_events:
            stages.append({"$changeStreamSplitLargeEvent": {}})
        return stages


def _refuses_token(error: OperationFailure) -> bool:
    """Whether the server cannot resume from the token, but may be able to start at its cluster time."""
    return error.code in _TOKEN_REFUSED or error.code in _KEY_STRING_ERRORS


def _start_option(position: Position) -> dict[str, Any]:
    if not position.token or not position.exact:
        return {"startAtOperationTime": Timestamp(*split_time(position.time))}
    name = "startAfter" if position.after_invalidate else "resumeAfter"
    return {name: RawBSONDocument(token_document(position.token))}


def _split_stage(part: int, parts: int) -> dict[str, Any]:
    """Documents whose hash falls into this part; events without a document all have the same hash.

    The remainder is made non-negative, because it has the sign of the dividend and a hash may be negative.
    """
    remainder = {"$mod": [{"$toHashedIndexKey": "$documentKey._id"}, parts]}
    return {"$match": {"$expr": {"$eq": [{"$mod": [{"$add": [remainder, parts]}, parts]}, part]}}}
