"""Who gets a slab, and when: the back-pressure of the engine.

State: the waiting requests, the granted slabs, and the arena that they are in. Owner: the coordinator.

A reader asks for a slab when it has a batch to write to one, and waits; while it waits, it requests nothing from
MongoDB. Requests are served in order. One that is held back because its stream has too many segments in flight
lets others pass; one that waits for memory lets none pass, so that a large one cannot starve.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from engine.core.actions import Child, Send
from engine.core.arena import Arena
from engine.core.messages import Grant, SlabRequest


class Slab(Struct):
    """A granted slab: its reader holds it until it is filled, then a writer does."""

    holder: Child
    size: int


class Grants:
    """The arena's slabs and the readers that wait for one.

    Args:
        size: bytes of the arena.
        max_slabs: slabs granted at once; bounds the messages that can be in flight to a child.
    """

    def __init__(self, size: int, max_slabs: int) -> None:
        self.arena = Arena(size)
        self._max_slabs = max_slabs
        self.slabs: dict[int, Slab] = {}
        self._waiting: list[tuple[Child, SlabRequest]] = []

    def ask(self, reader: Child, request: SlabRequest) -> None:
        """A reader asks for a slab; ``serve`` answers when it is its turn."""
        assert all(child != reader for child, _ in self._waiting), "a reader asks for one slab at a time"
        self._waiting.append((reader, request))

    def serve(self, allowed: Callable[[Child, SlabRequest], bool]) -> list[Send]:
        """Grant what can be granted now."""
        sends: list[Send] = []
        for reader, request in list(self._waiting):
            if len(self.slabs) >= self._max_slabs:
                break
            if not allowed(reader, request):
                continue
            offset = self.arena.allocate(request.size)
            if offset is None:
                break
            self.slabs[offset] = Slab(reader, request.size)
            self._waiting.remove((reader, request))
            sends.append(Send(reader, Grant(request.generation, offset, request.size)))
        return sends

    def is_waiting(self, reader: Child) -> bool:
        """Whether the reader waits for a slab."""
        return any(child == reader for child, _ in self._waiting)

    def hand_over(self, offset: int, writer: Child) -> None:
        """The slab is filled and goes to a writer."""
        self.slabs[offset].holder = writer

    def free(self, offset: int) -> None:
        """The slab is no longer needed."""
        del self.slabs[offset]
        self.arena.free(offset)

    def withdraw(self, reader: Child) -> None:
        """Drop the reader's request, if it has one."""
        self._waiting = [(child, request) for child, request in self._waiting if child != reader]

    def reclaim(self, child: Child) -> None:
        """Take back what the process held. Only to be called once it is certainly dead."""
        self.withdraw(child)
        for offset in [offset for offset, slab in self.slabs.items() if slab.holder == child]:
            self.free(offset)
