"""A whole state as JSON lines, and how one is put in place.

The first line says what it is; then one line for each stream's record and each shared document; the last line
counts them, so that a file that was cut short is noticed. Leases are left out, and there are no secrets in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from engine.config.tree import SinkConfig
from engine.core.backfill import decode_index, decode_plan
from engine.core.generations import FLEET_DOCUMENT, decode_generations
from engine.core.handover import decode_handover
from engine.core.records import read_record
from engine.core.schemas import decode_schema
from engine.errors import ConfigError, HeadraceError, StateLostError
from engine.owner import is_certainly_dead, name_of, this_owner
from engine.state.leases import take
from engine.state.seam import Acquired, StateStore

FORMAT = 1
_READ = "read the exported state"
_LOOK_EVERY_S = 0.5
# How the text of a document is read, by the beginning of its name.
_DOCUMENTS = {
    "schema:": decode_schema,
    "backfill:": decode_plan,
    "backfills": decode_index,
    "handover": decode_handover,
    FLEET_DOCUMENT: decode_generations,
}

# Between the URL and the layout in a sink's identity.
_LAYOUT = " partition_by="

Records = Mapping[str, Mapping[str, str]]
Documents = Mapping[str, tuple[int, str]]


class Head(Struct, frozen=True, tag="head", tag_field="kind"):
    """The first line.

    Attributes:
        version: the engine's that wrote it.
        prefix: ``state.prefix``.
        made: when, as RFC 3339.
        sink: where the objects are and how they are laid out.
    """

    format: int
    version: str
    prefix: str
    made: str
    sink: str


class _Stream(Struct, frozen=True, tag="stream", tag_field="kind"):
    name: str
    fields: dict[str, str]


class _Document(Struct, frozen=True, tag="document", tag_field="kind"):
    name: str
    version: int
    text: str


class _End(Struct, frozen=True, tag="end", tag_field="kind"):
    streams: int
    documents: int


class _AnyHead(Struct):
    kind: str = ""
    format: int = 0


class State(Struct, frozen=True):
    """A whole state: the fields of each stream's record, and the version and text of each shared document."""

    head: Head
    records: dict[str, dict[str, str]]
    documents: dict[str, tuple[int, str]]

    def moved_to(self, sink: SinkConfig) -> State:
        """The same state for a lake that was moved here as it was: the records name its new URL."""
        old, new = (text.rpartition(_LAYOUT)[0] for text in (self.head.sink, sink.identity))

        def moved(fields: dict[str, str]) -> dict[str, str]:
            url, _, layout = fields.get("sink", "").rpartition(_LAYOUT)
            return fields | {"sink": f"{new}{_LAYOUT}{layout}"} if url == old else fields

        records = {name: moved(fields) for name, fields in self.records.items()}
        return State(replace(self.head, sink=sink.identity), records, self.documents)


def read_state(store: StateStore, prefix: str, sink: str, version: str) -> State:
    """The state in a store; records first, so that the documents are not older than what the records require."""
    records = {name: fields for name, (fields, _) in store.read_all().items() if fields}
    made = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return State(Head(FORMAT, version, prefix, made, sink), records, dict(store.read_all_shared()))


def lines_of(state: State) -> Iterator[str]:
    """The lines of a state, each with its end."""
    lines: list[Struct] = [state.head]
    lines += (_Stream(name, fields) for name, fields in sorted(state.records.items()))
    lines += (_Document(name, *document) for name, document in sorted(state.documents.items()))
    lines.append(_End(len(state.records), len(state.documents)))
    return (msgspec.json.encode(line, order="deterministic").decode() + "\n" for line in lines)


def parse(lines: Iterable[str]) -> State:
    """The state in these lines.

    Raises:
        ConfigError: it was written by a later version, or a line is damaged or missing.
    """
    head: Head | None = None
    end: _End | None = None
    records: dict[str, dict[str, str]] = {}
    documents: dict[str, tuple[int, str]] = {}
    for number, text in enumerate(lines, 1):
        line = _parsed(number, text, is_first=head is None)
        if end is not None or isinstance(line, Head) != (head is None):
            raise _damaged(number, "it is not where it belongs")
        match line:
            case Head():
                head = line
            case _Stream(name, fields):
                records[name] = fields
            case _Document(name, version, document):
                documents[name] = version, document
            case _End():
                end = line
    if head is None:
        raise ConfigError(_READ, "it is empty", "It is the output of: headrace state export.")
    if end != _End(len(records), len(documents)):
        raise ConfigError(_READ, "its end is missing, or lines in between", "Export the state again.")
    return State(head, records, documents)


