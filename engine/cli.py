"""The commands: ``python -m engine [run|backfill|status|check|state] --config FILE``; installed, ``headrace``.

Exit codes: 0 done, or stopped by a signal; 1 failed (a server that stays out of reach included); 2 bad
configuration or usage; 141 nobody read the output to its end.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from engine import __version__
from engine.config import Config, InvalidConfigError, load
from engine.errors import ConfigError, EngineEnded, HeadraceError
from engine.logs import configure_logging, last_words
from engine.processes.forks import stop_signals

if TYPE_CHECKING:
    pass

log = logging.getLogger("headrace")
# What a shell reports of a program that SIGPIPE has ended.
CUT_OFF = 128 + signal.SIGPIPE
_EPILOG = """\
examples:
  python -m engine --config prod.toml                    follow the change streams until SIGTERM
  python -m engine --config prod.toml --until-caught-up  capture what has happened so far, then end
  python -m engine backfill --config prod.toml           load what the collections hold; go on where it stopped
  python -m engine status --config prod.toml             how far streams and backfills are, from any shell
  python -m engine check --config prod.toml              can everything be reached, with the rights it takes?

Every key can also be set by the environment: HEADRACE_SECTION__KEY, for example HEADRACE_BATCH__ROWS=50000.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
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
        # What is still in its buffer has nowhere to go, and would be tried again at the end of the interpreter.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CUT_OFF


def _run_command(given: list[str]) -> int:
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help", "--version")):
        given.insert(0, "run")
    options = _parser().parse_args(given)
    with _stopped_by_signals(options.stoppable):
        try:
            config = load(options.config)
        except InvalidConfigError as error:
            return _ended(error.config, error, 2)
        configure_logging(config, "supervisor")
        try:
            return int(options.act(config, options))
        except EngineEnded as ended:
            return _ended(config, ended.error, ended.code)
        except HeadraceError as error:
            return _ended(config, error, 2 if isinstance(error, ConfigError) else 1)
        except KeyboardInterrupt:
            return 0 if options.stoppable else 128 + signal.SIGINT
        except Exception as error:  # our own bug: told as the log is, and without secrets
            from engine.commands.terminal import is_cut_off

            if isinstance(error, OSError) and is_cut_off(sys.stdout):
                raise
            log.critical("ended by a bug", exc_info=True)
            return 1


def _ended(config: Config, error: HeadraceError, code: int) -> int:
    with suppress(OSError):  # a terminal that is gone must not take the exit code with it
        print(last_words(config, error, code), file=sys.stderr, flush=True)
    return code


@contextmanager
def _stopped_by_signals(stoppable: bool) -> Iterator[None]:
    """For a command that drains: until there is something to drain, stop at once, and in good order.

    SIGINT does so by itself; the supervisor has handlers of its own.
    """
    numbers = stop_signals() - {signal.SIGINT} if stoppable else set()
    former = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _open_closed_streams() -> None:
    """Have something to write to where the shell has closed it (``>&-``), and no file of ours in its place."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: PTH123, SIM115


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace",
        description="MongoDB change streams and collections to Parquet on S3, exactly once.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(stoppable=False)
    parser.add_argument("--version", action="version", version=f"headrace {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file; without it, everything is from the environment"
    )

    run = commands.add_parser("run", parents=[shared], help="follow the change streams (the default)")
    run.add_argument(
        "--until-caught-up",
        action="store_true",
        help="end with code 0 when every stream has committed past the cluster time seen at its start",
    )
    run.set_defaults(act=_run, stoppable=True)

    backfill = commands.add_parser(
        "backfill",
        parents=[shared],
        help="load what the collections hold",
        description="Load whole collections into the lake, as rows with _cdc_op = read. What was loaded is kept "
        "in the state store: a backfill that was stopped or killed goes on where it was, and one that is done "
        "does nothing. It can run while change streams are captured by another engine.",
    )
    backfill.add_argument(
        "--collections",
        type=lambda text: [name for name in text.split(",") if name],
        default=[],
        metavar="A,B",
        help="collections of source.database (default: all that the configuration watches)",
    )
    backfill.add_argument(
        "--filter", metavar="JSON", help="only documents that match this query, as Extended JSON"
    )
    for name, word in (("since", "at or after"), ("until", "before")):
        backfill.add_argument(
            f"--{name}",
            type=_time,
            metavar="TIME",
            help=f"only documents whose ObjectId _id was made {word} this time (of a time-series collection: "
            "whose time is); RFC 3339, for example 2026-05-01T00:00:00Z",
        )
    backfill.add_argument(
        "--restart",
        action="store_true",
        help="forget what has been loaded and begin anew, with other keys; delete the former objects yourself",
    )
    backfill.set_defaults(act=_backfill, stoppable=True)

    check = commands.add_parser(
        "check", parents=[shared], help="read the configuration, reach everything, show the memory sum"
    )
    check.set_defaults(act=_check)

    status = commands.add_parser(
        "status", parents=[shared], help="how far streams and backfills are, by the state store"
    )
    status.add_argument("--json", action="store_true", help="one JSON object per line (the default in a pipe)")
    status.set_defaults(act=_state_show)

    state = commands.add_parser("state", help="what the state store knows")
    state_commands = state.add_subparsers(metavar="action", required=True)
    show = state_commands.add_parser("show", parents=[shared], help="where each stream stands")
    show.add_argument("--json", action="store_true", help="one JSON object per stream (the default in a pipe)")
    show.set_defaults(act=_state_show)
    return parser


def _time(text: str) -> str:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an RFC 3339 time") from None
    if time.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no offset; add Z for UTC")
    return text


def _backfill(config: Config, options: argparse.Namespace) -> int:
    from engine.commands.backfill import backfill
    from engine.core.backfill import Selection

    selection = Selection(options.filter, options.since, options.until)
    return backfill(config, options.collections, selection, restart=options.restart)


def _run(config: Config, options: argparse.Namespace) -> int:
    from engine.commands.run import run

    return run(config, until_caught_up=options.until_caught_up)


def _check(config: Config, _: argparse.Namespace) -> int:
    from engine.commands.check import check

    return check(config)


def _state_show(config: Config, options: argparse.Namespace) -> int:
    from engine.commands.status import show_state

    return show_state(config, as_json=options.json or not sys.stdout.isatty())
