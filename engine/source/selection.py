"""The stage by which the server selects a stream's collections, by name and by pattern.

A rename of another collection to a selected name belongs to the stream as well: only rename events have ``to``.
Events that concern a whole database have no collection; they go to the stream that carries the database.
"""

from __future__ import annotations

from typing import Any

from bson.regex import Regex

from engine.core.patterns import divide, name_of, regex
from engine.core.specs import StreamSpec

Query = dict[str, Any]


def selection_stage(spec: StreamSpec) -> Query:
    """A ``$match`` of the events of these collections."""
    chosen = _of_deployment if spec.level == "deployment" else _of_database
    wanted = [*chosen(spec, "ns"), *chosen(spec, "to")]
    if spec.level == "deployment":
        wanted.append({"ns.coll": {"$exists": False}} | _whole_databases(spec))
    elif spec.carries_database:
        wanted.append({"ns.coll": {"$exists": False}})
    return {"$match": {"$or": wanted}}


def _of_database(spec: StreamSpec, at: str) -> list[Query]:
    wanted: list[Query] = []
    if spec.collections:
        wanted.append({f"{at}.coll": {"$in": list(spec.collections)}})
    if spec.patterns:
        included = {"$in": [_value(each) for each in spec.patterns]}
        excluded = {"$nin": [_value(each) for each in spec.exclude]} if spec.exclude else {}
        wanted.append({f"{at}.coll": included | excluded})
    return wanted


def _of_deployment(spec: StreamSpec, at: str) -> list[Query]:
    included: Query = {"$or": [_pair(each, at) for each in spec.patterns]}
    return [included | ({"$nor": [_pair(each, at) for each in spec.exclude]} if spec.exclude else {})]


def _pair(pattern: str, at: str) -> Query:
    database, collection = divide(pattern)
    return {f"{at}.db": _value(database), f"{at}.coll": _value(collection)}


def _whole_databases(spec: StreamSpec) -> Query:
    """Databases of which something may be selected."""
    included = [_value(divide(each)[0]) for each in spec.patterns]
    excluded = [_value(divide(each)[0]) for each in spec.exclude if divide(each)[1] == "*"]
    return {"ns.db": {"$in": included} | ({"$nin": excluded} if excluded else {})}


def _value(pattern: str) -> str | Regex[str]:
    """What a name is to equal or to match; within the whole name, and where ``.`` matches line ends."""
    name = name_of(pattern)
    return Regex(rf"\A{regex(pattern)}\z", "s") if name is None else name
