"""A restore: what is written where, how far it is, and how it is continued.

Its record lies with what it writes: in the target's database, or in a file beside the target. It is there from
before the first document until after the last one, so that a target that is half full is never taken for one that
is in use, and the same command continues. What is done is done by partitions of the fold.
"""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec import Struct, field

from engine.core.position import make_time, split_time
from engine.errors import ConfigError

# The time of a lake without change streams: whatever it has.
EVERYTHING = 2**63 - 1
EXAMPLES = 20


class Doubts(Struct):
    """Documents of one kind: how many, and the ``_cdc_id`` of some."""

    count: int = 0
    examples: list[str] = []

    def add(self, id_: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(id_)


class Job(Struct):
    """One restore.

    Attributes:
        lake: where from, without secrets.
        namespace: which collection.
        at: the cluster time up to which rows count.
        done: the partitions that are written.
        documents, bytes: how many documents were written, and how many bytes of BSON.
        size: how long the file was with these partitions; not used for a server.
        pending: documents with updates of which the lake has only the description, not the document.
        missing: documents of which the lake has nothing but such updates; they are not written.
        newer: documents that may be as they were some time later.
        unknown: documents that may have existed, but that the lake has only from a later time.
    """

    lake: str
    namespace: str
    at: int
    done: list[int] = []
    documents: int = 0
    bytes: int = 0
    size: int = 0
    pending: Doubts = field(default_factory=Doubts)
    missing: Doubts = field(default_factory=Doubts)
    newer: Doubts = field(default_factory=Doubts)
    unknown: Doubts = field(default_factory=Doubts)


def to_continue(found: Job, wanted: Job, where: str, *, given: bool) -> Job:
    """The unfinished restore that was found in a target, if it is the wanted one.

    Args:
        given: the time was asked for; otherwise the unfinished one keeps its own.

    Raises:
        ConfigError: it is another one.
    """
    is_same = (found.lake, found.namespace) == (wanted.lake, wanted.namespace)
    if is_same and (found.at == wanted.at or not given):
        return found
    cause = f"an unfinished restore of {found.namespace} from {found.lake}, as of {told(found.at)}, is there"
    remedy = "Continue that one by the same command as before, or remove it and start over with --drop."
    raise ConfigError(f"restore into {where}", cause, remedy)


def parse_moment(text: str) -> int:
    """A cluster time from what ``--at`` takes.

    An RFC 3339 time is the moment before the first event of that second; ``<seconds>:<increment>`` is a cluster
    time, up to and including it.

    Raises:
        ValueError: it is neither.
    """
    seconds, colon, increment = text.partition(":")
    if colon and seconds.isdecimal() and increment.isdecimal() and int(increment) < 2**32:
        return make_time(int(seconds), int(increment))
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} has no offset; add Z for UTC")
    return make_time(int(time.timestamp()), 0)


def told(at: int) -> str:
    """A cluster time as text."""
    if at == EVERYTHING:
        return "the newest rows"
    seconds, increment = split_time(at)
    time = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{time} ({seconds}:{increment})"
