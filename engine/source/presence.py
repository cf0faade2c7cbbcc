"""What the configuration names but the server does not have (yet): legal, but often a misspelling."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from pymongo.errors import PyMongoError

from engine.config.streams import named_by_database
from engine.config.tree import SourceConfig
from engine.source.failures import summary
from engine.source.session import Client

IS_A_VIEW = "is a view, which has no index to read by"


def absent(client: Client, source: SourceConfig, *, to_load: bool = False) -> list[str]:
    """A sentence for each named database or collection that does not exist, as far as the user's rights can tell.

    Args:
        to_load: also a sentence for each that is a view, which cannot be loaded.
    """
    list_databases = cache(client.list_database_names)
    return [
        sentence
        for database, names in named_by_database(source).items()
        for sentence in _absent(client, list_databases, database, names, to_load)
    ]


def _absent(
    client: Client,
    list_databases: Callable[[], list[str]],
    database: str,
    collections: Sequence[str],
    to_load: bool,
) -> list[str]:
    try:
        databases = list_databases()
        options: dict[str, Any] = {"authorizedCollections": True, "nameOnly": True}
        known = {str(each["name"]): each["type"] for each in client[database].list_collections(**options)}
        if database not in databases or not known.keys() >= set(collections):
            # What the user may not see is left out of both lists; this refuses where there may be more.
            client[database].command("listCollections", nameOnly=True)
        if database not in databases:
            return [_sentence("database", database, databases)]
    except PyMongoError as error:
        return [f"cannot determine whether {', '.join(collections) or database} exists: {summary(error)}"]
    missing = [name for name in collections if name not in known]
    views = [name for name in collections if to_load and known.get(name) == "view"]
    return [_sentence("collection", name, list(known), f" in {database}") for name in missing] + [
        f"{name!r} in {database} {IS_A_VIEW}" for name in views
    ]


def _sentence(kind: str, name: str, known: Sequence[str], where: str = "") -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "it is captured once it exists"
    return f"there is no {kind} {name!r}{where}: {hint}"
