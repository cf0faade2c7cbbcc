"""Which servers are away, by the messages of children."""

from __future__ import annotations

import random

import pytest

from engine.core import messages as msg
from engine.core.actions import Child
from engine.core.children import Children
from engine.core.problems import Problem
from engine.core.restarts import RetryPolicy
from engine.core.servers import Servers

READER, OTHER_READER, WRITER = Child("reader", 0), Child("reader", 1), Child("writer", 0)
READY = msg.ReaderReady("rs0", "6.0", 1)


@pytest.fixture
def children() -> Children:
    made = Children([READER, OTHER_READER, WRITER], RetryPolicy(3, 1.0, 1.0), 60.0, random.Random(0))
    for each in made:
        made.want(each)
    made.start_due(0.0)
    return made


def ups(servers: Servers, children: Children, of_store: Problem | None = None) -> list[bool | None]:
    return [each.up for each in servers.all(children, of_store, 10.0)]


def test_unknown_until_heard_from(children: Children) -> None:
    servers = Servers()
    assert ups(servers, children) == [None, None, True]
    servers.heard(READER, READY)
    servers.heard(WRITER, msg.WriterReady())
    assert ups(servers, children) == [True, True, True]
    assert ups(servers, children, Problem("refused", 1.0)) == [True, True, False]


def test_one_failing_reader_is_enough(children: Children) -> None:
    servers = Servers()
    servers.heard(READER, READY)
    servers.heard(OTHER_READER, READY)
    servers.heard(READER, msg.Heartbeat(1, "retrying", 0.0, error="connection refused"))
    assert servers.all(children, None, 1.0)[0].problem == "connection refused"
    servers.heard(READER, msg.Heartbeat(2, "reading", 0.0))
    assert ups(servers, children)[0]


def test_a_slow_answer_counts_as_none(children: Children) -> None:
    servers = Servers()
    servers.heard(WRITER, msg.WriterReady())
    children.beat(WRITER, msg.Heartbeat(1, "publishing", 0.0, unanswered_s=4.0), 1.0)
    assert ups(servers, children)[1]
    children.beat(WRITER, msg.Heartbeat(1, "publishing", 0.0, unanswered_s=6.0), 3.0)
    assert servers.all(children, None, 3.0)[1].problem == "the sink has not answered for 6 s"


def test_a_failed_segment_counts_until_one_is_published(children: Children) -> None:
    servers = Servers()
    servers.heard(WRITER, msg.WriterReady())
    servers.heard(WRITER, msg.Failed("transient", "publish x", "503", "", "s", 1))
    servers.heard(WRITER, msg.Sealed("s", 2, 1, (), 0))
    servers.exited(WRITER)
    assert ups(servers, children)[1] is False
    servers.heard(WRITER, msg.Published("s", 2, 1))
    assert ups(servers, children)[1]
    servers.heard(WRITER, msg.Failed("fatal", "write", "a bug", "", "s", 1))
    assert ups(servers, children)[1]
