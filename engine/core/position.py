"""Where a stream stands: resume tokens, their order, and cluster times.

A cluster time is one integer here, ``seconds << 32 | increment``, which orders as BSON timestamps do.

A resume token is a BSON document, ``{_data: "82..."}``; ``_typeBits`` stands beside ``_data`` when the event's
document key holds a number that is no int32, and the server finds no token without them. It is carried as text:
``_data``, and where that is not all of the document, a colon and the whole document in hexadecimal. What stands
before the colon orders tokens; behind it lies what it takes to hand the server the very bytes that it gave.
The places of a split (``core.backfill``) have the same form.

``_data`` is a KeyString in hexadecimal digits: the cluster time (``82`` and 8 bytes, big-endian), the token's
version, its type (0 for a point between events, 128 for an event), the index within a transaction, whether an
invalidate follows from the event, the collection's UUID, what identifies the event, and of a split event the
fragment's number; see "Resume Tokens" in the MongoDB manual and ``src/mongo/db/pipeline/resume_token.cpp``.
Servers change the version when they are upgraded, and use another one for streams that split large events, so that
two tokens of one stream need not compare as strings.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from msgspec import Struct

from engine.errors import FatalError

_TIMESTAMP_MARK = "82"
_MORE = ":"
# KeyString: an integer is 29 for zero, or 2B to 32 and as many bytes as that is more than 2A.
_INTEGER = "29|2B..|2C.{4}|2D.{6}|2E.{8}|2F.{10}|30.{12}|31.{14}|32.{16}"
_EVENT = re.compile(
    rf"82(?P<time>.{{16}})(?P<version>{_INTEGER})(?P<kind>{_INTEGER})(?P<index>{_INTEGER})"
    r"(?P<invalidate>6E|6F)(?P<collection>5A1004.{32}|14)?(?P<event>46.*?00)?(?P<fragment>29|2B(?!00)..)?04"
)
# Where the identifier of version 2 holds that of version 1: the document key.
_DOCUMENT_KEY = "46" + b"documentKey\0".hex().upper()


class Position(Struct, frozen=True):
    """A point in a stream from which it can go on.

    Attributes:
        token: everything up to and with this token has been taken; empty when there is no token yet.
        time: the token's cluster time; without a token, the first cluster time that is wanted.
        after_invalidate: the token is an invalidate event's, which only ``startAfter`` accepts.
        exact: False when the stream's selection has changed since the token was given, so that the server
            may not find it; the stream then starts at ``time`` and the reader skips up to the token.
    """

    token: str = ""
    time: int = 0
    after_invalidate: bool = False
    exact: bool = True

    def precedes(self, other: Position) -> bool:
        """Whether moving from here to ``other`` goes forward, as far as can be told."""
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
        data: the document's ``_data``; None where that is no string.
        document: the whole token, as BSON.
    """
    if data and _MORE not in data and _plain(data) == document:
        return data
    return f"{data or ''}{_MORE}{document.hex()}"


def token_data(token: str) -> str:
    """The token's ``_data``, which orders it; empty for a token of another maker's shape."""
    return token.partition(_MORE)[0]


def token_document(token: str) -> bytes:
    """The whole resume token as BSON, as the server gave it."""
    data, more, document = token.partition(_MORE)
    return bytes.fromhex(document) if more else _plain(data)


def _plain(data: str) -> bytes:
    """``{_data: data}`` as BSON."""
    text = data.encode() + b"\0"
    body = b"\x02_data\0" + len(text).to_bytes(4, "little") + text
    return (len(body) + 5).to_bytes(4, "little") + body + b"\0"


class _Event(NamedTuple):
    """What a token's ``_data`` says, each part as its digits; the fragment's number is left out.

    So all fragments of a split event are one event, also when another reading finds other fragments.
    """

    version: str
    point: tuple[str, str, str]
    source: tuple[str, str]
    event: str


def is_after(one: str, other: str) -> bool:
    """Whether the event of token ``one`` comes later in the stream than that of ``other``.

    Raises:
        FatalError: the tokens do not tell.
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
            raise _unordered(one, other, "they are not of MongoDB's form")
        return first > second if a is None or b is None else a[1:] > b[1:]
    if a[1:3] != b[1:3]:
        return a[1:3] > b[1:3]
    if not _is_same_event(a.event, b.event):
        raise _unordered(one, other, "they have one cluster time and are of different versions")
    return False


def is_same(one: str, other: str) -> bool:
    """Whether two tokens are of one event, or one point between events; see ``is_after``."""
    return not is_after(one, other) and not is_after(other, one)


def _parsed(data: str) -> _Event | None:
    match = _EVENT.fullmatch(data)
    if match is None:
        return None
    part = match.groupdict(default="")
    point = part["time"], part["kind"], part["index"]
    # A point between events has no collection, or a null for it.
    return _Event(
        part["version"], point, (part["invalidate"], part["collection"].removeprefix("14")), part["event"]
    )


def _is_same_event(one: str, other: str) -> bool:
    """Whether what identifies two events of one cluster time in different versions is the same.

    Version 2 has the operation and the document key, version 1 the key alone, and nothing where there is none.
    """
    shorter, longer = sorted((one, other), key=len)
    inner = f"{_DOCUMENT_KEY}{shorter}00" if shorter else ""
    return shorter == longer or (longer.endswith(inner) if inner else _DOCUMENT_KEY not in longer)


def _unordered(one: str, other: str, cause: str) -> FatalError:
    remedy = (
        "Nothing is lost. If the server was upgraded, or the stream begins to split large events, run the former "
        "version once more until the stream has caught up."
    )
    return FatalError("compare two resume tokens", f"{cause}: {token_data(one)} and {token_data(other)}", remedy)


# --- cluster times ---------------------------------------------------------------------------------------


def make_time(seconds: int, increment: int) -> int:
    """A cluster time from a BSON timestamp's two parts."""
    return seconds << 32 | increment


def split_time(time: int) -> tuple[int, int]:
    """A cluster time as a BSON timestamp's two parts: seconds since 1970, increment."""
    return time >> 32, time & 0xFFFFFFFF


def token_time(token: str) -> int | None:
    """The cluster time inside a resume token; None when the token is not of MongoDB's making."""
    if token[:2] != _TIMESTAMP_MARK or len(token) < 18:
        return None
    try:
        return int(token[2:18], 16)
    except ValueError:
        return None
