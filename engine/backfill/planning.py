"""Divides collections into splits, by the server's statistics and a sample of their keys.

Runs in the planner's process (``questions``), because the supervisor does not load the driver.
"""

from __future__ import annotations

import json
import struct
import time
import uuid
from collections import Counter
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
from engine.source.presence import IS_A_VIEW
from engine.source.scan import key_of
from engine.source.session import Client, server_time

# Keys to sample for each split: with more of them the splits are more equal.
KEYS_PER_SPLIT = 20
MAX_SPLITS = 10_000
# Splits per reader, if the collection is large enough, so that no reader is left working alone at the end.
SPLITS_PER_READER = 8
MIN_SPLIT_SIZE = 16 * 2**20
COMMAND_MS = 600_000

Namespace = tuple[str, str]


def parse_filter(text: str | None) -> dict[str, Any]:
    """Parse a query in Extended JSON.

    Raises:
        ConfigError: it is not one.
    """
    if text is None:
        return {}
    remedy = """Write a query as Extended JSON, for example --filter '{"status": "done"}'."""
    try:
        query = json.loads(text, object_pairs_hook=_value_of)
    except (ValueError, TypeError, InvalidId) as error:
        raise ConfigError("read --filter", f"{text!r} is not valid JSON: {error}", remedy) from error
    if not isinstance(query, dict):
        raise ConfigError("read --filter", f"{text!r} is not a JSON object", remedy)
    return query


def _value_of(members: Sequence[tuple[str, Any]]) -> Any:
    """What an object of Extended JSON stands for; of equal names, the driver silently keeps the last one."""
    if twice := [name for name, times in Counter(name for name, _ in members).items() if times > 1]:
        raise ValueError(f"{twice[0]!r} is given twice")
    return json_util.object_hook(dict(members))


def collection_entries(client: Client, database: str, name: str | None = None) -> list[dict[str, Any]]:
    """The collections that this user may see, or the one of this name: name and type."""
    options: dict[str, Any] = {"authorizedCollections": True, "nameOnly": True}
    if name is not None:
        options["filter"] = {"name": name}
    return [dict(entry) for entry in client[database].list_collections(**options)]


class CollectionPlanner:
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
        """Whether there is such a collection, and it is not a view."""
        with translated(self._operation):
            entries = collection_entries(self._client, self._database, self._name)
        return any(entry["type"] != "view" for entry in entries)

    def plan(self) -> Plan:
        """See ``make_plans``."""
        with translated(self._operation):
            entry = self._entry()
        if entry["type"] == "view":
            raise ConfigError(self._operation, f"it {IS_A_VIEW}", "Name the collection that the view is based on.")
        with translated(self._operation):
            self._since = server_time(self._client)
            self._try_filter()
            if entry["type"] == "timeseries":
                return self._plan_time_series(entry)
            return self._plan_by_id()

    def _entry(self) -> dict[str, Any]:
        """The server's entry for the collection.

        Raises:
            ConfigError: it does not exist.
            OperationFailure: the user may not read it.
        """
        entries = collection_entries(self._client, self._database)
        for entry in entries:
            if entry["name"] == self._name:
                if entry["type"] == "timeseries":
                    return dict(self._client[self._database].list_collections(filter={"name": self._name}).next())
                return entry
        self._collection.find_one({}, {"_id": 1})  # raises if it is not listed for want of the right to read it
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
            documents = self._collection.count_documents(between, hint={"_id": 1}, maxTimeMS=COMMAND_MS)
            size = int(documents * mean)
        parts = self._parts(size)
        # As the first stage, $sample uses a random cursor; after a $match it is given only the keys.
        sample: list[dict[str, Any]] = [{"$sample": {"size": parts * KEYS_PER_SPLIT}}]
        stages = [{"$match": between}, {"$project": {"_id": 1}}, *sample] if between else sample
        bounds = self._bounds([*stages, {"$project": {"_id": 1}}, {"$sort": {"_id": 1}}], "_id", parts)
        ends = [_key("_id", value) if value else None for value in (lower, upper)]
        return self._made(bounds, documents, size, ends)

    def _plan_time_series(self, entry: dict[str, Any]) -> Plan:
        """Plan splits by time, which are small because each is one segment."""
        order = entry["options"]["timeseries"]["timeField"]
        lower, upper = _time(self._selection.since), _time(self._selection.until)
        documents, size = self._size()
        parts = max(self._parts(size), min(MAX_SPLITS, -(-size // MIN_SPLIT_SIZE)))
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
        """Whether the whole collection is loaded, in a format with a place for a mark (BSON has none)."""
        return self._selection == Selection() and order == "_id" and self._config.sink.format != "bson"

    def _id_bounds(self) -> tuple[ObjectId | None, ObjectId | None]:
        """``--since`` and ``--until`` as ObjectIds, which start with the second in which they were created.

        Raises:
            ConfigError: the collection also has other keys, which contain no time.
        """
        times = _time(self._selection.since), _time(self._selection.until)
        if not any(times):
            return None, None
        for direction in (1, -1):
            end = self._collection.find_one({}, {"_id": 1}, sort=[("_id", direction)])
            if end is not None and not isinstance(end["_id"], ObjectId):
                cause = (
                    f"--since and --until need ObjectIds, but there is an _id of type {type(end['_id']).__name__}"
                )
                raise ConfigError(self._operation, cause, "Use --filter on a field that holds a time.")
        try:
            since, until = (ObjectId.from_datetime(time) if time else None for time in times)
        except struct.error as error:
            cause = "an ObjectId's time must be in the years 1970 to 2105"
            raise ConfigError(self._operation, cause) from error
        return since, until

    def _size(self) -> tuple[int, int]:
        """Documents and bytes of BSON, from the server's counters."""
        found = list(self._collection.aggregate([{"$collStats": {"storageStats": {}}}]))
        stats = [each["storageStats"] for each in found]  # one for each shard
        counts = [
            each.get("timeseries", {}).get("numMeasurementsCommitted", each.get("count", 0)) for each in stats
        ]
        return sum(map(int, counts)), sum(int(each.get("size", 0)) for each in stats)

    def _parts(self, size: int) -> int:
        backfill = self._config.backfill
        several = max(MIN_SPLIT_SIZE, size // (backfill.readers * SPLITS_PER_READER))
        return max(1, min(MAX_SPLITS, -(-size // min(backfill.split_size, several))))

    def _bounds(self, stages: list[dict[str, Any]], order: str, parts: int) -> tuple[str, ...]:
        """Bounds from a sample that the server has sorted, because only it knows the order of any two keys."""
        if parts == 1:
            return ()
        keys: list[str] = []
        options = {"allowDiskUse": True, "maxTimeMS": COMMAND_MS}
        with self._collection.aggregate_raw_batches(stages, **options) as batches:  # type: ignore[arg-type]
            for batch in batches:
                keys += [key_of(document, 0, order) for document in split_documents(bytes(batch))]  # type: ignore[arg-type]
        return thinned(list(dict.fromkeys(keys)), parts)


def _time(text: str | None) -> datetime | None:
    """An RFC 3339 time."""
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def _key(order: str, value: Any) -> str:
    return bson.encode({order: value}).hex()
