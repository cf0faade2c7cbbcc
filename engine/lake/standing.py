"""How far the streams in a lake have got, by the footers of their newest objects.

The whole lake is listed; of each stream only the footers that decide are read (``core.rebuild``), and one for each
collection, for its schema.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow.parquet as pq
from msgspec import Struct

from engine.config.tree import SinkConfig
from engine.core import rebuild
from engine.core.ledger import MAX_SEGMENTS_PER_STREAM
from engine.core.messages import ObjectName
from engine.core.naming import is_split, object_key, parts_of, plan_of_split
from engine.core.position import position_at
from engine.core.records import schema_document
from engine.core.schema import CollectionSchema
from engine.core.schemas import unpacked_schema
from engine.errors import ConfigError
from engine.lake.objects import Footer, LakeObject, Objects, UnreadableError
from engine.lake.schemas import schema_of

_OPERATION = "rebuild the state"
_NO_FOOTERS = "Only Parquet files have footers. Put a state in place that was exported: headrace state import."
# As many objects without rows as one collection may have in succession, and one more.
_KEPT = 1 + MAX_SEGMENTS_PER_STREAM


class Standing(Struct):
    """Where a stream stands, and under which schema versions its objects were written, by the schemas' names."""

    stream: str
    rebuilt: rebuild.Rebuilt
    newest: int
    schemas: dict[str, int]


class Backfill(Struct):
    """The objects of a plan in the lake.

    Attributes:
        splits: how many of its splits have any.
        loaded: the cluster time in its mark; None if that is not there.
    """

    database: str
    collection: str
    plan: str
    splits: int = 0
    loaded: int | None = None


class LakeStanding(Struct):
    """What the lake says.

    Attributes:
        schemas: the newest schema of each collection, by the name of its document in the state store.
    """

    streams: dict[str, Standing]
    backfills: dict[str, Backfill]
    schemas: dict[str, CollectionSchema]


class _Seen:
    """The objects of a stream that matter: those of its decisive segments, and the newest of each collection.

    A replay may have written an object without rows, and so without a schema; then an earlier one tells it.
    """

    def __init__(self) -> None:
        self.by_seq: dict[int, list[LakeObject]] = {}
        self._by_place: dict[str, list[LakeObject]] = {}

    def add(self, each: LakeObject) -> None:
        """Note an object; the order does not matter."""
        if each.has_footer:
            where = each.parts.directory or each.key.rpartition("-")[0]
            place = [*self._by_place.get(where, ()), each]
            self._by_place[where] = place if len(place) < 2 * _KEPT else _newest(place)
        if each.parts.seq in self.by_seq or each.parts.seq in rebuild.decisive((*self.by_seq, each.parts.seq)):
            self.by_seq.setdefault(each.parts.seq, []).append(each)
            for number in self.by_seq.keys() - set(rebuild.decisive(self.by_seq)):
                del self.by_seq[number]

    def decisive(self) -> list[LakeObject]:
        """The objects of the decisive segments."""
        return [each for objects in self.by_seq.values() for each in objects]

    def by_place(self) -> list[list[LakeObject]]:
        """The newest objects of each collection, newest first."""
        return [_newest(place) for place in self._by_place.values()]


def _newest(objects: Iterable[LakeObject]) -> list[LakeObject]:
    return sorted(objects, key=lambda each: -each.parts.seq)[:_KEPT]


def look(config: SinkConfig) -> LakeStanding:
    """What the lake says of its streams.

    Raises:
        ConfigError: it has no footers, it cannot be read, or what must be replayed has another layout.
    """
    if config.format != "parquet":
        raise ConfigError(_OPERATION, f'sink.format is "{config.format}"', _NO_FOOTERS)
    return _Look(config).standing()


