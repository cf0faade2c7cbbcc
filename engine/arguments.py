"""The arguments of the commands, and which function performs each.

A command's module is imported when it is performed: ``--help`` must not load Arrow.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from pathlib import Path

from engine import __version__
from engine.commands.docs import DOCUMENTS
from engine.config import Config
from engine.quantities import Size, decode_quantity

_EPILOG = """\
examples:
  python -m engine --config prod.toml                    follow the change streams until SIGTERM
  python -m engine --config prod.toml --until-caught-up  capture what has happened so far, then end
  python -m engine backfill --config prod.toml           load existing documents; continues where it stopped
  python -m engine status --config prod.toml             progress of streams and backfills, from any shell
  python -m engine top --config prod.toml                the engine that runs here, live
  python -m engine check --config prod.toml              is everything reachable, with the required rights?
  python -m engine verify --config prod.toml             is the lake whole, and the same as the source?
  python -m engine restore --config prod.toml --to FILE.bson.zst    a collection as it stands, or stood

Every key can also be set in the environment: HEADRACE_SECTION__KEY, for example HEADRACE_BATCH__ROWS=50000, or
HEADRACE_SECTION__KEY_FILE=/path for a secret in a file. All keys, and how to operate an engine: headrace docs.
"""
_EXPORT = """\
Write the whole state, without leases, as JSON lines: the position of each stream, schemas, plans of backfills.
There are no secrets in it. Moving to another state store, while no engine runs:

  headrace state export --config old.toml | headrace state import - --config new.toml
"""
_IMPORT = """\
Put an exported state in place, under the configured state.prefix. A state that is there is only replaced with
--yes, and never while an engine runs. An export is only good until an engine goes on: a state that is older than
the lake is refused when the engine starts.
"""
_REWIND = """\
Let streams continue from an earlier position. Nothing in the lake is changed: what is read again lands a second
time under new keys, with a higher headrace.line in the footers. The rows of one event then have the same
_cdc_token and different _cdc_seq. Views of current documents are not affected. The oplog must reach back that far.

  headrace state rewind --config prod.toml --to 2026-05-01T07:00:00Z         show what would be done
  headrace state rewind --config prod.toml --to 2026-05-01T07:00:00Z --yes   do it
"""
_REBUILD = """\
When the state is lost or older than the lake: make it again from the footers of the Parquet files. Streams whose
record accounts for all that is in the lake are left alone. Segments that may be incomplete are replayed to the
same keys by the next run, so that each event is in the lake once. What the footers cannot say (where a stream
without any object was, whether a backfill was finished) is printed, with what to do.

First stop every engine, on every machine, for good: one that is only paused could still publish.
"""


_TOP = """\
Show an engine that runs, live: throughput, lag, oplog, memory, streams with problems first, processes, and its
last errors. q ends it; the arrow keys scroll. It waits for an engine that is away. In a pipe it shows everything
once; for scripts, use /status, or status --json.
"""
_RESTORE = """\
Write a collection as it stood at a time from the lake into a MongoDB server or a file, without its indexes.

Interrupted or killed, the same command continues: a record in the target (the collection headrace.restores, or
FILE.partial.json) says which of 64 parts are written. The lake is read again, what is written is not.

Documents are exact at every time if source.full_document is "required" or "when_available". With "update_lookup",
a document is what it was a little after the update; the report counts those that may be newer than --at, and
names some. It also says what the columns do not tell (with schema.raw, documents come back byte for byte).
"""
_RESTORE_EXAMPLES = """\
examples:
  python -m engine restore --config prod.toml --collection shop.orders --to '${TARGET_URI}' --as check.orders
  python -m engine restore --config prod.toml --collection shop.orders --to orders.bson.zst --at 2026-05-01T07:00Z
  zstd -dc orders.bson.zst | mongorestore --uri "$TARGET_URI" --db shop --collection orders -
