"""How much the tests try: with ``EXPLORE=1`` everything, which takes hours; without, one case of each kind."""

from __future__ import annotations

import os
from typing import Any

import pytest

EXPLORE = bool(os.environ.get("EXPLORE"))


def rare(*values: Any) -> Any:
    """A case for ``parametrize`` whose like is tried anyway: only with ``EXPLORE=1``."""
    return pytest.param(*values, marks=pytest.mark.skipif(not EXPLORE, reason="its like is tried: EXPLORE=1"))


def explored(reason: str) -> pytest.MarkDecorator:
    """A mark for tests that take minutes: only with ``EXPLORE=1``."""
    return pytest.mark.skipif(not EXPLORE, reason=f"{reason}: EXPLORE=1")
