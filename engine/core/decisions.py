"""What the coordinator's parts decide: actions for the supervisor, and what concerns a stream or engine as a
whole.

The parts (``leases``, ``readers``, ``splits``, ``landing``, ``schemas``, ``replacements``) return these in order;
the coordinator carries the latter out, and returns actions alone.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from engine.core.actions import Action
from engine.core.stream import Stream
from engine.errors import HeadraceError


class Interrupt(Struct, frozen=True):
    """Drop what is in flight of the stream; it is read again from its committed position.

    Attributes:
        event: what happens to its lifecycle after that.
    """

    stream: Stream
    event: Literal["interrupted", "lease lost"] = "interrupted"


class Forget(Struct, frozen=True):
    """The stream's position is void; its segment numbers go on."""

    stream: Stream


class Fail(Struct, frozen=True):
    """The stream ends with an error; the others go on."""

    stream: Stream
    error: HeadraceError


class Close(Struct, frozen=True):
    """All of a split or mark is in the lake; ``rows`` of it by another engine."""

    stream: Stream
    rows: int = 0


class End(Struct, frozen=True):
    """The engine ends.

    Attributes:
        code: the exit code; None for the one that the error has.
    """

    error: HeadraceError | None
    code: int | None = None


Decision = Interrupt | Forget | Fail | Close | End | Action
