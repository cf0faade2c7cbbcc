"""The last warnings and errors of the log, for ``/status``.

State: at most ``KEPT`` different ones, the latest last. Owner: a handler of the logging module, whose lock guards
them. Secrets are removed before a text is cut, which could leave a part of one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

KEPT = 50
LONGEST_TEXT = 500


class LoggedError(Struct, frozen=True):
    """A warning or an error.

    Attributes:
        at: when it was logged last, in seconds since 1970.
        level: ``warning``, ``error`` or ``critical``.
        details: ``name=value``, separated by spaces.
        times: how often it was logged.
    """

    at: float
    level: str
    message: str
    details: str
    times: int = 1


class RecentErrors(logging.Handler):
    """Keeps them."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        super().__init__(logging.WARNING)
        self._redact = redact
        self._kept: dict[tuple[str, str, str], LoggedError] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, or count it if the same is kept already; called with the handler's lock."""
        try:
            found = self._read(record)
        except Exception:
            self.handleError(record)
            return
        key = found.level, found.message, found.details
        before = self._kept.pop(key, None)
        self._kept[key] = replace(found, times=before.times + 1) if before else found
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]

    def latest(self) -> tuple[LoggedError, ...]:
        """What is kept, the latest first."""
        self.acquire()
        try:
            return tuple(reversed(self._kept.values()))
        finally:
            self.release()

    def _read(self, record: logging.LogRecord) -> LoggedError:
        fields = {str(name): str(value) for name, value in getattr(record, "fields", {}).items()}
        if record.exc_info and record.exc_info[1]:
            fields.setdefault("cause", repr(record.exc_info[1]))
        details = " ".join(f"{name}={value}" for name, value in fields.items())
        level = record.levelname.lower()
        return LoggedError(record.created, level, self._short(record.getMessage()), self._short(details))

    def _short(self, text: str) -> str:
        text = self._redact(text)
        return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def recent_errors(redact: Callable[[str], str]) -> RecentErrors:
    """What this process keeps; it does so from the first call on."""
    root = logging.getLogger()
    for handler in root.handlers:
        if isinstance(handler, RecentErrors):
            return handler
    made = RecentErrors(redact)
    root.addHandler(made)
    return made
