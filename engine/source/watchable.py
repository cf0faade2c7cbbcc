"""Collections without change streams: views and time-series collections.

A stream of a single such collection cannot be opened, and the server says why. A stream shared by several
collections can: it watches the database and simply never has an event of them. So their types are looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.core.specs import StreamSpec
from engine.errors import ConfigError
from engine.source.failures import translated
from engine.source.session import Client

NOT_SUPPORTED_ON_VIEW = 166
_KINDS = {"view": "a view", "timeseries": "a time-series collection"}
REMEDY = (
    "Remove it from source.collections: it has no change streams. Instead of a view, name the collection it is "
    "based on; a time-series collection can be loaded by the command backfill."
)


def not_watchable(client: Client, specs: Sequence[StreamSpec]) -> list[ConfigError]:
    """An error for each collection of these shared streams that will have no events.

    Raises:
        HeadraceError: the collections cannot be listed.
    """
    found = []
    for spec in specs:
        if spec.level != "database" or not spec.collections:
            continue
        options: dict[str, Any] = {"authorizedCollections": True, "nameOnly": True}
        with translated(f"list the collections of {spec.database}"):
            entries = list(client[spec.database].list_collections(**options))
        for entry in entries:
            if entry["name"] in spec.collections and entry["type"] in _KINDS:
                operation = f"watch {spec.database}.{entry['name']}"
                found.append(ConfigError(operation, f"it is {_KINDS[entry['type']]}", REMEDY))
    return found
