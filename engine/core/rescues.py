"""What was rescued since this engine started: values that their columns could not hold, or that have none.

State: for each collection the totals, and those of its columns, of which a schema has not more than so many.
Owner: the coordinator.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from msgspec import Struct

from engine.core.messages import Rescued


class RescuedColumn(Struct, frozen=True):
    """Values that one column could not hold; ``found`` is the BSON type of the latest."""

    path: str
    column: str
    found: str
    values: int


class RescuedValues(Struct, frozen=True):
    """What was rescued of one collection.

    Attributes:
        values: all of them.
        without_column: those of fields that have no column.
        columns: the columns with most of them.
    """

    database: str
    collection: str
    values: int
    without_column: int
    columns: tuple[RescuedColumn, ...]


class Rescues:
    """Counts what is rescued, by collection and column."""

    def __init__(self) -> None:
        self._columns: dict[tuple[str, str], dict[str, RescuedColumn]] = {}

    def add(self, found: Iterable[Rescued]) -> int:
        """Count them; how many values it were."""
        total = 0
        for each in found:
            columns = self._columns.setdefault((each.database, each.collection), {})
            before = columns[each.path].values if each.path in columns else 0
            columns[each.path] = RescuedColumn(each.path, each.column, each.found, before + each.values)
            total += each.values
        return total

    def top(self, most: int) -> tuple[RescuedValues, ...]:
        """Each collection, with so many of its columns."""
        return tuple(self._of(namespace, most) for namespace in sorted(self._columns))

    def _of(self, namespace: tuple[str, str], most: int) -> RescuedValues:
        columns = self._columns[namespace]
        without = columns[""].values if "" in columns else 0
        largest = heapq.nlargest(most, (c for c in columns.values() if c.path), key=lambda each: each.values)
        return RescuedValues(*namespace, sum(c.values for c in columns.values()), without, tuple(largest))
