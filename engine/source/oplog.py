"""The oplog's window, asked for regularly: a stream whose position is older than the first entry is lost.

State: the latest answer. Owner: the thread, until the reader takes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from engine.core.messages import OplogSeen
from engine.errors import ConfigError, FatalError, HeadraceError
from engine.source.session import Client, oplog_window

ASK_EVERY_S = 15.0


class OplogWatch:
    """Asks for the oplog's window in a thread, from its creation until the process ends; more often at first.

    A thread, because the reader's loop waits for slabs while the sink or the state store is away, and the oplog
    may run out just then.

    Args:
        client: gives the client to use; it may change.
    """

    def __init__(self, client: Callable[[], Client]) -> None:
        self._client = client
        self._seen: OplogSeen | None = None
        threading.Thread(target=self._run, name="oplog", daemon=True).start()

    def take(self) -> OplogSeen | None:
        """The latest answer, once."""
        seen, self._seen = self._seen, None
        return seen

    def _run(self) -> None:
        pause, pause_s = threading.Event(), 1.0
        while True:
            try:
                self._seen = OplogSeen(*oplog_window(self._client(), "read the oplog's window"))
            except (ConfigError, FatalError) as error:
                self._seen = OplogSeen(error=str(error))
            except HeadraceError:
                # MongoDB is away, which the stream itself reports, or the first entry was overwritten while it was
                # read (CappedPositionLost): the previous answer stands.
                pass
            pause.wait(pause_s)
            pause_s = min(ASK_EVERY_S, 2 * pause_s)
