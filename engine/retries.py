"""Bounded, jittered, exponential retries of what may pass: one policy for every server and process."""

from __future__ import annotations

import logging
import random
import threading

import tenacity

from engine.config.tree import RetryConfig
from engine.core.restarts import RetryPolicy
from engine.errors import TransientError

log = logging.getLogger("headrace")


def policy_of(config: RetryConfig) -> RetryPolicy:
    """What the configuration says of attempts and delays."""
    return RetryPolicy(config.max_attempts, config.initial_delay, config.max_delay)


def retrying(config: RetryConfig, *, stopped: threading.Event | None = None, what: str = "") -> tenacity.Retrying:
    """Calls a function again while it raises ``TransientError``, and then raises that.

    Args:
        stopped: ends the waiting at once, and the retrying.
        what: who is away, for the log.
    """
    stopped = stopped or threading.Event()
    policy, rng = policy_of(config), random.Random()
    return tenacity.Retrying(
        stop=tenacity.stop_any(
            tenacity.stop_after_attempt(policy.max_attempts), tenacity.stop_when_event_set(stopped)
        ),
        wait=lambda state: policy.delay_s(state.attempt_number, rng),
        retry=tenacity.retry_if_exception_type(TransientError),
        sleep=tenacity.sleep_using_event(stopped),
        before_sleep=lambda state: _log(what, state),
        reraise=True,
    )


def log_retry(
    what: str, error: BaseException | None, attempt: int, wait_s: float, *, has_answered: bool = False
) -> None:
    """An attempt has failed, and another one comes.

    Args:
        has_answered: the server is there, and has ended or refused the request.
    """
    fields = {"error": str(error), "attempt": attempt, "retry_in_s": round(wait_s, 2)}
    event = "%s has ended a request" if has_answered else "%s is away"
    log.warning(event, what, extra={"fields": fields})


def _log(what: str, state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    who = error.who if isinstance(error, TransientError) else ""
    log_retry(who or what, error, state.attempt_number, state.next_action.sleep if state.next_action else 0.0)
