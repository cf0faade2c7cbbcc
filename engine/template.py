"""Loaded once, by the process that all children are forked from (``forks``); nobody else imports this.

Only what never changes again belongs here.
"""

from __future__ import annotations

import gc
import signal

import engine.reader
import engine.writer  # noqa: F401
from engine.forks import restore_environment

restore_environment()
# A service manager may send it to every process; what children do then is the supervisor's to say.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
gc.collect()
gc.freeze()  # what is loaded stays: a collection in a child need not look at it, nor copy its pages
