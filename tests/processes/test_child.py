"""Messages of children, whole or in pieces."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest

from engine.processes.child import Inbox

MESSAGES = [b"a", b"", b"b" * 100_000, b"c" * 5]


@pytest.fixture
def pipe() -> Iterator[tuple[Connection, Connection]]:
    ours, theirs = Pipe()
    with ours, theirs:
        yield ours, theirs


def read_all(inbox: Inbox) -> list[bytes]:
    heard: list[bytes] = []
    with pytest.raises(EOFError):  # noqa: PT012 - until there is nothing more
        while True:
            heard += inbox.read()
    return heard


def test_messages_arrive_as_sent(pipe: tuple[Connection, Connection]) -> None:
    ours, theirs = pipe

    def say() -> None:
        for message in MESSAGES:
            theirs.send_bytes(message)
        theirs.close()

    thread = threading.Thread(target=say)
    thread.start()
    assert read_all(Inbox(ours.fileno())) == MESSAGES
    thread.join()


def test_half_a_message_is_not_waited_for(pipe: tuple[Connection, Connection]) -> None:
    """Its sender may have been paused halfway; the rest is read once it continues."""
    ours, theirs = pipe
    said = b"".join(len(message).to_bytes(4, "big") + message for message in (b"one", b"two"))
    inbox = Inbox(ours.fileno())
    heard = []
    for byte in said:
        os.write(theirs.fileno(), bytes([byte]))
        heard.append(inbox.read())
    assert heard == [[]] * 6 + [[b"one"]] + [[]] * 6 + [[b"two"]]


def test_half_a_message_of_a_dead_child_is_dropped(pipe: tuple[Connection, Connection]) -> None:
    ours, theirs = pipe
    theirs.send_bytes(b"one")
    os.write(theirs.fileno(), b"\0\0\0\5tw")
    theirs.close()
    assert read_all(Inbox(ours.fileno())) == [b"one"]
