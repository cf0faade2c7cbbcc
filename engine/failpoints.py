"""Points at which a test can have a process killed.

``HEADRACE_FAILPOINT=before_publish:3`` kills the process that reaches ``before_publish`` for the third time, with
SIGKILL, so that nothing is cleaned up. The points are just before and just after each step of the commit protocol:
seal, intent, publish, acknowledge, commit; in a restore, after some documents are written, and after it is
recorded which are; and before and after a commit to a table. If the variable is not set, a point costs a
dictionary lookup.
"""

from __future__ import annotations

import os
import signal
from typing import Literal, get_args

VARIABLE = "HEADRACE_FAILPOINT"

Point = Literal[
    "before_seal",
    "after_seal",
    "before_intent",
    "after_intent",
    "before_publish",
    "between_objects",
    "after_publish",
    "before_acknowledge",
    "after_acknowledge",
    "before_commit",
    "after_commit",
]
RestorePoint = Literal["restore_written", "restore_saved"]
TablePoint = Literal["before_table_commit", "after_table_commit"]
POINTS: tuple[Point, ...] = get_args(Point)

_reached: dict[str, int] = {}


def failpoint(point: Point | RestorePoint | TablePoint) -> None:
    """Kill this process if this is the chosen point, reached the chosen number of times."""
    if (chosen := os.environ.get(VARIABLE)) is None:
        return
    name, _, times = chosen.partition(":")
    if name == point:
        _reached[point] = _reached.get(point, 0) + 1
        if _reached[point] == int(times or "1"):
            os.kill(os.getpid(), signal.SIGKILL)
