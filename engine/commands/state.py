"""The commands ``state export``, ``state import`` and ``state rewind``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TextIO

from engine import __version__
from engine.config import Config
from engine.core.naming import is_split
from engine.errors import ConfigError, NoStateError
from engine.owner import name_of
from engine.state.dump import State, lines_of, parse, put_state, read_state, refuse_if_held
from engine.state.opening import location, open_retrying, open_store

_IMPORT = "import the state"


def export_state(config: Config, target: str) -> int:
    """Write the whole state to a file, or to the standard output for ``-``.

    Raises:
        NoStateError: there is none.
        ConfigError: the file cannot be written.
    """
    with closing(open_store(config.state, config.sink, read_only=True)) as store:
        held = sorted({name_of(holder) for _, holder in store.read_all().values() if holder})
        state = read_state(store, config.state.prefix, config.sink.identity, __version__)
    if not state.records and not state.documents:
        where = f"{location(config.state, config.sink)} under the prefix {config.state.prefix!r}"
        raise NoStateError("export the state", f"there is none yet in {where}", "The first run creates it.")
    if target == "-":
        sys.stdout.writelines(lines_of(state))
    else:
        _write(Path(target), state)
    if held:
        what = "it is a copy as of now: an engine that goes on makes it too old to be imported"
        sys.stderr.write(f"streams are held by {', '.join(held)}: {what}\n")
    return 0


def _write(path: Path, state: State) -> None:
    hidden = path.with_name(f".{path.name}.part")
    try:
        with hidden.open("w", encoding="utf-8") as file:
            file.writelines(lines_of(state))
        hidden.replace(path)
    except OSError as error:
        hidden.unlink(missing_ok=True)
        raise ConfigError(
            f"write {path}", str(error), "Name a file in a directory that can be written."
        ) from error
    sys.stdout.write(f"exported {_counts(state)} to {path}\n")


def import_state(config: Config, source: str, *, yes: bool, moved_lake: bool) -> int:
    """Put an exported state in place; what is there is replaced only with ``yes``.

    Raises:
        ConfigError: it is damaged or another lake's, an engine runs, or there is a state and not ``yes``.
    """
    with _opened(source) as file:
        try:
            state = parse(file)
        except UnicodeDecodeError as error:
            raise ConfigError("read the exported state", str(error), "It is UTF-8 text.") from error
    if moved_lake:
        state = state.moved_to(config.sink)
    elif state.head.sink != config.sink.identity:
        cause = f"it is the state of the lake {state.head.sink}, and the sink is {config.sink.identity}"
        remedy = "Configure that sink. If the lake was moved here as it was, add --moved-lake."
        raise ConfigError(_IMPORT, cause, remedy)
    where = f"{location(config.state, config.sink)}, prefix {config.state.prefix!r}"
    head = state.head
    sys.stdout.write(
        f"{_counts(state)}, exported {head.made} by {head.version} under the prefix {head.prefix!r}\n"
    )
    with closing(open_retrying(config.state, config.sink, config.retry)) as store:
        refuse_if_held(store, _IMPORT, config.lease.ttl)
        present = read_state(store, config.state.prefix, config.sink.identity, __version__)
        if (present.records or present.documents) and not yes:
            for name in sorted(present.records.keys() | present.documents.keys()):
                kept = name in state.records or name in state.documents
                sys.stdout.write(f"  {'would be replaced' if kept else 'would be removed'}: {name}\n")
            cause = f"there is a state in {where}: {_counts(present)}"
            raise ConfigError(_IMPORT, cause, "Nothing was written. With --yes it is replaced.")
        put_state(store, _IMPORT, state, config.lease.ttl)
    sys.stdout.write(f"imported into {where}\n")
    return 0


@contextmanager
def _opened(source: str) -> Iterator[TextIO]:
    if source == "-":
        yield sys.stdin
        return
    try:
        with Path(source).open(encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise ConfigError(f"read {source}", str(error), "Name a file that state export has written.") from error


def _counts(state: State) -> str:
    splits = sum(map(is_split, state.records))
    return f"{len(state.records) - splits} streams, {splits} splits and {len(state.documents)} documents"
