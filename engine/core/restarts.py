"""How long to wait before the next attempt, and when to give up."""

from __future__ import annotations

import random

from msgspec import Struct


class RetryPolicy(Struct, frozen=True):
    """Bounded, jittered, exponential.

    Attributes:
        max_attempts: the number of failures in a row after which to give up.
        initial_s, max_s: the first and the longest delay.
    """

    max_attempts: int
    initial_s: float
    max_s: float

    def delay_s(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after this many failures in a row (1 or more): "equal jitter", half of them random."""
        full = min(self.max_s, self.initial_s * 2.0 ** min(failures - 1, 30))
        return full / 2 + rng.random() * full / 2


class Failures:
    """Counts the failures in a row of one thing that is retried."""

    def __init__(self, policy: RetryPolicy, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self.count = 0
        self.retry_at = 0.0

    def failed(self, now: float) -> bool:
        """Note a failure and set ``retry_at``; False if the policy allows no further attempt."""
        self.count += 1
        self.retry_at = now + self._policy.delay_s(self.count, self._rng)
        return not self.exhausted

    @property
    def exhausted(self) -> bool:
        """Whether the policy allows no further attempt."""
        return self.count >= self._policy.max_attempts

    def succeeded(self) -> None:
        """Reset the count: there was progress."""
        self.count = 0
        self.retry_at = 0.0
