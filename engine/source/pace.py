"""Throttling: how fast a reader may read documents, and when it waits for lagging secondaries.

State: when the next reply may be requested, and whether a secondary lagged when last checked. Owner: the prefetch
thread of one reader.
"""

from __future__ import annotations

import logging
import time

from pymongo.errors import OperationFailure

from engine.errors import ConfigError, TransientError
from engine.source.failures import translate
from engine.source.session import Client

# A pause is divided into steps, so that the reader can send heartbeats.
STEP_S = 1.0
LAG_EVERY_S = 5.0
_SECONDARY, _PRIMARY = 2, 1
_OPERATION = "check the replication lag"

log = logging.getLogger("headrace")


class Pace:
    """The limits of one reader; 0 means none.

    Args:
        documents_per_s, bytes_per_s: for this reader alone.
        max_lag_s: pause while a secondary lags by more.
    """

    def __init__(self, documents_per_s: float = 0.0, bytes_per_s: float = 0.0, max_lag_s: float = 0.0) -> None:
        self._documents_per_s = documents_per_s
        self._bytes_per_s = bytes_per_s
        self._max_lag_s = max_lag_s
        self._next_at = 0.0
        self._lag_at = 0.0
        self._lags = False

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return bool(self._documents_per_s or self._bytes_per_s or self._max_lag_s)

    def may_read(self, client: Client) -> bool:
        """Whether to request the next reply now; if not, this call has waited for a part of the pause."""
        wait_s = self._next_at - time.monotonic()
        if wait_s > 0:
            time.sleep(min(STEP_S, wait_s))
            return wait_s <= STEP_S
        if self._max_lag_s and time.monotonic() >= self._lag_at:
            self._check_lag(client)
        if self._lags:
            time.sleep(STEP_S)
        return not self._lags

    def spend(self, documents: int, size: int) -> None:
        """Account for what was read."""
        cost_s = documents / self._documents_per_s if self._documents_per_s else 0.0
        if self._bytes_per_s:
            cost_s = max(cost_s, size / self._bytes_per_s)
        # A short delay may be caught up on.
        self._next_at = max(self._next_at, time.monotonic() - STEP_S) + cost_s

    def max_documents(self, wanted: int) -> int:
        """How many documents to request at once: at most as many as are allowed in a second."""
        return max(1, min(wanted, int(self._documents_per_s))) if self._documents_per_s else wanted

    def _check_lag(self, client: Client) -> None:
        self._lag_at = time.monotonic() + LAG_EVERY_S
        lag_s = replication_lag_s(client)
        lags = lag_s > self._max_lag_s
        if lags != self._lags:
            what = (
                "a secondary lags; reading pauses" if lags else "the secondaries have caught up; reading resumes"
            )
            log.warning(what, extra={"fields": {"lag_s": round(lag_s, 1), "max_lag_s": self._max_lag_s}})
        self._lags = lags


def replication_lag_s(client: Client) -> float:
    """Seconds by which the slowest live secondary lags.

    Raises:
        ConfigError: this user may not ask, or this kind of deployment does not tell.
        PyMongoError: worth another attempt.
    """
    try:
        members = client.admin.command("replSetGetStatus")["members"]
    except OperationFailure as error:
        if isinstance(translate(_OPERATION, error), TransientError):
            raise
        remedy = "Grant the user clusterMonitor, or set backfill.max_lag = 0."
        raise ConfigError(_OPERATION, f"{error.details or error}", remedy) from error
    times = {state: [m["optimeDate"] for m in members if m["state"] == state] for state in (_PRIMARY, _SECONDARY)}
    if not times[_PRIMARY] or not times[_SECONDARY]:
        return 0.0
    return float((max(times[_PRIMARY]) - min(times[_SECONDARY])).total_seconds())
