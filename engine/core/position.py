"""Positions in a stream: resume tokens, their order, and cluster times.

A cluster time is represented as one integer, ``seconds << 32 | increment``, which sorts like BSON timestamps.

A resume token is a BSON document, ``{_data: "82..."}``; it also has ``_typeBits`` if the event's document key
contains a number that is not an int32, and then the server does not find the token without them. It is represented
as text: ``_data``, and if that is not the whole document, a colon and the document in hexadecimal. The text before
the colon orders tokens; the text after it allows returning to the server exactly the bytes that it sent. The
places of a split (``core.backfill``) have the same form.

``_data`` is a KeyString in hexadecimal digits: the cluster time (``82`` and 8 bytes, big-endian), the token's
version, its type (0 for a point between events, 128 for an event), the index within a transaction, whether an
invalidate follows from the event, the collection's UUID, what identifies the event, and for a split event the
fragment's number; see "Resume Tokens" in the MongoDB manual and ``src/mongo/db/pipeline/resume_token.cpp``.
Servers change the version when they are upgraded, and use another one for streams that split large events, so two
tokens of one stream do not necessarily compare as strings.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from msgspec import Struct

from engine.errors import FatalError

_TIMESTAMP_MARK = "82"
_MORE = ":"
# KeyString: an integer is 29 for zero, or 2B to 32 followed by as many bytes as that exceeds 2A.
_INTEGER = "29|2B..|2C.{4}|2D.{6}|2E.{8}|2F.{10}|30.{12}|31.{14}|32.{16}"
_OF_INVALIDATE = "6F"
_EVENT = re.compile(
    rf"82(?P<time>.{{16}})(?P<version>{_INTEGER})(?P<kind>{_INTEGER})(?P<index>{_INTEGER})"
    r"(?P<invalidate>6E|6F)(?P<collection>5A1004.{32}|14)?(?P<event>46.*?00)?(?P<fragment>29|2B(?!00)..)?04"
)
# Where the identifier of version 2 contains that of version 1: the document key.
_DOCUMENT_KEY = "46" + b"documentKey\0".hex().upper()


class Position(Struct, frozen=True):
    """A point in a stream from which it can continue.

    Attributes:
        token: everything up to and including this token has been taken; empty if there is no token yet.
        time: the token's cluster time; without a token, the first cluster time to read.
        after_invalidate: the token is that of an invalidate event, which only ``startAfter`` accepts.
        exact: False if the stream's selection has changed since the token was issued, so that the server may not
            find it; the stream then starts at ``time`` and the reader skips up to the token.
    """

    token: str = ""
    time: int = 0
    after_invalidate: bool = False
    exact: bool = True

    def precedes(self, other: Position) -> bool:
        """Whether ``other`` is further ahead, as far as can be determined."""
        if not (self.token and other.token):
            return not self.token and (bool(other.token) or self.time < other.time)
        try:
            return is_after(other.token, self.token)
        except FatalError:
            return False


# --- tokens ----------------------------------------------------------------------------------------------


def make_token(data: str | None, document: bytes) -> str:
    """The text of a resume token.

    Args:
        data: the document's ``_data``; None if that is not a string.
        document: the whole token, as BSON.
    """
    if data and _MORE not in data and _plain(data) == document:
        return data
    return f"{data or ''}{_MORE}{document.hex()}"


def is_token(data: str) -> bool:
    """Whether this is the ``_data`` of a resume token of a known version."""
    return _parsed(data) is not None


def token_data(token: str) -> str:
    """The token's ``_data``, which orders it; empty for a token that is not of MongoDB's form."""
    return token.partition(_MORE)[0]


def token_document(token: str) -> bytes:
    """The whole resume token as BSON, exactly as the server sent it."""
    data, more, document = token.partition(_MORE)
    return bytes.fromhex(document) if more else _plain(data)


def _plain(data: str) -> bytes:
    """``{_data: data}`` as BSON."""
    text = data.encode() + b"\0"
    body = b"\x02_data\0" + len(text).to_bytes(4, "little") + text
    return (len(body) + 5).to_bytes(4, "little") + body + b"\0"


class _Event(NamedTuple):
    """The fields of a token's ``_data``, as digits, without the fragment's number.

    So all fragments of a split event are one event, even if another attempt reads other fragments.
    """

    version: str
    point: tuple[str, str, str]
    source: tuple[str, str]
    event: str


def is_after(one: str, other: str) -> bool:
    """Whether the event of token ``one`` comes later in the stream than that of ``other``.

    Raises:
        FatalError: the tokens do not determine that.
    """
    if not one or not other:  # without a token, nothing has been taken
        return bool(one)
    first, second = token_data(one), token_data(other)
    if first == second and first:
        return False
    a, b = _parsed(first), _parsed(second)
    if a is None or b is None or a.version == b.version:
        if one == other:
            return False
        if not (first and second):
            raise _unordered(one, other, "they are not in MongoDB's form")
        return first > second if a is None or b is None else a[1:] > b[1:]
    if a[1:3] != b[1:3]:
        return a[1:3] > b[1:3]
    if not _is_same_event(a.event, b.event):
        raise _unordered(one, other, "they have the same cluster time and different versions")
    return False


def is_same(one: str, other: str) -> bool:
    """Whether two tokens are of the same event, or the same point between events; see ``is_after``."""
    return not is_after(one, other) and not is_after(other, one)


def _parsed(data: str) -> _Event | None:
    match = _EVENT.fullmatch(data)
    if match is None:
        return None
    part = match.groupdict(default="")
    point = part["time"], part["kind"], part["index"]
    # A point between events has no collection, or null.
    return _Event(
        part["version"], point, (part["invalidate"], part["collection"].removeprefix("14")), part["event"]
    )


def _is_same_event(one: str, other: str) -> bool:
    """Whether two identifiers from tokens of different versions, at one cluster time, are of the same event.

    Version 2 has the operation and the document key, version 1 only the key, or nothing if there is none.
    """
    shorter, longer = sorted((one, other), key=len)
    inner = f"{_DOCUMENT_KEY}{shorter}00" if shorter else ""
    return shorter == longer or (longer.endswith(inner) if inner else _DOCUMENT_KEY not in longer)


def _unordered(one: str, other: str, cause: str) -> FatalError:
    remedy = (
        "Nothing is lost. If the server was upgraded, or the stream now splits large events, run the previous "
        "version once more until the stream has caught up."
    )
    return FatalError("compare two resume tokens", f"{cause}: {token_data(one)} and {token_data(other)}", remedy)


def position_at(token: str, time: int = 0) -> Position:
    """The position at a token; ``time`` is for one that does not say its time, as a place."""
    parsed = _parsed(token_data(token))
    is_invalidate = parsed is not None and parsed.source[0] == _OF_INVALIDATE
    return Position(token, token_time(token) or time, after_invalidate=is_invalidate)


# --- cluster times ---------------------------------------------------------------------------------------


def make_time(seconds: int, increment: int) -> int:
    """A cluster time from a BSON timestamp's seconds and increment."""
    return seconds << 32 | increment


def split_time(time: int) -> tuple[int, int]:
    """A cluster time as a BSON timestamp's seconds since 1970 and increment."""
    return time >> 32, time & 0xFFFFFFFF


def token_time(token: str) -> int | None:
    """The cluster time in a resume token; None if the token is not of MongoDB's form."""
    if token[:2] != _TIMESTAMP_MARK or len(token) < 18:
        return None
    try:
        return int(token[2:18], 16)
    except ValueError:
        return None
