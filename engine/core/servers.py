"""Which of the servers that the engine needs are away, as its processes last saw them. No decision depends on it.

State: what each child's latest request failed with, if it is known. Owner: the coordinator.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from engine.core.actions import Child, Role
from engine.core.children import Children
from engine.core.messages import (
    BatchReady,
    Failed,
    FromChild,
    Heartbeat,
    Idle,
    Published,
    ReaderReady,
    Started,
    Surveyed,
    WriterReady,
)
from engine.core.problems import Problem

Server = Literal["mongodb", "sink", "state"]
SERVER_OF: dict[Role, Server] = {"reader": "mongodb", "writer": "sink"}


class ServerStatus(Struct, frozen=True):
    """One server: MongoDB, the sink's store, or the state store.

    Attributes:
        up: False while a request to it fails or is unusually slow; null before any process has heard from it.
        problem: what it fails with; empty while it is up.
    """

    server: Server
    up: bool | None
    problem: str = ""


class Servers:
    """What the children's messages say about their servers."""

    def __init__(self) -> None:
        self._failed: dict[Child, str | None] = {}
        self._retried: dict[Child, str | None] = {}

    def heard(self, child: Child, message: FromChild) -> None:
        """A message has arrived from a child."""
        match message:
            case Heartbeat(error=error):
                self._retried[child] = error
            case Failed(kind="transient", operation=operation, cause=cause):
                self._failed[child] = f"{operation}: {cause}"
            case ReaderReady() | WriterReady() | Started() | BatchReady() | Idle() | Published() | Surveyed():
                self._failed[child] = None

    def exited(self, child: Child) -> None:
        """A child has died: what it reported last may be why, and stays until its successor is ready."""
        self._retried.pop(child, None)

    def all(self, children: Children, of_store: Problem | None, now: float) -> tuple[ServerStatus, ...]:
        """The servers."""
        found = [self._of(role, server, children) for role, server in SERVER_OF.items()]
        state = ServerStatus("state", of_store is None, of_store.text(now) if of_store else "")
        return (*found, state)

    def _of(self, role: Role, server: Server, children: Children) -> ServerStatus:
        own = [child for child in children if child.role == role]
        problems = [
            self._failed.get(child) or self._retried.get(child) or children.unanswered(child) for child in own
        ]
        problem = next((each for each in problems if each), None)
        if problem is not None:
            return ServerStatus(server, False, problem)
        return ServerStatus(server, True if any(child in self._failed for child in own) else None)
