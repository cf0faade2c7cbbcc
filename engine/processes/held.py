"""Replies held back until there are enough events to settle a new collection's types.

A collection's first files determine its columns for good, and the first reply of a stream that has caught up holds
a single event. So if there is no sample of a collection, none of its events are decoded until there are enough of
them, or until their segment would be due anyway. Replayed segments are never held: their types are settled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.source.reply import Reply

# Enough to settle types: this many documents in a sample, or this many events held; and the most bytes to hold.
ENOUGH_DOCUMENTS = 100
ENOUGH_EVENTS = 1000
MAX_BYTES = 2**20


class Held:
    """Replies in the order in which they arrived.

    State:
        replies: each with its first row that has not been taken yet.
        since: when the first of them arrived; None while there are none.
    """

    def __init__(self, max_s: float) -> None:
        self._max_s = max_s
        self.replies: list[tuple[Reply, int]] = []
        self.since: float | None = None

    def add(self, reply: Reply, row: int, now: float) -> None:
        """Hold a reply from the given row on."""
        if self.since is None:
            self.since = now
        if self.replies and not len(self.replies[-1][0]):
            del self.replies[-1]  # it only said how far the server had read
        self.replies.append((reply, row))

    def deadline(self) -> float | None:
        """When they must be released."""
        return None if self.since is None else self.since + self._max_s

    def is_due(self, now: float) -> bool:
        """Whether there are enough of them, or they have been held for long enough."""
        if self.since is None:
            return False
        events = sum(len(reply) - row for reply, row in self.replies)
        size = sum(len(reply.data) for reply, _ in self.replies if len(reply))
        ends = self.replies[-1][0]
        whole = ends.is_last or ends.is_partial
        return whole or events >= ENOUGH_EVENTS or size >= MAX_BYTES or now >= self.since + self._max_s

    def parts(self) -> list[Reply]:
        """What to settle types by before any of it is taken: each large reply as is, then the small ones as one.

        Nothing if there is only one reply: taking it looks at just as many of its events together.
        """
        if len(self.replies) == 1:
            return []
        large = [(reply, row) for reply, row in self.replies if len(reply.data) > MAX_BYTES]
        small = [(reply, row) for reply, row in self.replies if len(reply.data) <= MAX_BYTES]
        return [Reply(reply.data, reply.offsets[row:], "") for reply, row in large] + [_joined(small)]

    def release(self) -> list[tuple[Reply, int]]:
        """Stop holding replies, and return those that were held."""
        replies, self.replies, self.since = self.replies, [], None
        return replies


def _joined(replies: Sequence[tuple[Reply, int]]) -> Reply:
    """The events of several replies, concatenated."""
    pieces, offsets, size = [], [np.zeros(1, np.int64)], 0
    for reply, row in replies:
        at = reply.offsets[row:]
        pieces.append(reply.data[at[0] : at[-1]])
        offsets.append(at[1:] - at[0] + size)
        size += len(pieces[-1])
    return Reply(b"".join(pieces), np.concatenate(offsets), "")
