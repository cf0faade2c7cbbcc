"""Replies that are held back until there are enough events to settle a new collection's types by.

What a collection's first files hold settles its columns for ever, and the first reply of a stream that has caught
up has a single event. So nothing of a collection that no sample tells of is decoded before there are some of its
events, or their segment would be due anyway. Nothing of a replayed segment is held: its types are settled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.source.reply import Reply

# Enough to settle types by: so many documents in a sample, or so many events held; and no more bytes than that.
ENOUGH_DOCUMENTS = 100
ENOUGH_EVENTS = 1000
MOST_BYTES = 2**20


class Held:
    """Replies in the order in which they came.

    State:
        replies: each with the first row that is not taken yet.
        since: when the first of them came; None while there are none.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self.replies: list[tuple[Reply, int]] = []
        self.since: float | None = None

    def add(self, reply: Reply, row: int, now: float) -> None:
        """Hold a reply from a row on."""
        if self.since is None:
            self.since = now
        if self.replies and not len(self.replies[-1][0]):
            del self.replies[-1]  # it only told how far the server had looked
        self.replies.append((reply, row))

    def deadline(self) -> float | None:
        """When they must be held no longer."""
        return None if self.since is None else self.since + self._most_s

    def is_due(self, now: float) -> bool:
        """Whether there are enough of them, or they were held for long enough."""
        if self.since is None:
            return False
        events = sum(len(reply) - row for reply, row in self.replies)
        size = sum(len(reply.data) for reply, _ in self.replies if len(reply))
        ends = self.replies[-1][0]
        whole = ends.is_last or ends.is_partial
        return whole or events >= ENOUGH_EVENTS or size >= MOST_BYTES or now >= self.since + self._most_s

    def parts(self) -> list[Reply]:
        """What is to be looked at before any of it is taken: a large reply as it is, then the small ones as one.

        That is nothing where there is one reply: taking it looks at as many of its events together.
        """
        if len(self.replies) == 1:
            return []
        large = [(reply, row) for reply, row in self.replies if len(reply.data) > MOST_BYTES]
        small = [(reply, row) for reply, row in self.replies if len(reply.data) <= MOST_BYTES]
        return [Reply(reply.data, reply.offsets[row:], "") for reply, row in large] + [_joined(small)]

    def release(self) -> list[tuple[Reply, int]]:
        """What was held, and is no longer."""
        replies, self.replies, self.since = self.replies, [], None
        return replies


def _joined(replies: Sequence[tuple[Reply, int]]) -> Reply:
    """The events of some replies, one behind the other."""
    pieces, offsets, size = [], [np.zeros(1, np.int64)], 0
    for reply, row in replies:
        at = reply.offsets[row:]
        pieces.append(reply.data[at[0] : at[-1]])
        offsets.append(at[1:] - at[0] + size)
        size += len(pieces[-1])
    return Reply(b"".join(pieces), np.concatenate(offsets), "")
