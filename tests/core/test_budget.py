"""How the memory limit is divided."""

from __future__ import annotations

import pytest

from engine.core.budget import MIB, divide
from engine.errors import ConfigError


def test_the_terms_add_up_to_no_more_than_the_limit() -> None:
    for limit in (512, 1024, 2048, 16384):
        for readers, writers in ((1, 2), (4, 2)):
            budget = divide(limit * MIB, readers, writers) if limit >= 768 or readers == 1 else None
            if budget:
                assert sum(size for _, size in budget.terms()) <= limit * MIB


def test_more_memory_is_shared_by_everything_that_can_use_it() -> None:
    small, large = divide(512 * MIB, 1, 2), divide(2048 * MIB, 1, 2)
    assert small.arena < large.arena
    assert small.reply <= large.reply
    assert small.writer_pending < large.writer_pending


def test_what_is_left_makes_larger_parts_of_uploads() -> None:
    parts = [divide(limit * MIB, 1, 2).part // MIB for limit in (512, 768, 1024, 16384)]
    assert parts[0] >= 6
    assert parts == sorted(parts)
    assert parts[-1] == 16
    for budget in (divide(1024 * MIB, 1, 2), divide(1024 * MIB, 4, 2), divide(16384 * MIB, 8, 8)):
        assert sum(size for _, size in budget.terms()) <= budget.limit


def test_a_limit_that_is_too_small_is_refused_with_the_sum() -> None:
    with pytest.raises(ConfigError) as caught:
        divide(512 * MIB, 8, 2)
    text = str(caught.value)
    assert "8 reader(s) x 48MiB" in text
    assert "total" in text
    assert caught.value.remedy
