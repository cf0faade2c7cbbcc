"""How a collection is divided into splits: what the server says of it, and a sample of its keys.

Runs in a process of its own, once, before a backfill: the supervisor has no driver.
"""

from __future__ import annotations

import struct
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

import bson
from bson import ObjectId, json_util
from bson.errors import InvalidId
from pymongo.errors import OperationFailure

from engine.config import Config
from engine.core.backfill import Plan, Selection, thinned
from engine.errors import ConfigError
from engine.rawbson.offsets import split_documents
from engine.source.failures import is_bad_query, summary, translated
from engine.source.presence import absent
from engine.source.scan import key_of
from engine.source.session import Client, connect, server_time

# Keys that are sampled for each split: the more, the more equal the splits.
KEYS_PER_SPLIT = 20
MOST_SPLITS = 10_000
# So many splits for each reader, where the collection is large enough, so that none is left alone at the end.
SPLITS_PER_READER = 8
LEAST_SPLIT = 16 * 2**20
_COMMAND_MS = 600_000

Namespace = tuple[str, str]


def make_plans(
    config: Config, wanted: Sequence[Namespace], selection: Selection, present_only: bool
) -> list[Plan]:
    """Plans for these collections.

    Args:
        present_only: leave out what is not there (yet) and views, instead of complaining.

    Raises:
        ConfigError: a collection is not there or cannot be read, or the selection does not fit it.
        TransientError: no server answered.
    """
    with connect(config.source.uri, socket_timeout_ms=2 * _COMMAND_MS) as client:
        query = parse_filter(selection.filter)
        planners = [_Planner(client, config, namespace, selection, query) for namespace in wanted]
        return [planner.plan() for planner in planners if not present_only or planner.is_present()]


def server_clock(config: Config) -> str:
    """The server's cluster time, as ``starting_position`` takes it."""
    with connect(config.source.uri) as client:
        return str(server_time(client))


def absentees(config: Config) -> list[str]:
    """A sentence for each of what the configuration names and is not there."""
    with connect(config.source.uri) as client:
        return absent(client, config.source.database, config.source.collections)


def list_collections(config: Config) -> list[Namespace]:
    """What is in the watched database, or in all of them: no views, nothing of the system's."""
    source = config.source
    with connect(config.source.uri) as client, translated("list the collections"):
        databases = [source.database]
        if source.watch == "deployment":
            databases = [each for each in client.list_database_names() if each not in ("admin", "local", "config")]
        return [
            (database, entry["name"])
            for database in databases
            for entry in sorted(_entries(client, database), key=lambda entry: str(entry["name"]))
            if entry["type"] != "view" and not entry["name"].startswith("system.")
        ]


def parse_filter(text: str | None) -> dict[str, Any]:
    """A query as Extended JSON.

    Raises:
        ConfigError: it is none.
    """
    if text is None:
        return {}
    remedy = """Write a query as Extended JSON, for example --filter '{"status": "done"}'."""
    try:
        query = json_util.loads(text)
    except (ValueError, TypeError, InvalidId) as error:
        raise ConfigError("read --filter", f"{text!r} is no JSON: {error}", remedy) from error
    if not isinstance(query, dict):
        raise ConfigError("read --filter", f"{text!r} is no JSON object", remedy)
    return query


def _entries(client: Client, database: str) -> list[dict[str, Any]]:
    """The collections that this user may know of: name and type."""
    options: dict[str, Any] = {"authorizedCollections": True, "nameOnly": True}
    return [dict(entry) for entry in client[database].list_collections(**options)]


