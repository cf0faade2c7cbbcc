"""What the modules that use ``inner_loops`` test, they test twice: with the compiled loops, and without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.rawbson import native


@pytest.fixture(scope="module", params=["compiled", "numpy"])
def inner_loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """Which inner loops decode."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            patch.setattr(native, "library", None)
        elif native.library is None:
            pytest.skip("this installation has no compiled part")
        yield
