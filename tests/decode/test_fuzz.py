"""A short run of ``python -m tests.decode.fuzz``."""

from __future__ import annotations

import pytest

from tests.decode.fuzz import fuzz

pytestmark = pytest.mark.usefixtures("inner_loops")


def test_mutated_documents_do_not_affect_the_others() -> None:
    size, rows, dead = fuzz(600_000, seed=7)
    assert size >= 600_000
    assert 0 < dead < rows / 2
