"""What a child process and its supervisor share: the child's settings, and how it reports an error."""

from __future__ import annotations

from multiprocessing.connection import Connection

from msgspec import Struct

from engine.config import Config
from engine.core import messages as msg
from engine.core.budget import Budget
from engine.errors import HeadraceError, Redactor


class ChildSettings(Struct, frozen=True):
    """What every child is given when it starts.

    Attributes:
        owner: of this engine's leases.
    """

    config: Config
    budget: Budget
    version: str
    owner: str = ""


def send_failure(
    connection: Connection, error: HeadraceError, stream: str | None = None, generation: int | None = None
) -> None:
    """Report an error to the supervisor: a stream's, or without one the whole process's.

    The supervisor redacts it, but for the secrets that only this process has learnt.
    """
    redact = Redactor()
    operation, cause, remedy = map(redact, (error.operation, error.cause, error.remedy))
    failed = msg.Failed(error.kind, operation, cause, remedy, stream, generation)
    connection.send_bytes(msg.encode(failed))
