"""Delays between attempts, and when to stop trying."""

from __future__ import annotations

import random

from engine.core.restarts import Failures, RetryPolicy

POLICY = RetryPolicy(4, 1.0, 5.0)


def test_delays_double_with_jitter_up_to_a_cap() -> None:
    rng = random.Random(1)
    for failures, full in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (99, 5.0)):
        delays = {POLICY.delay_s(failures, rng) for _ in range(50)}
        assert full / 2 <= min(delays) < max(delays) <= full


def test_failures_are_counted_until_there_is_progress() -> None:
    failures = Failures(POLICY, random.Random(1))
    assert [failures.failed(10.0) for _ in range(4)] == [True, True, True, False]
    assert failures.retry_at > 10.0
    failures.succeeded()
    assert failures.retry_at == 0.0
    assert failures.failed(10.0)
