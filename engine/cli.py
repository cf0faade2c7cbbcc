"""The commands: ``python -m engine [COMMAND] --config FILE``; installed, ``headrace``.

Exit codes: 0 done, or stopped by a signal; 1 failed (including a server that stays unreachable, and differences
that ``verify`` has found); 2 bad configuration or usage; 141 the reader of the output was gone before its end.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

from engine.arguments import parser
from engine.config import Config, InvalidConfigError, load, read_env_files, unconfigured
from engine.errors import ConfigError, EngineEnded, HeadraceError
from engine.logs import configure_logging, final_line
from engine.processes.forks import stop_signals

log = logging.getLogger("headrace")
# The exit code that a shell reports for a program ended by SIGPIPE.
CUT_OFF = 128 + signal.SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    _open_closed_streams()
    try:
        try:
            return _run_command(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()
    except OSError:
        from engine.commands.terminal import is_cut_off

        if not is_cut_off(sys.stdout):
            raise
        _discard(sys.stdout)
        return CUT_OFF
    finally:
        try:
            sys.stderr.flush()
        except OSError:  # what is left of the bars; a closed terminal must not cost the exit code
            _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Drop what is left in a buffer: it cannot be written, and would be tried again as the interpreter exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run_command(given: list[str]) -> int:
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help", "--version")):
        given.insert(0, "run")
    options = parser().parse_args(given)
    with _stopped_by_signals(options.stoppable):
        try:
            return _perform(options)
        except KeyboardInterrupt:
            return 0 if options.stoppable else 128 + signal.SIGINT


def _perform(options: argparse.Namespace) -> int:
    if not hasattr(options, "config"):
        return int(options.act(options))
    try:
        os.environ.update(read_env_files(options.env_file, os.environ))
        config = load(options.config) if options.config or not options.bare(options) else unconfigured()
    except InvalidConfigError as error:
        return _ended(error.config, error, 2)
    except ConfigError as error:  # of the variables
        return _ended(unconfigured(), error, 2)
    configure_logging(config, "supervisor")
    try:
        return int(options.act(config, options))
    except EngineEnded as ended:
        return _ended(config, ended.error, ended.code)
    except HeadraceError as error:
        return _ended(config, error, 2 if isinstance(error, ConfigError) else 1)
    except Exception as error:  # our own bug: reported in the format of the log, and without secrets
        from engine.commands.terminal import is_cut_off

        if isinstance(error, OSError) and is_cut_off(sys.stdout):
            raise
        log.critical("ended by a bug", exc_info=True)
        return 1


def _ended(config: Config, error: HeadraceError, code: int) -> int:
    with suppress(OSError):  # a closed terminal must not change the exit code
        print(final_line(config, error, code), file=sys.stderr, flush=True)
    return code


class _StopSignalError(KeyboardInterrupt):
    """A signal to stop, before there is anything to drain.

    A KeyboardInterrupt itself would not do: if one is raised in ``exec`` of a text, as ``dataclasses`` does while
    modules are imported, the interpreter remembers it, and at its exit kills itself with SIGINT although it was
    caught.
    """


@contextmanager
def _stopped_by_signals(stoppable: bool) -> Iterator[None]:
    """For a command that drains: until there is something to drain, stop gracefully and at once.

    The supervisor installs its own handlers.
    """

    def stop(number: int, _: FrameType | None) -> None:
        raise _StopSignalError(signal.Signals(number).name)

    previous = {number: signal.signal(number, stop) for number in (stop_signals() if stoppable else ())}
    # Those that change the log's level have no one to tell yet, and must not end the process.
    ignored = (signal.SIGUSR1, signal.SIGUSR2) if stoppable else ()
    previous |= {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _open_closed_streams() -> None:
    """Open standard streams that the shell has closed (``>&-``), so that no file of ours takes their place."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: PTH123, SIM115
