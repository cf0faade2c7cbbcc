"""Bounded, jittered, exponential retries of what may pass: one policy for every server."""

from __future__ import annotations

import logging
import threading

import tenacity

from engine.config.tree import RetryConfig
from engine.errors import TransientError

# At the start a wrong address is likelier than an outage: say so soon.
FIRST_ATTEMPTS = 3

log = logging.getLogger("headrace")


def retrying(
    config: RetryConfig, *, attempts: int | None = None, stopped: threading.Event | None = None, what: str = ""
) -> tenacity.Retrying:
    """Calls a function again while it raises ``TransientError``, and then raises that.

    Args:
        attempts: in all; ``retry.max_attempts`` when None.
        stopped: ends the waiting at once, and the retrying.
        what: who is away, for the log.
    """
    stopped = stopped or threading.Event()
    # "Equal jitter": half of each delay is random.
    half = tenacity.wait_exponential(config.initial_delay / 2, config.max_delay / 2)
    jitter = tenacity.wait_random_exponential(config.initial_delay / 2, config.max_delay / 2)
    return tenacity.Retrying(
        stop=tenacity.stop_any(
            tenacity.stop_after_attempt(attempts or config.max_attempts), tenacity.stop_when_event_set(stopped)
        ),
        wait=half + jitter,
        retry=tenacity.retry_if_exception_type(TransientError),
        sleep=tenacity.sleep_using_event(stopped),
        before_sleep=lambda state: _log(what, state),
        reraise=True,
    )


def _log(what: str, state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait_s = round(state.next_action.sleep, 2) if state.next_action else 0
    fields = {"error": str(error), "attempt": state.attempt_number, "retry_in_s": wait_s}
    log.warning("%s is away", what, extra={"fields": fields})