class _Planner:
    """Plans one collection."""

    def __init__(
        self, client: Client, config: Config, namespace: Namespace, selection: Selection, query: dict[str, Any]
    ) -> None:
        self._client = client
        self._config = config
        self._database, self._name = namespace
        self._collection = client[self._database][self._name]
        self._selection = selection
        self._query = query
        self._since: int | None = None
        self._operation = f"plan the backfill of {self._database}.{self._name}"

    def is_present(self) -> bool:
        """Whether there is such a collection, which is no view."""
        with translated(self._operation):
            entries = _entries(self._client, self._database)
        return any(entry["name"] == self._name and entry["type"] != "view" for entry in entries)

    def plan(self) -> Plan:
        """See ``make_plans``."""
        with translated(self._operation):
            entry = self._entry()
        if entry["type"] == "view":
            cause = "it is a view, which has no index to read by"
            raise ConfigError(self._operation, cause, "Name the collection that the view is made from.")
        with translated(self._operation):
            self._since = server_time(self._client)
            self._try_filter()
            if entry["type"] == "timeseries":
                return self._plan_time_series(entry)
            return self._plan_by_id()

    def _entry(self) -> dict[str, Any]:
        """What the server says of the collection.

        Raises:
            ConfigError: it is not there.
            OperationFailure: it may not be read.
        """
        entries = _entries(self._client, self._database)
        for entry in entries:
            if entry["name"] == self._name:
                if entry["type"] == "timeseries":
                    return dict(self._client[self._database].list_collections(filter={"name": self._name}).next())
                return entry
        self._collection.find_one({}, {"_id": 1})  # without the right to read it, it is not listed
        near = get_close_matches(self._name, [str(entry["name"]) for entry in entries], n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else "Check source.database and the collection's name."
        raise ConfigError(self._operation, "there is no such collection", remedy)

    def _try_filter(self) -> None:
        if not self._query:
            return
        try:
            self._client[self._database].command("explain", {"find": self._name, "filter": self._query})
        except OperationFailure as error:
            if not is_bad_query(error):
                raise
            raise ConfigError(self._operation, summary(error), "Check --filter.") from error

    def _plan_by_id(self) -> Plan:
        lower, upper = self._id_bounds()
        documents, size = self._size()
        between = {}
        if lower or upper:
            between = {"_id": {name: value for name, value in (("$gte", lower), ("$lt", upper)) if value}}
            mean = size / documents if documents else 0.0
            documents = self._collection.count_documents(between, hint={"_id": 1}, maxTimeMS=_COMMAND_MS)
            size = int(documents * mean)
        parts = self._parts(size)
        # In front, $sample takes documents by a random cursor. Behind a $match it is given their keys alone.
        sample: list[dict[str, Any]] = [{"$sample": {"size": parts * KEYS_PER_SPLIT}}]
        stages = [{"$match": between}, {"$project": {"_id": 1}}, *sample] if between else sample
        bounds = self._bounds([*stages, {"$project": {"_id": 1}}, {"$sort": {"_id": 1}}], "_id", parts)
        ends = [_key("_id", value) if value else None for value in (lower, upper)]
        return self._made(bounds, documents, size, ends)

    def _plan_time_series(self, entry: dict[str, Any]) -> Plan:
        """Splits by time; each is one segment, so they are small."""
        order = entry["options"]["timeseries"]["timeField"]
        lower, upper = _time(self._selection.since), _time(self._selection.until)
        documents, size = self._size()
        parts = max(self._parts(size), min(MOST_SPLITS, -(-size // LEAST_SPLIT)))
        between = {name: value for name, value in (("$gte", lower), ("$lt", upper)) if value}
        stages: list[dict[str, Any]] = [{"$match": {order: between}}] if between else []
        stages += [{"$sample": {"size": parts * KEYS_PER_SPLIT}}, {"$project": {"_id": 0, order: 1}}]
        bounds = self._bounds([*stages, {"$sort": {order: 1}}], order, parts)
        ends = [_key(order, value) if value else None for value in (lower, upper)]
        return self._made(bounds, documents, size, ends, order=order, whole=True)

    def _made(
        self,
        bounds: tuple[str, ...],
        documents: int,
        size: int,
        ends: Sequence[str | None],
        *,
        order: str = "_id",
        whole: bool = False,
    ) -> Plan:
        return Plan(
            id=uuid.uuid4().hex[:8],
            database=self._database,
            collection=self._name,
            selection=self._selection,
            lower=ends[0],
            upper=ends[1],
            bounds=tuple(bound for bound in bounds if bound not in ends),
            documents=documents,
            size=size,
            made=time.time(),
            order=order,
            whole=whole,
            since=self._since if self._may_be_marked(order) else None,
            begun=self._since,
        )

    def _may_be_marked(self, order: str) -> bool:
        """Whether it is a load of all; and files of bare documents have no place for a mark."""
        return self._selection == Selection() and order == "_id" and self._config.sink.format != "bson"

    def _id_bounds(self) -> tuple[ObjectId | None, ObjectId | None]:
        """``--since`` and ``--until`` as ObjectIds, which begin with the second that they were made in.

        Raises:
            ConfigError: the collection has other keys as well, which tell no time.
        """
        times = _time(self._selection.since), _time(self._selection.until)
        if not any(times):
            return None, None
        for direction in (1, -1):
            end = self._collection.find_one({}, {"_id": 1}, sort=[("_id", direction)])
            if end is not None and not isinstance(end["_id"], ObjectId):
                cause = (
                    f"--since and --until go by ObjectIds, and there is an _id of type {type(end['_id']).__name__}"
                )
                raise ConfigError(self._operation, cause, "Use --filter with a field that holds a time.")
        try:
            since, until = (ObjectId.from_datetime(time) if time else None for time in times)
        except struct.error as error:
            raise ConfigError(self._operation, "an ObjectId's time is of the years 1970 to 2105") from error
        return since, until

    def _size(self) -> tuple[int, int]:
        """Documents and bytes of BSON, as the server's counters have them."""
        found = list(self._collection.aggregate([{"$collStats": {"storageStats": {}}}]))
        stats = [each["storageStats"] for each in found]  # one for each shard
        counts = [
            each.get("timeseries", {}).get("numMeasurementsCommitted", each.get("count", 0)) for each in stats
        ]
        return sum(map(int, counts)), sum(int(each.get("size", 0)) for each in stats)

    def _parts(self, size: int) -> int:
        backfill = self._config.backfill
        several = max(LEAST_SPLIT, size // (backfill.readers * SPLITS_PER_READER))
        return max(1, min(MOST_SPLITS, -(-size // min(backfill.split_size, several))))

    def _bounds(self, stages: list[dict[str, Any]], order: str, parts: int) -> tuple[str, ...]:
        """Bounds from a sample that the server has put in order: only it knows the order of any two keys."""
        if parts == 1:
            return ()
        keys: list[str] = []
        options = {"allowDiskUse": True, "maxTimeMS": _COMMAND_MS}
        with self._collection.aggregate_raw_batches(stages, **options) as batches:  # type: ignore[arg-type]
            for batch in batches:
                keys += [key_of(document, 0, order) for document in split_documents(bytes(batch))]  # type: ignore[arg-type]
        return thinned(list(dict.fromkeys(keys)), parts)


def _time(text: str | None) -> datetime | None:
    """An RFC 3339 time."""
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def _key(order: str, value: Any) -> str:
    return bson.encode({order: value}).hex()
