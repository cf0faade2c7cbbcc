"""What was rescued since this engine started: values that their columns could not hold, or that have no column.

State: totals per collection and column; a schema's number of columns is bounded. Owner: the coordinator.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence

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
        values: their total number.
        without_column: the number of those whose fields have no column.
        columns: the columns with the most of them.
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
        self._without: Counter[tuple[str, str]] = Counter()

    def add(self, found: Sequence[Rescued]) -> int:
        """Count them; returns how many values there were."""
        for each in found:
            columns = self._columns.setdefault((each.database, each.collection), {})
            if each.path is None or each.column is None or each.found is None:
                self._without[each.database, each.collection] += each.values
                continue
            before = columns[each.path].values if each.path in columns else 0
            columns[each.path] = RescuedColumn(each.path, each.column, each.found, before + each.values)
        return sum(each.values for each in found)

    def top(self, count: int) -> tuple[RescuedValues, ...]:
        """Each collection, with its top ``count`` columns."""
        return tuple(self._of(namespace, count) for namespace in sorted(self._columns))

    def _of(self, namespace: tuple[str, str], count: int) -> RescuedValues:
        columns = self._columns[namespace].values()
        without = self._without[namespace]
        largest = heapq.nlargest(count, columns, key=lambda each: each.values)
        return RescuedValues(*namespace, without + sum(each.values for each in columns), without, tuple(largest))