"""


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``act``, which performs it."""
    made = argparse.ArgumentParser(
        prog="headrace",
        description="MongoDB change streams and collections to Parquet on S3, exactly once.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(stoppable=False, bare=lambda _: False)
    made.add_argument("--version", action="version", version=f"headrace {__version__}")
    commands = made.add_subparsers(metavar="command", required=True)
    shared = _shared()
    _add_run(commands, shared)
    _add_backfill(commands, shared)
    _add_check(commands, shared)
    _add_status(commands, shared)
    _add_top(commands, shared)
    _add_verify(commands, shared)
    _add_restore(commands, shared)
    _add_state(commands, shared)
    _add_without_config(commands)
    return made


def _shared() -> argparse.ArgumentParser:
    """The options of all commands that have a configuration."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file; without it, everything comes from the environment"
    )
    shared.add_argument(
        "--env-file",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="file of environment variables, NAME=value, for what the environment does not set; repeatable",
    )
    return shared


def _add_run(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser
) -> None:
    run = commands.add_parser("run", parents=[shared], help="follow the change streams (the default)")
    run.add_argument(
        "--until-caught-up",
        action="store_true",
        help="end with code 0 when every stream has committed past the cluster time seen at its start",
    )
    run.set_defaults(act=_run, stoppable=True)


def _add_backfill(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser
) -> None:
    backfill = commands.add_parser(
        "backfill",
        parents=[shared],
        help="load existing documents",
        description="Load whole collections into the lake, as rows with _cdc_op = read. Progress is kept in the "
        "state store: a backfill that was stopped or killed continues where it was, and one that is finished does "
        "nothing. It can run while another engine captures change streams.",
    )
    backfill.add_argument(
        "--collections",
        type=_names,
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
            help=f"only documents whose ObjectId _id was created {word} this time (for a time-series collection: "
            "whose time is); RFC 3339, for example 2026-05-01T00:00:00Z",
        )
    backfill.add_argument(
        "--restart",
        action="store_true",
        help="forget what has been loaded and start over, with new keys; delete the old objects yourself",
    )
    backfill.set_defaults(act=_backfill, stoppable=True)


def _add_check(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser
) -> None:
    check = commands.add_parser(
        "check", parents=[shared], help="check the configuration, all servers and rights; show the memory budget"
    )
    check.add_argument(
        "--for",
        dest="command",
        choices=("run", "backfill", "verify", "restore", "status"),
        default="run",
        help="the command whose rights are checked (default: run)",
    )
    check.add_argument(
        "--explain",
        action="store_true",
        help="show how much memory the configuration takes, and what; asks no server",
    )
    check.add_argument(
        "--rate",
        type=_rate,
        metavar="N/s",
        help="with --explain: also the cores, streams, writers and engines for so many events, such as 50k/s",
    )
    check.add_argument(
        "--document-size",
        type=_size,
        default=1024,
        metavar="SIZE",
        help="for --rate: the mean size of a document as BSON (default: 1KiB)",
    )
    check.add_argument(
        "--cores",
        type=_positive,
        metavar="N",
        help="for --rate: the cores of an engine (default: those that it could use here)",
    )
    check.add_argument("--json", action="store_true", help="JSON instead of text")
    check.set_defaults(act=_check)


def _add_status(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser
) -> None:
    status = commands.add_parser(
        "status", parents=[shared], help="progress of streams and backfills, from the state store"
    )
    status.add_argument("--json", action="store_true", help="one JSON object per line (the default in a pipe)")
    status.set_defaults(act=_state_show)


def _add_top(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser
) -> None:
    top = commands.add_parser(
        "top", parents=[shared], help="an engine that runs, live in the terminal", description=_TOP
    )
    top.add_argument(
        "--url",
        default="",
        metavar="URL",
        help="of its endpoints, http:// or https:// (default: telemetry.listen); '${NAME}' and '${file:/path}' "
        "are replaced, so that no password is among the arguments: 'https://headrace:${PASSWORD}@host:8080'",
    )
    top.add_argument("--ca-file", type=Path, metavar="FILE", help="the authorities of its certificate, in PEM")
    top.set_defaults(act=_top, stoppable=True, bare=lambda options: bool(options.url))


def _add_restore(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser
) -> None:
    restore = commands.add_parser(
        "restore",
        parents=[shared],
        help="bring a collection back, as it stood at some time",
        description=_RESTORE,
        epilog=_RESTORE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    restore.add_argument(
        "--collection",
        metavar="DB.COLL",
        help="which collection (default: the only one that the configuration names)",
    )
    restore.add_argument(
        "--at",
        type=_moment,
        metavar="TIME",
        help="RFC 3339, the moment before the first event of that second; or a cluster time, SECONDS:INCREMENT, "
        "up to and including it (default: the newest that all streams of the collection have passed)",
    )
    restore.add_argument(
        "--to",
        required=True,
        metavar="URI|FILE",
        help="a connection string (mongodb://...), or a file that ends in .bson.zst; '${NAME}', '${file:/path}' "
        "and '${aws:secret}' are replaced as in the configuration, so that no password is among the arguments",
    )
    restore.add_argument(
        "--as", dest="name", metavar="DB.COLL", help="the name of the collection to write (default: its own)"
    )
    restore.add_argument(
        "--drop", action="store_true", help="first remove what the target has; without it, it must be empty"
    )
    restore.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="where rows wait that do not fit into memory.limit (default: the system's temporary directory); the "
        "room of the collection's rows, uncompressed, is enough",
    )
    restore.add_argument("--json", action="store_true", help="report as JSON (the default in a pipe)")
    restore.set_defaults(act=_restore, stoppable=True)


def _add_state(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser
) -> None:
    state = commands.add_parser("state", help="contents of the state store")
    state_commands = state.add_subparsers(metavar="action", required=True)
    show = state_commands.add_parser("show", parents=[shared], help="position of each stream")
    show.add_argument("--json", action="store_true", help="one JSON object per stream (the default in a pipe)")
    show.set_defaults(act=_state_show)
    _add_state_commands(state_commands, shared)


def _add_without_config(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    docs = commands.add_parser("docs", help="the documents: all keys, operations, the lake, ...")
    docs.add_argument(
        "name", nargs="?", choices=[*DOCUMENTS], metavar="NAME", help=f"one of {', '.join(DOCUMENTS)}"
    )
    docs.set_defaults(act=_docs)

    completion = commands.add_parser(
        "completion",
        help="a script that completes commands and options",
        description=_COMPLETION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    completion.set_defaults(act=_completion)


_COMPLETION = """\
Print a script for a shell, which completes commands, options and names of files:

  headrace completion bash > ~/.local/share/bash-completion/completions/headrace
  headrace completion zsh > ~/.zfunc/_headrace        with fpath+=~/.zfunc before compinit in ~/.zshrc
  headrace completion fish > ~/.config/fish/completions/headrace.fish
"""


_VERIFY = """\
Compare the lake with itself, with the state store and with the source, while engine and writers go on. Nothing is
changed anywhere.

With itself: the segments of every stream are there, once, and follow each other; objects lie under their own keys,
with the rows that they were written with; no event is twice in a stream; all pages have their checksums.
With the state store: what is committed is there, and nothing else is.
With the source: every document is the same in both, as of cluster times that the lake has passed. Under
update_lookup, what differs is looked at again later before it counts. The lake must be less than five minutes
behind (minSnapshotHistoryWindowInSeconds of the server, MongoDB 5.0 or later).

Exit codes: 0 clean; 1 there are differences; 2 it could not be compared, because of the configuration.
"""
_VERIFY_EPILOG = """\
examples:
  python -m engine verify --config prod.toml                               everything
  python -m engine verify --config prod.toml --collections orders,users    these, and the streams that carry them
  python -m engine verify --config prod.toml --since 2026-05-01T00:00:00Z  what has changed since
  python -m engine verify --config prod.toml --lake-only                   without reading MongoDB
  python -m engine verify --config prod.toml --json | jq 'select(.kind == "document_missing") | .key'
"""


def _add_verify(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser
) -> None:
    verify = commands.add_parser(
        "verify",
        parents=[shared],
        help="compare the lake with itself and with the source",
        description=_VERIFY,
        epilog=_VERIFY_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verify.add_argument(
        "--collections",
        type=_names,
        default=[],
        metavar="A,B",
        help="collections of source.database, or <database>.<collection> without one (default: the whole lake, "
        "and all that the configuration watches)",
    )
    for name, word in (("since", "at or after"), ("until", "before")):
        verify.add_argument(
            f"--{name}",
            type=_time,
            metavar="TIME",
            help=f"only segments with events {word} this cluster time, and the documents of these; RFC 3339",
        )
    verify.add_argument("--lake-only", action="store_true", help="do not compare with the source")
    verify.add_argument(
        "--examples", type=int, default=20, metavar="N", help="show so many differences of each kind (default: 20)"
    )
    verify.add_argument("--json", action="store_true", help="one JSON object per line (the default in a pipe)")
    verify.set_defaults(act=_verify)


def _rate(text: str) -> float:
    from engine.commands.explain import parse_rate

    try:
        return parse_rate(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> float:
    if (number := float(text)) > 0:
        return number
    raise argparse.ArgumentTypeError(f"{text!r} is not above 0")


def _size(text: str) -> int:
    try:
        if size := int(decode_quantity(Size, text)):
            return size
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no size such as 324 or 1KiB")


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _moment(text: str) -> int:
    from engine.core.restoring import parse_moment

    try:
        return parse_moment(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; give RFC 3339 with an offset, or SECONDS:INCREMENT") from None


def _add_state_commands(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser
) -> None:
    text = argparse.RawDescriptionHelpFormatter
    export = commands.add_parser(
        "export",
        parents=[shared],
        help="write the whole state as JSON lines",
        description=_EXPORT,
        formatter_class=text,
    )
    export.add_argument("file", nargs="?", default="-", metavar="FILE", help="- (the default): standard output")
    export.set_defaults(act=_state_export)

    import_ = commands.add_parser(
        "import",
        parents=[shared],
        help="put an exported state in place",
        description=_IMPORT,
        formatter_class=text,
    )
    import_.add_argument("file", metavar="FILE", help="what state export has written; -: standard input")
    import_.add_argument("--yes", action="store_true", help="replace the state that is there")
    import_.add_argument(
        "--moved-lake", action="store_true", help="the lake was moved, as it was, to the configured sink.url"
    )
    import_.set_defaults(act=_state_import)

    rewind = commands.add_parser(
        "rewind",
        parents=[shared],
        help="continue from an earlier position",
        description=_REWIND,
        formatter_class=text,
    )
    rewind.add_argument(
        "--to", required=True, metavar="TIME|TOKEN", help="RFC 3339, for example 2026-05-01T07:00:00Z; or a token"
    )
    rewind.add_argument("--stream", action="append", default=[], metavar="S", help="repeatable (default: all)")
    rewind.add_argument("--yes", action="store_true", help="do it; otherwise it is only shown")
    rewind.set_defaults(act=_state_rewind)

    rebuild = commands.add_parser(
        "rebuild",
        parents=[shared],
        help="make a lost or older state again, from the lake",
        description=_REBUILD,
        formatter_class=text,
    )
    rebuild.add_argument("--yes", action="store_true", help="write it; otherwise it is only shown")
    rebuild.set_defaults(act=_state_rebuild)


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


def _check(config: Config, options: argparse.Namespace) -> int:
    if options.explain or options.rate:
        from engine.commands.explain import explain

        size, cores = options.document_size, options.cores
        return explain(config, options.rate, size, cores, as_json=options.json)
    from engine.commands.check import check

    return check(config, options.command, as_json=options.json)


def _verify(config: Config, options: argparse.Namespace) -> int:
    from engine.commands.verify import Options, verify

    wanted = Options(options.collections, options.since, options.until, options.lake_only, options.examples)
    return verify(config, wanted, as_json=options.json or not sys.stdout.isatty())


def _restore(config: Config, options: argparse.Namespace) -> int:
    from engine.commands.restore import Options, restore

    wanted = Options(options.to, options.collection, options.at, options.name, options.drop, options.work)
    return restore(config, wanted, as_json=options.json or not sys.stdout.isatty())


def _top(config: Config, options: argparse.Namespace) -> int:
    from engine.commands.top import top

    return top(config, options.url, options.ca_file)


def _state_export(config: Config, options: argparse.Namespace) -> int:
    from engine.commands.state import export_state

    return export_state(config, options.file)


def _state_import(config: Config, options: argparse.Namespace) -> int:
    from engine.commands.state import import_state

    return import_state(config, options.file, yes=options.yes, moved_lake=options.moved_lake)


def _state_rewind(config: Config, options: argparse.Namespace) -> int:
    from engine.commands.rewind import rewind

    return rewind(config, options.to, options.stream, yes=options.yes)


def _state_rebuild(config: Config, options: argparse.Namespace) -> int:
    from engine.commands.rebuild import rebuild_state

    return rebuild_state(config, yes=options.yes)


def _docs(options: argparse.Namespace) -> int:
    from engine.commands.docs import show

    return show(options.name)


def _completion(options: argparse.Namespace) -> int:
    from engine.commands.completion import script

    sys.stdout.write(script(parser(), options.shell))
    return 0


def _state_show(config: Config, options: argparse.Namespace) -> int:
    from engine.commands.status import show_state

    return show_state(config, as_json=options.json or not sys.stdout.isatty())
