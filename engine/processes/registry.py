"""The collections' schemas as one reader knows them.

State: ``known``, the schemas received from the supervisor. Owner: the reader's loop. The decoder asks here for a
schema, and for new fields in it, which the supervisor grants once they are in the state store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from engine.core.schema import CollectionSchema, Field, types_by_path
from engine.decode.schema import SchemaOptions
from engine.processes.held import ENOUGH_DOCUMENTS

log = logging.getLogger("headrace")


class Unsettled(Exception):
    """Too little of a collection has been seen to settle its types."""


class Registry:
    """Schemas known locally; the supervisor is asked for the rest.

    Args:
        ask: gets the collection's schema from the supervisor, with these fields in it.
        sample: gives the fields in a sample of the collection, and its number of documents.
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
        """The collection's current schema.

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
        """A new collection's schema, from a sample of it; the empty schema if the sample has no fields."""
        fields, documents = self._sample(database, collection)
        if collection and documents < ENOUGH_DOCUMENTS and self._may_hold():
            del self.known[database, collection]  # so that it is asked for again
            raise Unsettled
        return self._ask(database, collection, fields) if fields else empty

    def grow(self, database: str, collection: str, fields: tuple[Field, ...]) -> CollectionSchema:
        """The schema with these fields, once stored."""
        return self._ask(database, collection, fields)

    def _warn_of_late_overrides(self, collection: str, schema: CollectionSchema) -> None:
        """An override has to be set before a field's first file: warn if it comes too late."""
        overrides = self._options.overridden(collection)
        for path, type_ in types_by_path(schema.fields):
            if overrides.get(path, type_) != type_:
                fields = {"field": f"{collection}.{path}", "type": type_.kind, "wanted": overrides[path].kind}
                log.warning(
                    "schema.overrides comes too late: there are files with another type", extra={"fields": fields}
                )
