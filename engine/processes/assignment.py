"""What a reader has been told to read, and how far it has come with it."""

from __future__ import annotations

from engine.core import messages as msg
from engine.core.ledger import first_segment
from engine.core.position import Position
from engine.core.segments import Limits, Segmenter
from engine.core.specs import SplitSpec
from engine.processes.held import Held

UNCUT = Limits(1 << 62, 1 << 62, float("inf"))


class Assignment:
    """One stream being read, from one ``Assign`` to the next."""

    def __init__(self, assign: msg.Assign, start: Position, limits: Limits) -> None:
        self.spec = assign.spec
        self.held = Held(limits.age_s)
        self.whole = isinstance(self.spec, SplitSpec) and self.spec.whole
        if self.whole:
            limits = UNCUT
        self.generation = assign.generation
        self.epoch = assign.epoch
        self.replay_only = assign.replay_only
        self.until = assign.until
        next_seq = first_segment(start) if assign.next_seq is None else assign.next_seq
        self.segmenter = Segmenter(limits, next_seq, assign.replay, assign.until, start)
        self.scanned = start
        self.versions: dict[tuple[str, str], int] = {}
        self.replaced: dict[str, msg.Replaced] = {}  # in the open segment
        self.found_start = None if assign.start else start
        self.started = False
        self.finishing = False
        self.cut_now = False
        self.grown = False
        self.idle_at = 0.0

    @property
    def read_at(self) -> int:
        """The cluster time at which the split was started."""
        return self.scanned.time

    @property
    def uncut(self) -> bool:
        """Whether the open segment must not be cut before its given end."""
        return self.segmenter.replaying or self.whole
