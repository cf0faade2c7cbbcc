"""Logs: one line per event, as text on a terminal and as JSON in a pipe, with secrets redacted.

A record's message is a fixed phrase; variable parts are in ``extra={"fields": {...}}``.
"""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

import msgspec

from engine.config import Config
from engine.errors import HeadraceError, Redactor

_COLORS = {"DEBUG": "\033[2m", "INFO": "", "WARNING": "\033[33m", "ERROR": "\033[31m", "CRITICAL": "\033[31m"}
_RESET = "\033[0m"


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
        fields = " ".join(f"{name}={value}" for name, value in _cleaned(_fields_of(record), self._redact).items())
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
        line |= _fields_of(record)
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


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def is_text(config: Config) -> bool:
    """Whether logs are text: by the configuration, or because stderr is a terminal."""
    wanted = config.telemetry.log_format
    return wanted == "text" or (wanted == "auto" and sys.stderr.isatty())


def configure_logging(config: Config, process: str) -> None:
    """Set up this process's logging to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(config, process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("headrace").setLevel(config.telemetry.log_level.upper())
    logging.captureWarnings(True)


def final_line(config: Config, error: HeadraceError, code: int) -> str:
    """Why the program ends, as its last line on stderr, in the format of the log."""
    if is_text(config):
        return config.redactor()(f"headrace: {error}")
    fields = {"error": str(error), "operation": error.operation, "cause": error.cause, "remedy": error.remedy}
    record = logging.LogRecord("headrace", logging.ERROR, "", 0, "ended with an error", (), None)
    record.fields = fields | {"exit_code": code}
    return _formatter(config, "supervisor").format(record)


def _formatter(config: Config, process: str) -> logging.Formatter:
    redact = config.redactor()
    if is_text(config):
        return LineFormatter(redact, process, colors=sys.stderr.isatty())
    return JsonFormatter(redact, process)
