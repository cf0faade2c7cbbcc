"""What the configuration names but the server does not have (yet): legal, but often a misspelling."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pymongo.errors import PyMongoError

from engine.source.failures import summary
from engine.source.session import Client


def absent(client: Client, database: str, collections: Sequence[str]) -> list[str]:
    """A sentence for the database or each collection that does not exist, as far as the user's rights can tell.

    Args:
        collections: empty for the whole database.
    """
    if not database:
        return []
    try:
        databases = client.list_database_names()
        options: dict[str, Any] = {"authorizedCollections": True, "nameOnly": True}
        known = [str(each["name"]) for each in client[database].list_collections(**options)]
        if database not in databases or not set(collections) <= set(known):
            # What the user may not see is left out of both lists; this refuses where there may be more.
            client[database].command("listCollections", nameOnly=True)
        if database not in databases:
            return [_sentence("database", database, databases)]
    except PyMongoError as error:
        return [f"cannot determine whether {', '.join(collections) or database} exists: {summary(error)}"]
    return [_sentence("collection", name, known, f" in {database}") for name in collections if name not in known]


def views(client: Client, database: str, collections: Sequence[str]) -> list[str]:
    """A sentence for each of these collections that is a view, as far as the user's rights can tell."""
    if not database or not collections:
        return []
    options: dict[str, Any] = {"authorizedCollections": True, "nameOnly": True}
    try:
        found = {
            str(each["name"]) for each in client[database].list_collections(**options) if each["type"] == "view"
        }
    except PyMongoError:
        return []  # said by ``absent``
    return [
        f"{name!r} in {database} is a view, which has no index to read by" for name in collections if name in found
    ]


def _sentence(kind: str, name: str, known: Sequence[str], where: str = "") -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "it is captured once it exists"
    return f"there is no {kind} {name!r}{where}: {hint}"
