"""Loaded once, by the process that all children are forked from (``forks``); nobody else imports this.

Only what never changes again belongs here.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

from engine.processes.forks import restore_environment

try:
    import engine.processes.reader
    import engine.processes.writer  # noqa: F401
except ImportError as error:  # which the fork server would pass over, and every child load everything by itself
    raise RuntimeError("a child cannot load what it needs") from error


class _WithoutPandas(MetaPathFinder):
    """Arrow loads pandas, where it is installed, when it is first given an array: 45 MiB in each child, unused."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Finds nothing.

        Raises:
            ModuleNotFoundError: it is pandas.
        """
        if name == "pandas":
            raise ModuleNotFoundError("no child needs pandas", name=name)


sys.meta_path.insert(0, _WithoutPandas())
restore_environment()
gc.collect()
gc.freeze()  # what is loaded stays: a collection in a child need not look at it, nor copy its pages
