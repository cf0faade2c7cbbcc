"""A trace for each segment, from the reading of its first batch to its commit.

State: the work on the segments in flight, as far as it is known. Owner: the supervisor's loop. The number of
segments is bounded, and a trace has a handful of spans.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct, field

from engine.core import messages as msg
from engine.core.store import FromStore, Written

MAX_SEGMENTS = 4096
Key = tuple[str, int, int]


class SegmentTrace(Struct):
    """What was done for a segment, and when.

    Attributes:
        work: by stage: ``read``, ``decode``, ``encode``, ``upload``, ``intent``, ``publish``, ``commit``.
    """

    stream: str
    seq: int
    epoch: int = 0
    events: int = 0
    size: int = 0
    work: dict[str, msg.Work] = field(default_factory=dict)

    @property
    def began(self) -> float:
        """When its first batch was decoded."""
        return min((each.began for each in self.work.values()), default=0.0)

    @property
    def ended(self) -> float:
        """When its last stage was over."""
        return max((each.ended for each in self.work.values()), default=0.0)

    def add(self, stage: str, work: msg.Work | None) -> None:
        """More work of a stage."""
        if work is not None:
            self.work[stage] = work.plus(self.work.get(stage))


class Traces:
    """Puts the traces of segments together from the messages that pass the supervisor.

    Args:
        finished: called with each segment whose commit is durable.
    """

    def __init__(self, finished: Callable[[SegmentTrace], None]) -> None:
        self._finished = finished
        self._open: dict[Key, SegmentTrace] = {}

    def heard(self, message: msg.FromChild, stream: str | None, epoch: int, now: float) -> None:
        """A message from a child.

        Args:
            stream: whose it is, if it comes from a reader; None if it is outdated.
        """
        match message:
            case msg.BatchReady(generation=generation, seq=seq, decoding=decoding) if stream is not None:
                trace = self._at((stream, generation, seq))
                trace.epoch = epoch
                trace.events += message.rows
                trace.add("decode", decoding)
            case msg.SegmentCut(generation=generation, intent=intent) if stream is not None:
                trace = self._at((stream, generation, intent.seq))
                began = trace.began or now
                trace.add("read", msg.Work(began, now, now - began))
            case msg.Sealed():
                trace = self._at((message.stream, message.generation, message.seq))
                trace.size = message.size
                trace.add("encode", message.encoding)
                trace.add("upload", message.uploading)
            case msg.Published():
                self._at((message.stream, message.generation, message.seq)).add("publish", message.publishing)

    def answered(self, answer: FromStore) -> None:
        """An answer of the state store: a segment may be committed now."""
        if not isinstance(answer, Written) or answer.seq is None or answer.kind not in ("intent", "commit"):
            return
        work = msg.Work(answer.requested_at, answer.written_at, answer.written_at - answer.requested_at)
        if answer.kind == "intent":
            self._at((answer.stream, answer.generation, answer.seq)).add("intent", work)
            return
        for key in [key for key in self._open if key[0] == answer.stream and key[1] <= answer.generation]:
            if key[1] < answer.generation:
                del self._open[key]
            elif key[2] <= answer.seq:
                trace = self._open.pop(key)
                trace.add("commit", work)
                self._finished(trace)

    def _at(self, key: Key) -> SegmentTrace:
        if key not in self._open:
            if len(self._open) >= MAX_SEGMENTS:
                del self._open[next(iter(self._open))]
            self._open[key] = SegmentTrace(key[0], key[2])
        return self._open[key]
