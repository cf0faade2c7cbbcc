"""Bounded, jittered, exponential retries of what may pass: one policy for every server."""

from __future__ import annotations

import logging
import threading

import tenacity

from engine.config.tree import RetryConfig
from engine.errors import TransientError

log = logging.getLogger("headrace")


def retrying(config: RetryConfig, *, stopped: threading.Event | None = None, what: str = "") -> tenacity.Retrying:
    """Calls a function again while it raises ``TransientError``, and then raises that.

    Args:
        stopped: ends the waiting at once, and the retrying.
        what: who is away, for the log.
    """
    stopped = stopped or threading.Event()
    # "Equal jitter": half of each delay is random.
    half = tenacity.wait_exponential(config.initial_delay / 2, config.max_delay / 2)
    jitter = tenacity.wait_random_exponential(config.initial_delay / 2, config.max_delay / 2)
    return tenacity.Retrying(
        stop=tenacity.stop_any(
            tenacity.stop_after_attempt(config.max_attempts), tenacity.stop_when_event_set(stopped)
        ),
        wait=half + jitter,
        retry=tenacity.retry_if_exception_type(TransientError),
        sleep=tenacity.sleep_using_event(stopped),
        before_sleep=lambda state: _log(what, state),
        reraise=True,
    )


def log_retry(what: str, error: BaseException | None, attempt: int, wait_s: float) -> None:
    """An attempt has failed, and another one comes."""
    fields = {"error": str(error), "attempt": attempt, "retry_in_s": round(wait_s, 2)}
    log.warning("%s is away", what, extra={"fields": fields})


def _log(what: str, state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log_retry(what, error, state.attempt_number, state.next_action.sleep if state.next_action else 0.0)
