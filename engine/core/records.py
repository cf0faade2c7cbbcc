"""What the state store holds of a stream: a small table of text fields.

A backend stores fields without knowing their meaning, which is defined only here.

| field | meaning |
|---|---|
| ``format`` | the format of the record, see ``core.formats`` |
| ``spec`` | the selection under which the stream runs, as JSON |
| ``sink`` | where its objects are and how they are laid out: must be unchanged for a replay |
| ``deployment`` | the replica set's name, so that a token is not used on another one |
| ``position`` | the committed position, as JSON |
| ``seq`` | the last committed segment |
| ``rows`` | events committed so far |
| ``line`` | how often the stream was rewound; segments since then have this number in their footers |
| ``closed`` | ``1`` if other streams have taken over what this one covered |
| ``handover`` | the last handover that this record took part in |
| ``updated`` | when the record was last written, in seconds since 1970 |
| ``schema:<database>.<collection>`` | the lowest version of that schema that the store must have |
| ``replaced:<database>.<collection>`` | the cluster time at which its content was replaced, until that is loaded |
| ``intent:<seq>`` | one for each segment that may have been published and is not committed |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from engine.core.formats import FORMAT, SpecV1, damaged, format_of_record
from engine.core.ledger import WriteCommit
from engine.core.messages import Intent, Replaced
from engine.core.position import Position
from engine.core.specs import Spec

_INTENT = "intent:"
_SCHEMA = "schema:"
_REPLACED = "replaced:"


class StreamRecord(Struct, frozen=True):
    """A stream's record, decoded."""

    format: int = FORMAT
    spec: Spec | None = None
    sink: str | None = None
    deployment: str | None = None
    position: Position | None = None
    seq: int = 0
    rows: int = 0
    line: int = 0
    closed: bool = False
    handover: str | None = None
    updated: float | None = None
    intents: tuple[Intent, ...] = ()
    schemas: dict[str, int] = {}
    replaced: dict[str, int] = {}


class Change(Struct, frozen=True):
    """One atomic write: fields to set, fields to remove."""

    put: dict[str, str]
    remove: tuple[str, ...] = ()


def read_record(fields: Mapping[str, str]) -> StreamRecord:
    """The record in a store's fields; an empty one for no fields.

    Raises:
        ConfigError: it was written by a later version.
        StateLostError: it is damaged: a field cannot be read, or is missing.
    """
    format_ = format_of_record(fields) if fields else FORMAT
    try:
        record = _read(fields, format_)
    except (msgspec.DecodeError, ValueError) as error:
        raise damaged("a stream's record", str(error)) from error
    has_begun = record.spec is not None or record.seq or record.intents
    if has_begun and record.position is None:
        raise damaged("a stream's record", "it has no position, and had one")
    if record.position is not None and record.spec is None:
        raise damaged("a stream's record", "it does not say what the stream selects")
    numbers = [intent.seq for intent in record.intents]
    if numbers != list(range(record.seq + 1, record.seq + 1 + len(numbers))):
        raise damaged("a stream's record", f"intents {numbers} do not follow segment {record.seq}")
    return record


def _read(fields: Mapping[str, str], format_: int) -> StreamRecord:
    intents = (_read_intent(text) for name, text in fields.items() if name.startswith(_INTENT))
    return StreamRecord(
        format=format_,
        spec=_read_spec(fields["spec"]) if "spec" in fields else None,
        sink=fields.get("sink"),
        deployment=fields.get("deployment") or None,
        position=msgspec.json.decode(fields["position"], type=Position) if "position" in fields else None,
        seq=int(fields.get("seq", "0")),
        rows=int(fields.get("rows", "0")),
        line=int(fields.get("line", "0")),
        closed=fields.get("closed") == "1",
        handover=fields.get("handover"),
        updated=float(fields["updated"]) if "updated" in fields else None,
        intents=tuple(sorted(intents, key=lambda intent: intent.seq)),
        schemas={name: int(version) for name, version in fields.items() if name.startswith(_SCHEMA)},
        replaced={
            name.removeprefix(_REPLACED): int(time) for name, time in fields.items() if name.startswith(_REPLACED)
        },
    )


class _Kind(Struct):
    kind: str | None = None


def _read_spec(text: str) -> Spec:
    """A spec of any format: an older version that writes one leaves the record's ``format`` as it is."""
    if msgspec.json.decode(text, type=_Kind).kind is None:
        return msgspec.json.decode(text, type=SpecV1).upgraded()
    return msgspec.json.decode(text, type=Spec)  # type: ignore[no-any-return]


def _read_intent(text: str) -> Intent:
    intent = msgspec.json.decode(text, type=Intent)
    return replace(intent, first_token=intent.first_token or None)


def upgraded(record: StreamRecord) -> Change:
    """Rewrite a record of an older format in the current one."""
    put = {"format": str(FORMAT), **{intent_field(each.seq): _json(each) for each in record.intents}}
    return Change(put | {"spec": _json(record.spec)} if record.spec is not None else put)


def begin(spec: Spec, sink: str, deployment: str | None, position: Position | None) -> Change:
    """A stream starts, or continues under another selection or sink."""
    put = {"format": str(FORMAT), "spec": _json(spec), "sink": sink, "deployment": deployment or ""}
    if position is not None:
        put["position"] = _json(position)
    return Change(put, ("closed",))


def close(handover: str) -> Change:
    """Other streams take over what this one covered; its numbers are kept, so that no key is used twice."""
    return Change({"closed": "1", "handover": handover})


def intended(intent: Intent, schemas: Mapping[str, int]) -> Change:
    """A segment is about to be published, and these schemas are at least at these versions."""
    versions = {name: str(version) for name, version in schemas.items()}
    return Change({intent_field(intent.seq): _json(intent), **versions})


def committed(commit: WriteCommit, rows_total: int) -> Change:
    """Segments are published, or an idle stream has advanced."""
    put = {"position": _json(commit.position), "seq": str(commit.seq), "rows": str(rows_total)}
    put |= replaced_fields(commit.replaced)
    return Change(put, tuple(map(intent_field, commit.seqs)))


def replaced_fields(replaced: Iterable[Replaced]) -> dict[str, str]:
    """The fields that say which collections were replaced."""
    return {f"{_REPLACED}{each.namespace}": str(each.time) for each in replaced}


def rewound(record: StreamRecord, position: Position) -> Change:
    """The stream continues from an earlier position; what is read again gets new numbers."""
    return Change({"position": _json(position), "line": str(record.line + 1)})


def loaded(namespaces: Iterable[str]) -> Change:
    """These collections were replaced, and their new content has been loaded."""
    return Change({}, tuple(f"{_REPLACED}{namespace}" for namespace in namespaces))


def schema_document(database: str, collection: str) -> str:
    """The name of the shared document that holds a collection's schema, and of the field with its version."""
    return f"{_SCHEMA}{database}.{collection}"


def schema_version(fields: Mapping[str, str], name: str) -> int:
    """The version in the field ``name`` of a record, without reading the rest of it; 0 if there is none.

    Raises:
        StateLostError: the field is damaged.
    """
    try:
        return int(fields.get(name, "0"))
    except ValueError as error:
        raise damaged("a stream's record", str(error)) from error


def intent_field(seq: int) -> str:
    """The name of the field that holds the intent of a segment."""
    return f"{_INTENT}{seq:012d}"


def _json(value: Struct) -> str:
    return msgspec.json.encode(value).decode()
