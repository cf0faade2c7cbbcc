"""The collections' schemas as one reader knows them.

State: ``known``, what the supervisor has told. Owner: the reader's loop. The decoder asks here for a schema, and
for its growth, which the supervisor grants when it is in the state store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from engine.core.schema import CollectionSchema, Field, types_by_path
from engine.decode.schema import SchemaOptions
from engine.processes.held import ENOUGH_DOCUMENTS

log = logging.getLogger("headrace")


class Unsettled(Exception):
    """There is too little of a collection yet to settle its types by."""


class Registry:
    """What is known here, and the supervisor for the rest.

    Args:
        ask: the collection's schema with some fields, from the supervisor.
        sample: the fields that a sample of the collection has, and of how many documents.
        may_hold: whether events can be held back until there are more of them.
    """

    def __init__(
        self,
        options: SchemaOptions,
        ask: Callable[[str, str, tuple[Field, ...]], CollectionSchema],
        sample: Callable[[str, str], tuple[tuple[Field, ...], int]],
        may_hold: Callable[[], bool],
    ) -> None:
        self._options = options
        self._ask = ask
        self._sample = sample
        self._may_hold = may_hold
        self.known: dict[tuple[str, str], CollectionSchema] = {}

    def get(self, database: str, collection: str) -> CollectionSchema:
        """The collection's schema as it stands.

        Raises:
            Unsettled: it has none yet, and more of its documents may be seen before it gets one.
        """
        known = self.known.get((database, collection))
        if known is None:
            known = self._ask(database, collection, ())
            self._warn_of_late_overrides(collection, known)
            if not known.version:
                known = self._first(database, collection, known)
        return known

    def _first(self, database: str, collection: str, empty: CollectionSchema) -> CollectionSchema:
        """A new collection's schema, by a sample of it; the empty one where that tells nothing."""
        fields, documents = self._sample(database, collection)
        if collection and documents < ENOUGH_DOCUMENTS and self._may_hold():
            del self.known[database, collection]  # it is asked for again then
            raise Unsettled
        return self._ask(database, collection, fields) if fields else empty

    def grow(self, database: str, collection: str, fields: tuple[Field, ...]) -> CollectionSchema:
        """The schema with these fields, now kept."""
        return self._ask(database, collection, fields)

    def _warn_of_late_overrides(self, collection: str, schema: CollectionSchema) -> None:
        """An override counts from a field's first file on: say so where it comes too late."""
        overrides = self._options.overridden(collection)
        for path, type_ in types_by_path(schema.fields):
            if overrides.get(path, type_) != type_:
                fields = {"field": f"{collection}.{path}", "type": type_.kind, "wanted": overrides[path].kind}
                log.warning(
                    "schema.overrides comes too late: files with another type are there", extra={"fields": fields}
                )
