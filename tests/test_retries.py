"""When transient errors are retried, and when the engine gives up."""

from __future__ import annotations

import threading

import pytest

from engine.config import RetryConfig
from engine.errors import ConfigError, TransientError
from engine.retries import retrying

CONFIG = RetryConfig(max_attempts=6, initial_delay=2, max_delay=10)  # type: ignore[arg-type]


def test_delays_double_up_to_the_maximum_and_half_of_each_is_random() -> None:
    slept: list[float] = []

    def fail() -> None:
        raise TransientError("ask", "nobody is there")

    for _ in range(50):
        with pytest.raises(TransientError, match="nobody is there"):
            retrying(CONFIG).copy(sleep=slept.append)(fail)
    assert len(slept) == 50 * 5
    for number, full in enumerate((2, 4, 8, 10, 10)):
        delays = slept[number::5]
        assert full / 2 <= min(delays) < full * 0.6
        assert full * 0.9 < max(delays) <= full


def test_permanent_errors_are_not_retried() -> None:
    attempts: list[None] = []

    def fail() -> None:
        attempts.append(None)
        raise ConfigError("ask", "no such user")

    with pytest.raises(ConfigError):
        retrying(CONFIG)(fail)
    assert len(attempts) == 1


def test_stopping_ends_the_wait() -> None:
    stopped = threading.Event()
    attempts: list[None] = []

    def fail() -> None:
        attempts.append(None)
        stopped.set()
        raise TransientError("ask", "nobody is there")

    patient = RetryConfig(max_attempts=6, initial_delay=600, max_delay=600)  # type: ignore[arg-type]
    with pytest.raises(TransientError):
        retrying(patient, stopped=stopped)(fail)
    assert len(attempts) == 1
