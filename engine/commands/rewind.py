"""The command ``state rewind``: streams continue from an earlier position; what is read again gets new keys."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from contextlib import closing
from datetime import UTC, datetime

import bson
from bson import json_util
from msgspec import Struct

from engine.config import Config
from engine.core import records
from engine.core.naming import is_split
from engine.core.position import (
    Position,
    is_after,
    is_token,
    make_time,
    make_token,
    position_at,
    split_time,
    token_data,
)
from engine.core.records import StreamRecord, read_record
from engine.errors import ConfigError, HeadraceError
from engine.state.dump import acquire, refuse_if_held
from engine.state.opening import open_retrying

_OPERATION = "rewind the state"
_ADD_YES = "Nothing has been written. Stop every engine, then add --yes.\n"


class _Rewind(Struct, frozen=True):
    stream: str
    record: StreamRecord
    to: Position


def rewind(config: Config, to: str, streams: Collection[str], *, yes: bool) -> int:
    """Show how streams would be rewound, and with ``yes`` rewind them.

    Args:
        to: an RFC 3339 time or a resume token.
        streams: their names; if empty, all.

    Raises:
        ConfigError: ``to`` is neither, or one of the streams cannot be rewound to it.
    """
    target = target_position(to)
    with closing(open_retrying(config.state, config.sink, config.retry)) as store:
        found = {name: read_record(fields) for name, (fields, _) in store.read_all().items() if not is_split(name)}
        planned = _planned(found, streams, target)
        refuse_if_held(store, _OPERATION, config.lease.ttl, [each.stream for each in planned])
        _refuse_beyond_oplog(config, target)
        _show(planned, found, streams)
        if not planned or not yes:
            sys.stdout.write("Nothing has been written.\n" if not planned else _ADD_YES)
            return 0
        for each in planned:
            held = acquire(store, _OPERATION, each.stream, config.lease.ttl)
            record = read_record(held.fields)
            if record != each.record:
                raise ConfigError(_OPERATION, f"an engine has moved {each.stream}", "Stop it, and try again.")
            store.write(held.lease, records.rewound(record, each.to).put)
            store.release(held.lease)
    sys.stdout.write(f"Rewound {len(planned)} streams.\n")
    return 0


def target_position(text: str) -> Position:
    """The position that an RFC 3339 time or a resume token stands for.

    A token may be its ``_data`` (as in ``_cdc_token``), the whole document as Extended JSON (as ``state show``
    prints it), or its BSON in hexadecimal (as in a file's footer). It is not given to the server, which may not
    find it without what is beside its ``_data``: the stream starts at its time, and skips up to it.

    Raises:
        ConfigError: it is none of them.
    """
    token = _token(text.strip())
    if token is not None:
        at = position_at(token)
        return Position(at.token, at.time, at.after_invalidate, exact=False)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        cause = f"{text!r} is neither an RFC 3339 time nor a resume token"
        remedy = "Write 2026-05-01T07:00:00Z, the value of _cdc_token, or the token that state show prints."
        raise ConfigError(_OPERATION, cause, remedy) from None
    if time.tzinfo is None:
        raise ConfigError(_OPERATION, f"{text!r} has no offset", "Add Z for UTC.")
    if (seconds := int(time.timestamp())) <= 0:
        raise ConfigError(_OPERATION, f"{text!r} is before 1970", "Nothing was captured then.")
    return Position(time=make_time(seconds, 0))


def _token(text: str) -> str | None:
    document: bytes | None = None
    try:
        if text.startswith("{"):
            document = bson.encode(json_util.loads(text))
        elif not text.startswith("82"):
            document = bytes.fromhex(text)
        found = text if document is None else bson.decode(document).get("_data")
    except (ValueError, TypeError, bson.errors.BSONError):
        return None
    if not isinstance(found, str) or not is_token(found):
        return None
    return found if document is None else make_token(found, document)


def _planned(found: Mapping[str, StreamRecord], streams: Collection[str], target: Position) -> list[_Rewind]:
    if unknown := sorted(set(streams) - found.keys()):
        known = ", ".join(sorted(found)) or "none"
        raise ConfigError(_OPERATION, f"there is no stream {unknown[0]}", f"There are: {known}.")
    open_ = {name: record for name, record in found.items() if not record.closed and record.position is not None}
    if closed := sorted(set(streams) - open_.keys()):
        raise ConfigError(_OPERATION, f"{closed[0]} is closed, or has no position yet", "It is not read any more.")
    if target.token and len(streams) != 1 and len(open_) > 1:
        cause = f"a token is of one stream, and there are {len(open_)}: {', '.join(sorted(open_))}"
        raise ConfigError(_OPERATION, cause, "Name it with --stream, or give a time.")
    planned = []
    for name in sorted(streams or open_):
        record = open_[name]
        assert record.position is not None
        if not _is_earlier(target, record.position):
            if streams:
                cause = f"{name} stands at {_shown(record.position)}, which is not later"
                raise ConfigError(_OPERATION, cause, "Only an earlier position can be named: nothing is skipped.")
            continue
        if record.intents:
            cause = f"{len(record.intents)} segments of {name} may have been published and are not committed"
            raise ConfigError(
                _OPERATION, cause, "Run the engine once (run --until-caught-up), which finishes them."
            )
        planned.append(_Rewind(name, record, target))
    return planned


def _is_earlier(target: Position, position: Position) -> bool:
    if target.token and position.token:
        return is_after(position.token, target.token)
    return target.time < position.time


def _refuse_beyond_oplog(config: Config, target: Position) -> None:
    from engine.source.session import connect, oplog_window

    client = connect(config.source.uri)
    try:
        oldest, _ = oplog_window(client, "find the oldest event of the oplog")
    except HeadraceError as error:
        sys.stderr.write(f"whether the oplog reaches back that far cannot be checked: {error}\n")
        return
    finally:
        client.close()
    if target.time < oldest:
        cause = f"the oplog reaches back to {_time(oldest)}, and not to {_shown(target)}"
        remedy = "Rewind to a later position. What is older can only be loaded: headrace backfill --restart."
        raise ConfigError(_OPERATION, cause, remedy)


def _show(planned: list[_Rewind], found: Mapping[str, StreamRecord], streams: Collection[str]) -> None:
    for each in planned:
        assert each.record.position is not None
        sys.stdout.write(
            f"{each.stream}: from {_shown(each.record.position)} back to {_shown(each.to)}; what is read again "
            f"has the numbers from {each.record.seq + 1} on, and headrace.line = {each.record.line + 1}\n"
        )
    left = [name for name in found if name not in {each.stream for each in planned} and not streams]
    for name in sorted(left):
        sys.stdout.write(f"{name}: stays as it is, since it is closed or does not stand later\n")


def _shown(position: Position) -> str:
    return f"{_time(position.time)}" + (f" ({token_data(position.token)})" if position.token else "")


def _time(time: int) -> str:
    seconds, increment = split_time(time)
    text = datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
    return f"{text} #{increment}" if increment else text
