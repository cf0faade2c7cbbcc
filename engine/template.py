"""Loaded once, by the process that all children are forked from (``forks``); nobody else imports this.

Only what never changes again belongs here.
"""

from __future__ import annotations

import gc

import engine.reader
import engine.writer  # noqa: F401
from engine.forks import restore_environment

restore_environment()
gc.collect()
gc.freeze()  # what is loaded stays: a collection in a child need not look at it, nor copy its pages
