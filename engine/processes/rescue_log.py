"""Says once, for each column, that values do not fit it."""

from __future__ import annotations

import logging

from engine.core.messages import Rescued

# So many columns of a collection are named in the log; the status counts them all.
MOST_NAMED = 20
NO_FIT = (
    "values do not fit their column and are in _cdc_rescued; "
    "schema.overrides can give it a type that holds them all, with a new sink.url"
)
NO_ROOM = "fields past schema.max_fields have no column, and their values are in _cdc_rescued; raise it"

log = logging.getLogger("headrace")


class RescueLog:
    """What was said already, by one process."""

    def __init__(self) -> None:
        self._named: dict[tuple[str, str], set[str]] = {}

    def note(self, found: Rescued, *, full: bool) -> None:
        """Warn of what was not warned of before.

        Args:
            full: the collection has as many columns as it may have, so a field without one lacks the room.
        """
        named = self._named.setdefault((found.database, found.collection), set())
        if found.path in named or len(named) > MOST_NAMED or not (found.path or full):
            return
        named.add(found.path)
        fields: dict[str, str | int] = {
            "collection": f"{found.database}.{found.collection}",
            "values": found.values,
        }
        if not found.path:
            log.warning(NO_ROOM, extra={"fields": fields})
        elif len(named) > MOST_NAMED:
            log.warning("values do not fit further columns; /status names them", extra={"fields": fields})
        else:
            fields |= {"path": found.path, "column": found.column, "found": found.found}
            log.warning(NO_FIT, extra={"fields": fields})
