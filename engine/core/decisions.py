"""Decisions of the coordinator's components: actions for the supervisor, and what concerns a whole stream or the
engine.

The components (``leases``, ``readers``, ``splits``, ``landing``, ``schemas``, ``replacements``, ``fleet``,
``faults``)
return these in order; the coordinator carries out those of the second kind, and returns only actions.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from engine.core.actions import Action
from engine.core.stream import Stream
from engine.errors import HeadraceError


class Interrupt(Struct, frozen=True):
    """Drop everything of the stream that is in flight; it is read again from its committed position.

    Attributes:
        event: the event that its lifecycle then gets.
    """

    stream: Stream
    event: Literal["interrupted", "lease lost", "given up"] = "interrupted"


class Forget(Struct, frozen=True):
    """The stream's position is void; its segment numbers continue."""

    stream: Stream


class Fail(Struct, frozen=True):
    """The stream stops with an error; the others continue."""

    stream: Stream
    error: HeadraceError


class Close(Struct, frozen=True):
    """A split or mark is entirely in the lake; another engine landed ``rows`` rows of it."""

    stream: Stream
    rows: int = 0


class GiveUp(Struct, frozen=True):
    """Another engine should have the stream: drain it, then release its lease."""

    stream: Stream


class End(Struct, frozen=True):
    """The engine exits.

    Attributes:
        code: the exit code; None for the error's own.
    """

    error: HeadraceError | None
    code: int | None = None


Decision = Interrupt | Forget | Fail | Close | GiveUp | End | Action
