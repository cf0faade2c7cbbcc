"""What the coordinator wants done. The supervisor performs it; the simulation plays it."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from engine.core.messages import ToChild
from engine.core.records import Change
from engine.core.schema import Field
from engine.errors import HeadraceError

Role = Literal["reader", "writer"]


class Child(Struct, frozen=True, order=True):
    """One child process, by what it does and its number."""

    role: Role
    index: int

    def __str__(self) -> str:
        return f"{self.role}-{self.index}"


class Spawn(Struct, frozen=True):
    """Start this child."""

    child: Child


class Kill(Struct, frozen=True):
    """SIGKILL this child, or give up its start; its exit is reported as any other."""

    child: Child


class Send(Struct, frozen=True):
    """Send this message to this child."""

    child: Child
    message: ToChild


class Acquire(Struct, frozen=True):
    """Ask the state store for the stream's lease; answered by ``acquired`` or ``held_elsewhere``.

    Attributes:
        namespace: of a split: the collection whose plan it is of.
    """

    stream: str
    namespace: str = ""


class Renew(Struct, frozen=True):
    """Renew the leases of these streams; answered only by ``lease_lost``."""

    streams: tuple[str, ...]


class Release(Struct, frozen=True):
    """Give these leases back."""

    streams: tuple[str, ...]


class Write(Struct, frozen=True):
    """Write to the stream's record, fenced by its lease.

    Answered by ``stored`` when ``seq`` is the number of an intent; other writes need no answer, because the
    store performs all writes of a stream in the order in which they were asked for.
    """

    stream: str
    generation: int
    change: Change
    seq: int = 0


class GrowSchema(Struct, frozen=True):
    """Add these fields to a collection's schema; answered by ``schema_stored``.

    Attributes:
        least: the version that the store must have, because objects were written under it.
    """

    reader: Child
    database: str
    collection: str
    fields: tuple[Field, ...]
    least: int = 0


class Log(Struct, frozen=True):
    """Tell people."""

    level: Literal["debug", "info", "warning", "error"]
    event: str
    fields: dict[str, Any] = {}


class Exit(Struct, frozen=True):
    """End the engine, and with it the children that have not been told to stop.

    The code is 0 for done, 1 for failed, 2 for a bad configuration.
    """

    code: int
    error: HeadraceError | None = None


Action = Spawn | Kill | Send | Acquire | Renew | Release | Write | GrowSchema | Log | Exit
