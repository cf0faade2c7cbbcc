"""Warns, once per column, of values that do not fit it."""

from __future__ import annotations

import logging

from engine.core.messages import Rescued

# At most this many columns of a collection are named in the log; the status counts them all.
MAX_NAMED = 20
NO_FIT = (
    "values do not fit their column and are in _cdc_rescued; "
    "schema.overrides can give it a type that holds them all, with a new sink.url"
)
NO_COLUMN = "fields past schema.max_fields have no column, and their values are in _cdc_rescued; raise it"

log = logging.getLogger("headrace")


class RescueLog:
    """What one process has already warned of."""

    def __init__(self) -> None:
        self._named: dict[tuple[str, str], set[str | None]] = {}

    def note(self, found: Rescued, *, full: bool) -> None:
        """Warn of a column that has not been warned of before.

        Args:
            full: the collection has all the columns that it may have, which is why a field has none.
        """
        named = self._named.setdefault((found.database, found.collection), set())
        if found.path in named or len(named) > MAX_NAMED or not (found.path or full):
            return
        named.add(found.path)
        fields: dict[str, str | int | None] = {
            "collection": f"{found.database}.{found.collection}",
            "values": found.values,
        }
        if found.path is None:
            log.warning(NO_COLUMN, extra={"fields": fields})
        elif len(named) > MAX_NAMED:
            log.warning("values do not fit other columns either; /status names them", extra={"fields": fields})
        else:
            fields |= {"path": found.path, "column": found.column, "found": found.found}
            log.warning(NO_FIT, extra={"fields": fields})
