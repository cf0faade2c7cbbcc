"""Where a stream stands: resume tokens and cluster times.

A cluster time is one integer here, ``seconds << 32 | increment``, which orders as BSON timestamps do.

A resume token is its ``_data``: a string of hex digits whose string order is the order of the stream. It is
a KeyString that begins with the cluster time (``82``, then 8 bytes, big-endian): see "Resume Tokens" in the
MongoDB manual and ``src/mongo/db/pipeline/resume_token.h``.
"""

from __future__ import annotations

from msgspec import Struct

_TIMESTAMP_MARK = "82"


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
        """Whether moving from here to ``other`` goes forward."""
        if self.token and other.token:
            return self.token < other.token
        return not self.token and (bool(other.token) or self.time < other.time)


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