class _Look:
    """One look at a lake.

    State: its objects that matter, by stream, and the footers read so far, by key.
    """

    def __init__(self, config: SinkConfig) -> None:
        self._config = config
        self._objects = Objects(config)
        self._footers: dict[str, Footer] = {}

    def standing(self) -> LakeStanding:
        seen: dict[str, _Seen] = {}
        for each in self._objects.all(dead_letters=True):
            seen.setdefault(each.parts.stream, _Seen()).add(each)
        for what in seen.values():
            self._read([place[0] for place in what.by_place()])
        standing = LakeStanding({}, {}, {})
        for stream, what in seen.items():
            versions = self._note_schemas(standing, what)
            if is_split(stream):
                self._note_split(standing, stream, what)
                continue
            self._read(what.decisive())
            rebuilt = rebuild.rebuilt(self._landed(each) for each in what.decisive())
            self._refuse_other_layout(stream, rebuilt)
            standing.streams[stream] = Standing(stream, rebuilt, max(what.by_seq), versions)
        return standing

    def _read(self, objects: Iterable[LakeObject]) -> None:
        wanted = [each for each in objects if each.key not in self._footers and not each.parts.dead_letter]
        for each in wanted:
            if not each.has_footer:
                raise ConfigError(_OPERATION, f"{each.key} has no footer", _NO_FOOTERS)
        for each, footer in self._objects.footers(wanted):
            if isinstance(footer, UnreadableError):
                remedy = "Restore that object, or delete it: what can still be read again then is."
                raise ConfigError(_OPERATION, f"the footer of {each.key} cannot be read: {footer}", remedy)
            self._footers[each.key] = footer

    def _landed(self, each: LakeObject) -> rebuild.Landed:
        if each.parts.dead_letter:
            return rebuild.Landed(each.parts.seq, ObjectName(each.key, dead_letter=True))
        footer = self._footers[each.key]
        said = rebuild.Footer(
            footer.first_token or None,
            position_at(footer.last_token),
            footer.after,
            footer.objects,
            footer.line,
            footer.replaced,
        )
        return rebuild.Landed(each.parts.seq, ObjectName(each.key, *self._namespace(each)), said)

    def _namespace(self, each: LakeObject) -> tuple[str, str]:
        """The collection whose rows an object has; footers of version 0.2 do not say it, but the rows do."""
        footer = self._footers[each.key]
        if footer.database is not None and footer.collection is not None:
            return footer.database, footer.collection
        rows = self._first_rows(each, ["_cdc_database", "_cdc_collection"])
        return (rows[0]["_cdc_database"] or "", rows[0]["_cdc_collection"] or "") if rows else ("", "")

    def _first_rows(self, each: LakeObject, columns: list[str]) -> list[dict[str, Any]]:
        with pq.ParquetFile(self._objects.open(each)) as file:
            return file.read_row_group(0, columns).slice(0, 1).to_pylist() if file.num_row_groups else []

    def _note_schemas(self, standing: LakeStanding, what: _Seen) -> dict[str, int]:
        versions: dict[str, int] = {}
        for place in what.by_place():
            for each in place:
                self._read([each])
                if version := self._footers[each.key].schema_version:
                    name = schema_document(*self._namespace(each))
                    versions[name] = max(version, versions.get(name, 0))
                    known = standing.schemas.get(name)
                    if known is None or known.version < version:
                        standing.schemas[name] = self._schema(each, version)
                    break
        return versions

    def _schema(self, each: LakeObject, version: int) -> CollectionSchema:
        packed = self._footers[each.key].schema
        if packed is not None:
            return unpacked_schema(packed)
        return schema_of(self._objects.schema(each), version)

    def _note_split(self, standing: LakeStanding, stream: str, what: _Seen) -> None:
        for place in what.by_place():
            each = place[0]
            database, collection = self._namespace(each)
            plan = plan_of_split(stream)
            backfill = standing.backfills.setdefault(plan, Backfill(database, collection, plan))
            rows = self._first_rows(each, ["_cdc_op", "_cdc_timestamp"]) if self._is_mark(each) else []
            if rows and rows[0]["_cdc_op"] == "loaded":
                backfill.loaded = rows[0]["_cdc_timestamp"]
            else:
                backfill.splits += 1

    def _is_mark(self, each: LakeObject) -> bool:
        return self._footers[each.key].rows == 1

    def _refuse_other_layout(self, stream: str, rebuilt: rebuild.Rebuilt) -> None:
        """Refuse to replay segments that the present configuration would write to other keys."""
        for intent in rebuilt.intents:
            for name in intent.objects:
                parts = parts_of(name.key)
                assert parts is not None
                key = object_key(
                    stream,
                    intent.seq,
                    name.database,
                    name.collection,
                    parts.partition,
                    shards=self._config.prefix_shards,
                    suffix=parts.suffix,
                    dead_letter=name.dead_letter,
                    directories=parts.directories,
                )
                if not name.dead_letter and (key != name.key or not _is_by(self._config, parts.partition)):
                    cause = f"{name.key} must be written again, and has another layout than [sink] says"
                    remedy = "Configure partition_by and prefix_shards as they were, run once, then change them."
                    raise ConfigError(_OPERATION, cause, remedy)


def _is_by(config: SinkConfig, partition: str) -> bool:
    if partition in ("none", "collection"):
        return config.partition_by == partition
    return config.partition_by == ("hour" if "hour=" in partition else "day")
