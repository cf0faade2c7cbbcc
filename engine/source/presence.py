"""What a configuration names and the server does not have (yet): legal, and as often a misspelling."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pymongo.errors import PyMongoError

from engine.source.failures import said
from engine.source.session import Client


def absent(client: Client, database: str, collections: Sequence[str]) -> list[str]:
    """A sentence for the database, or for each of the collections, that is not there, as far as it may be known.

    Args:
        collections: empty for those of the whole database.
    """
    if not database:
        return []
    try:
        databases = client.list_database_names()
        if database not in databases:
            return [_sentence("database", database, databases)]
        options: dict[str, Any] = {"authorizedCollections": True, "nameOnly": True}
        known = [str(each["name"]) for each in client[database].list_collections(**options)]
    except PyMongoError as error:
        return [f"whether {', '.join(collections) or database} exists cannot be asked: {said(error)}"]
    return [_sentence("collection", name, known, f" in {database}") for name in collections if name not in known]


def _sentence(kind: str, name: str, known: Sequence[str], where: str = "") -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "it is captured once it comes"
    return f"there is no {kind} {name!r}{where}: {hint}"
