"""The commands: ``python -m engine [run|check|state] --config FILE``; installed, ``headrace``.

Exit codes: 0 done, 1 failed while running, 2 bad configuration or usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine import __version__
from engine.config import Config, load
from engine.core.messages import StreamSpec
from engine.errors import ConfigError, HeadraceError, Redactor, TransientError

_COMMANDS = ("run", "check", "state")
_EPILOG = """\
examples:
  python -m engine --config prod.toml                    follow the change streams until SIGTERM
  python -m engine --config prod.toml --until-caught-up  capture what has happened so far, then end
  python -m engine check --config prod.toml              can everything be reached, with the rights it takes?
  python -m engine state show --config prod.toml         where each stream stands

Every key can also be set by the environment: HEADRACE_SECTION__KEY, for example HEADRACE_BATCH__ROWS=50000.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help", "--version")):
        given.insert(0, "run")
    options = _parser().parse_args(given)
    redact = Redactor()
    try:
        config = load(options.config)
        redact = config.redactor()
        return int(options.act(config, options))
    except HeadraceError as error:
        print(f"headrace: {redact(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError | TransientError) else 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace",
        description="MongoDB change streams to Parquet on S3, exactly once.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    run.set_defaults(act=_run)

    check = commands.add_parser(
        "check", parents=[shared], help="read the configuration, reach everything, show the memory sum"
    )
    check.set_defaults(act=_check)

    state = commands.add_parser("state", help="what the state store knows")
    state_commands = state.add_subparsers(metavar="action", required=True)
    show = state_commands.add_parser("show", parents=[shared], help="where each stream stands")
    show.add_argument("--json", action="store_true", help="one JSON object per stream (the default in a pipe)")
    show.set_defaults(act=_state_show)
    return parser


def _run(config: Config, options: argparse.Namespace) -> int:
    from engine.core.budget import divide
    from engine.core.plan import plan_streams
    from engine.handover import hand_over
    from engine.logs import configure_logging
    from engine.supervisor import EngineEnded, Supervisor

    configure_logging(config, "supervisor")
    specs = plan_streams(config.source)
    divide(config.memory.limit, len(specs), config.writers.processes)

    def launched() -> Supervisor:
        made = Supervisor(config, specs, until_caught_up=options.until_caught_up)
        made.launch()
        return made

    supervisor = launched()

    def run_to_end(former: Sequence[StreamSpec]) -> int:
        nonlocal supervisor
        supervisor.abandon()
        ending = Supervisor(config, former, common_end=True)
        if ending.run() or ending.interrupted:
            return 0
        supervisor = launched()
        return ending.until

    try:
        return supervisor.run() if hand_over(config, specs, run_to_end) else 0
    except EngineEnded as ended:
        print(f"headrace: {config.redactor()(str(ended.error))}", file=sys.stderr)
        return ended.code
    finally:
        supervisor.abandon()


def _check(config: Config, _: argparse.Namespace) -> int:
    from engine.check import check

    return check(config)


def _state_show(config: Config, options: argparse.Namespace) -> int:
    from engine.check import show_state

    return show_state(config, as_json=options.json or not sys.stdout.isatty())
