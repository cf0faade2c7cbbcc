"""Logs: one line per event, as text on a terminal and as JSON in a pipe, with secrets redacted.

A record's message is a fixed phrase; variable parts are in ``extra={"fields": {...}}``. What the process is
working on at the moment (``log_with``) is added to them. A warning or error that repeats is logged at growing
intervals, with the number of those that were left out (``Repeats``).
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from engine.config import Config
from engine.errors import HeadraceError, Redactor
from engine.plain import plain, plain_lines

_COLORS = {"DEBUG": "\033[2m", "INFO": "", "WARNING": "\033[33m", "ERROR": "\033[31m", "CRITICAL": "\033[31m"}
_RESET = "\033[0m"
LEVELS = ("debug", "info", "warning", "error")
# What tells two lines with the same phrase apart; other fields may differ between repetitions.
_IDENTITY = ("stream", "streams", "collection", "database", "child", "path", "object", "problem")
_FREE = 5  # repetitions that are all logged
_FIRST_INTERVAL_S, _MAX_INTERVAL_S = 1.0, 600.0
_MAX_KEPT = 500

_context: Callable[[], dict[str, Any]] = dict


def log_with(context: Callable[[], dict[str, Any]]) -> None:
    """Add what this returns to the fields of each line, except for fields that a line has itself."""
    global _context  # noqa: PLW0603
    _context = context


def set_level(level: str) -> None:
    """Log from this level on; one of ``LEVELS``."""
    logging.getLogger("headrace").setLevel(level.upper())


class _Repeated:
    """A line that was logged: how often in a row, when last, and how many were left out since."""

    __slots__ = ("count", "left_out", "logged_at", "seen_at")

    def __init__(self, now: float) -> None:
        self.count = 0
        self.left_out = 0
        self.logged_at = self.seen_at = now

    @property
    def interval_s(self) -> float:
        """How long the next repetition is left out."""
        over = self.count - _FREE
        return 0.0 if over < 0 else min(_MAX_INTERVAL_S, _FIRST_INTERVAL_S * 2.0 ** min(over, 30))


class Repeats(logging.Filter):
    """Leaves out repeated warnings and errors: the first few are logged, then one each 1, 2, 4 ... 600 s.

    A line repeats another if level, phrase and what they concern are the same. The next one that is logged says
    how many were ``left_out``. After a pause of twice the interval a line counts as new.

    State: the latest ``_MAX_KEPT`` different lines. Owner: its lock; any thread may log.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._lines: OrderedDict[object, _Repeated] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged; adds to its fields how many were left out."""
        if record.levelno < logging.WARNING:
            return True
        with self._lock:
            return self._is_due(record)

    def _is_due(self, record: logging.LogRecord) -> bool:
        now, fields = self._clock(), fields_of(record)
        message = record.getMessage()
        key = record.levelno, message, *(str(fields[name]) for name in _IDENTITY if name in fields)
        line = self._lines.pop(key, None)
        if line is None or now - line.seen_at > 2 * max(line.interval_s, 60.0):
            left_out = 0 if line is None else line.left_out
            line = _Repeated(now)
            line.left_out = left_out
        self._lines[key] = line
        if len(self._lines) > _MAX_KEPT:
            self._lines.popitem(last=False)
        line.seen_at = now
        if line.count and now - line.logged_at < line.interval_s:
            line.left_out += 1
            return False
        if line.left_out:
            record.fields = fields | {"left_out": line.left_out}
        line.count, line.left_out, line.logged_at = line.count + 1, 0, now
        return True


class LineFormatter(logging.Formatter):
    """Text lines: time, level, process, message, ``name=value`` ...."""

    def __init__(self, redact: Redactor, process: str, *, colors: bool) -> None:
        super().__init__()
        self._redact = redact
        self._process = process
        self._colors = colors

    def format(self, record: logging.LogRecord) -> str:
        """One line, followed by the traceback if there is one."""
        time = datetime.fromtimestamp(record.created, UTC)
        found = _cleaned(fields_of(record), self._redact)
        fields = " ".join(f"{plain(name)}={plain_lines(str(value))}" for name, value in found.items())
        line = f"{time:%H:%M:%S}.{int(record.msecs):03d} {record.levelname.lower():7} {self._process:10} "
        line += f"{record.getMessage()}  {fields}".rstrip()
        if record.exc_info:
            line += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        color = _COLORS.get(record.levelname, "") if self._colors else ""
        return self._redact(f"{color}{line}{_RESET}" if color else line)


class JsonFormatter(logging.Formatter):
    """JSON lines: one object per record."""

    def __init__(self, redact: Redactor, process: str) -> None:
        super().__init__()
        self._redact = redact
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "message": record.getMessage(),
        }
        line |= fields_of(record)
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        clean = _cleaned(line, self._redact)
        return msgspec.json.encode(clean, enc_hook=lambda value: self._redact(str(value))).decode()


def _cleaned(value: Any, redact: Redactor) -> Any:
    """A value with all strings in it redacted, however deep."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {_cleaned(name, redact): _cleaned(each, redact) for name, each in value.items()}
    return [_cleaned(each, redact) for each in value] if isinstance(value, list | tuple) else value


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says besides its phrase."""
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


class _InContext(logging.Filter):
    """Adds what the process is working on."""

    def filter(self, record: logging.LogRecord) -> bool:
        context = _context()
        own = fields_of(record)
        if context and own.get("stream", context.get("stream")) == context.get("stream"):
            record.fields = own | {name: value for name, value in context.items() if name not in own}
        return True


def is_text(config: Config) -> bool:
    """Whether logs are text: by the configuration, or because stderr is a terminal."""
    wanted = config.telemetry.log_format
    return wanted == "text" or (wanted == "auto" and sys.stderr.isatty())


def configure_logging(config: Config, process: str) -> None:
    """Set up this process's logging to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(config, process))
    handler.addFilter(_InContext())
    handler.addFilter(Repeats())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    set_level(config.telemetry.log_level)
    logging.captureWarnings(True)


def final_line(config: Config, error: HeadraceError, code: int) -> str:
    """Why the program ends, as its last line on stderr, in the format of the log."""
    if is_text(config):
        return config.redactor()(f"headrace: {plain_lines(str(error))}")
    fields = {"error": str(error), "operation": error.operation, "cause": error.cause, "remedy": error.remedy}
    record = logging.LogRecord("headrace", logging.ERROR, "", 0, "ended with an error", (), None)
    record.fields = fields | {"exit_code": code}
    return _formatter(config, "supervisor").format(record)


def _formatter(config: Config, process: str) -> logging.Formatter:
    redact = config.redactor()
    if is_text(config):
        return LineFormatter(redact, process, colors=sys.stderr.isatty())
    return JsonFormatter(redact, process)
