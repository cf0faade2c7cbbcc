"""Loaded once, by the process that all children are forked from (``forks``); nothing else imports this.

Only state that never changes afterwards belongs here.
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
except ImportError as error:  # the fork server would ignore it, and every child would import everything itself
    raise RuntimeError("cannot import what the child processes need") from error


class _WithoutPandas(MetaPathFinder):
    """Arrow imports an installed pandas when it first converts an array: 45 MiB in each child, for nothing."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Find nothing.

        Raises:
            ModuleNotFoundError: for pandas.
        """
        if name == "pandas":
            raise ModuleNotFoundError("no child needs pandas", name=name)


sys.meta_path.insert(0, _WithoutPandas())
restore_environment()
gc.collect()
gc.freeze()  # nothing loaded here is ever freed, so the children's collector need not scan it and copy its pages