def _parsed(number: int, text: str, *, is_first: bool) -> Head | _Stream | _Document | _End:
    try:
        if is_first:
            _check_format(msgspec.json.decode(text, type=_AnyHead))
        line = msgspec.json.decode(text, type=Head | _Stream | _Document | _End)
        match line:
            case _Stream(_, fields):
                read_record(fields)
            case _Document(name, _, document) if document:
                next(read for start, read in _DOCUMENTS.items() if name.startswith(start))(document)
    except (msgspec.DecodeError, StateLostError, StopIteration) as error:
        raise _damaged(number, str(error) or "it is not known what it is") from error
    return line


def _check_format(head: _AnyHead) -> None:
    if head.kind == "head" and head.format > FORMAT:
        cause = f"it was written by a later version (format {head.format}; this one reads up to {FORMAT})"
        raise ConfigError(_READ, cause, "Upgrade this engine.")


def _damaged(number: int, cause: str) -> HeadraceError:
    return ConfigError(_READ, f"line {number} is damaged: {cause}", "Nothing was written. Export the state again.")


# --- putting it in place ---------------------------------------------------------------------------------


def refuse_if_held(
    store: StateStore, operation: str, ttl_s: float, streams: Collection[str] | None = None
) -> None:
    """Refuse to change records while an engine has the lease of one of these streams, or, for None, runs at all.

    An engine that died on another machine keeps its leases until they expire; that is waited for.

    Raises:
        ConfigError: an engine has one for longer than ``ttl_s``.
    """

    def held() -> str | None:
        holders = ((name, holder) for name, (_, holder) in store.read_all().items() if holder)
        meant = (each for each in holders if streams is None or each[0] in streams)
        alive = next((each for each in meant if not is_certainly_dead(each[1])), None)
        if alive is not None:
            return f"{name_of(alive[1])} holds the stream {alive[0]}"
        idle = store.announced() if streams is None else {}
        return next((f"{name_of(each)} is running" for each in idle if not is_certainly_dead(each)), None)

    _wait_until_free(held, operation, ttl_s)


def acquire(store: StateStore, operation: str, stream: str, ttl_s: float) -> Acquired:
    """The stream's lease, as soon as that of an engine that has died expires.

    Raises:
        ConfigError: an engine keeps it.
    """
    taken: list[Acquired] = []

    def held() -> str | None:
        found = take(store, stream, this_owner(), ttl_s)
        if isinstance(found, Acquired):
            taken.append(found)
            return None
        return f"{name_of(found.holder)} holds the stream {stream}"

    _wait_until_free(held, operation, ttl_s)
    return taken[0]


def _wait_until_free(held: Callable[[], str | None], operation: str, ttl_s: float) -> None:
    give_up_at = time.monotonic() + ttl_s + 2 * _LOOK_EVERY_S
    while (cause := held()) is not None:
        if time.monotonic() > give_up_at:
            raise ConfigError(operation, cause, "Stop every engine first.")
        time.sleep(_LOOK_EVERY_S)


def put_records(store: StateStore, operation: str, records: Records, ttl_s: float) -> None:
    """Give each stream exactly this record, under its lease.

    Raises:
        ConfigError: an engine has the lease of one.
    """
    for stream, fields in records.items():
        found = acquire(store, operation, stream, ttl_s)
        store.write(found.lease, fields, [name for name in found.fields if name not in fields])
        store.release(found.lease)


def put_state(store: StateStore, operation: str, state: State, ttl_s: float) -> None:
    """Make this the whole state: what is not part of it is removed.

    Raises:
        ConfigError: an engine has the lease of a stream.
    """
    present = store.read_all_shared()
    for name, document in state.documents.items():
        if present.get(name) != document:
            store.put_shared(name, *document)
    put_records(store, operation, state.records, ttl_s)
    store.forget([name for name in store.read_all() if name not in state.records])
    for name in present.keys() - state.documents.keys():
        store.put_shared(name, 0, "")
