"""Make MongoDB fail commands, by its failCommand fail point."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pymongo import MongoClient

Client = MongoClient[dict[str, Any]]


@contextmanager
def failing(client: Client, command: str, times: int, **error: Any) -> Iterator[None]:
    """Let the server fail a command this many times."""
    data = {"failCommands": [command]} | error
    client.admin.command("configureFailPoint", "failCommand", mode={"times": times}, data=data)
    try:
        yield
    finally:
        client.admin.command("configureFailPoint", "failCommand", mode="off")
