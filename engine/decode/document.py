"""The documents of one collection, by column: scanned by cursors, typed by the schema, built as Arrow arrays.

What a column cannot hold, and what has no column, is *rescued*: it is returned with its path, for
``_cdc_rescued``. Inside a list that is not possible for a single element, so there the whole array is rescued.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from engine.core.schema import DataType, Field
from engine.decode import cursor
from engine.decode.columns import Parts, build, scattered
from engine.decode.cursor import (
    ArrayLevel,
    Bools,
    Flag,
    Ints,
    Level,
    Part,
    Plan,
    View,
    scan_arrays,
    scan_documents,
)
from engine.decode.json import documents_json
from engine.decode.schema import Observed, SchemaOptions, arrow_type

_NOTHING = {cursor.NULL, cursor.UNDEFINED}


class Rescue(NamedTuple):
    """Values that no column holds: all of one path and one BSON type."""

    path: str
    kind: int
    part: Part


class Tree:
    """A scanned level with what was scanned below it."""

    def __init__(self, level: Level) -> None:
        self.level = level
        self.documents: dict[bytes, Tree] = {}
        self.arrays: dict[bytes, Tree] = {}


class DocumentScanner:
    """Scans documents of one collection and remembers their headers.

    Args:
        view: is given to each call, because it belongs to one reply.
    """

    def __init__(self, options: SchemaOptions) -> None:
        self._options = options
        self._plan = Plan()

    def scan(
        self,
        view: View,
        starts: Ints,
        ends: Ints,
        rows: Ints | None,
        count: int,
        known: Sequence[Field],
        odd: Flag,
    ) -> Tree:
        """All values of these documents, and what is inside them as far as columns go.

        Args:
            known: the schema's fields; a JSON column is not looked into.
        """
        tree = Tree(scan_documents(view, starts, ends, rows, count, self._plan, odd))
        self._descend(view, tree, self._plan, known, 1, odd)
        return tree

    def _descend(self, view: View, tree: Tree, plan: Plan, known: Sequence[Field], depth: int, odd: Flag) -> None:
        types = {field.name.encode(): field.type for field in known}
        for name, parts in tree.level.columns.items():
            self._descend_field(view, tree, name, parts, plan.child(name), types.get(name), depth, odd)

    def _descend_field(
        self,
        view: View,
        tree: Tree,
        name: bytes,
        parts: Parts,
        plan: Plan,
        type_: DataType | None,
        depth: int,
        odd: Flag,
    ) -> None:
        if depth >= self._options.max_depth:
            return
        documents, arrays = parts.get(cursor.DOCUMENT), parts.get(cursor.ARRAY)
        if documents is not None and (type_ is None or type_.kind == "struct"):
            level = scan_documents(view, documents.at, documents.stop, documents.rows, tree.level.count, plan, odd)
            below = tree.documents[name] = Tree(level)
            self._descend(view, below, plan, type_.fields if type_ else (), depth + 1, odd)
        if arrays is not None and (type_ is None or type_.kind == "list"):
            elements = scan_arrays(view, arrays, odd)
            below = tree.arrays[name] = Tree(elements)

            def odd_owner(rows: Ints) -> None:
                odd(elements.owners[rows])

            item = type_.item if type_ else None
            for parts_ in elements.columns.values():
                self._descend_field(view, below, b"", parts_, plan.child(b""), item, depth + 1, odd_owner)


def observe(view: View, tree: Tree) -> dict[str, Observed]:
    """Counts of the values of each field."""
    return {name.decode(): _observe_field(view, tree, name, parts) for name, parts in tree.level.columns.items()}


def _observe_field(view: View, tree: Tree, name: bytes, parts: Parts) -> Observed:
    seen = Observed()
    for kind, part in parts.items():
        if kind == cursor.BINARY:
            subtypes, times = np.unique(view.bytes[part.at + 4], return_counts=True)
            seen.add_binaries(dict(zip(subtypes.tolist(), times.tolist(), strict=True)))
        else:
            seen.add(kind, len(part))
    if name in tree.documents:
        seen.fields = observe(view, tree.documents[name])
    if name in tree.arrays:
        below = tree.arrays[name]
        for parts_ in below.level.columns.values():
            seen.item = _observe_field(view, below, b"", parts_)
    return seen


class Builder:
    """Builds the columns of scanned documents.

    State: ``rescued``, what no column could hold so far.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self.rescued: list[Rescue] = []

    def columns(self, tree: Tree, fields: Sequence[Field], path: str = "") -> dict[str, pa.Array]:
        """The columns of the fields that occur; those that do not are left out."""
        arrays: dict[str, pa.Array] = {}
        types = {field.name.encode(): field for field in fields}
        for name, parts in tree.level.columns.items():
            field = types.get(name)
            at = path + name.decode()
            if field is None:
                self._rescue(at, [(kind, part) for kind, part in parts.items() if kind not in _NOTHING])
            else:
                arrays[field.name] = self._field(tree, name, parts, field.type, at)
        return arrays

    def _field(self, tree: Tree, name: bytes, parts: Parts, type_: DataType, path: str) -> pa.Array:
        count = tree.level.count
        values = {kind: part for kind, part in parts.items() if kind not in _NOTHING}
        match type_.kind:
            case "json":
                return self._json(values, count)
            case "struct":
                self._rescue(path, [(kind, part) for kind, part in values.items() if kind != cursor.DOCUMENT])
                documents = values.get(cursor.DOCUMENT)
                return self._struct(tree.documents.get(name), documents, type_, path, count)
            case "list":
                self._rescue(path, [(kind, part) for kind, part in values.items() if kind != cursor.ARRAY])
                below = tree.arrays.get(name)
                return self._list(below, values.get(cursor.ARRAY), type_, path, count)
            case _:
                array, refused = build(self._view, type_, values, count)
                self._rescue(path, refused)
                return array

    def _struct(self, below: Tree | None, part: Part | None, type_: DataType, path: str, count: int) -> pa.Array:
        if below is None or part is None:
            return pa.nulls(count, arrow_type(type_))
        found = self.columns(below, type_.fields, path + ".")
        arrow = arrow_type(type_)
        children = [
            found[field.name] if field.name in found else pa.nulls(count, arrow.field(n).type)
            for n, field in enumerate(type_.fields)
        ]
        return pa.StructArray.from_arrays(children, fields=list(arrow), mask=_absent(part, count))

    def _list(self, below: Tree | None, part: Part | None, type_: DataType, path: str, count: int) -> pa.Array:
        arrow = arrow_type(type_)
        if below is None or part is None:
            return pa.nulls(count, arrow)
        assert isinstance(below.level, ArrayLevel)
        assert type_.item is not None
        inner = Builder(self._view)
        parts = below.level.columns.get(b"", {})
        elements = inner._field(below, b"", parts, type_.item, path)
        offsets = np.zeros(len(part) + 1, np.int32)
        np.cumsum(below.level.lengths, out=offsets[1:])
        lists = pa.ListArray.from_arrays(pa.array(offsets), elements, type=arrow)
        rows = np.arange(count, dtype=np.int64) if part.rows is None else part.rows
        if inner.rescued:
            bad = np.isin(
                rows, np.concatenate([below.level.owners[self._rows(each, below)] for each in inner.rescued])
            )
            self._rescue(path, [(cursor.ARRAY, part.select(bad, count))])
            lists = lists.filter(pa.array(~bad))
            rows = rows[~bad]
            return scattered(lists, rows, count)
        return scattered(lists, part.rows, count)

    def _rows(self, rescue: Rescue, below: Tree) -> Ints:
        if rescue.part.rows is None:
            return np.arange(below.level.count, dtype=np.int64)
        return rescue.part.rows

    def _json(self, parts: Parts, count: int) -> pa.Array:
        texts: list[str | None] = [None] * count
        for kind, part in parts.items():
            rows = range(count) if part.rows is None else part.rows.tolist()
            for row, text in zip(rows, values_json(self._view.data, kind, part), strict=True):
                texts[row] = text
        return pa.array(texts, pa.string())

    def _rescue(self, path: str, refused: Sequence[tuple[int, Part]]) -> None:
        self.rescued += [Rescue(path, kind, part) for kind, part in refused if len(part)]


def values_json(data: bytes, kind: int, part: Part) -> list[str]:
    """Each value of a part as relaxed Extended JSON."""
    bounds = zip(part.at.tolist(), part.stop.tolist(), strict=True)
    if kind == cursor.DOCUMENT:
        return documents_json(data[at:stop] for at, stop in bounds)
    head = bytes([kind]) + b"v\0"
    documents = (_document(head + data[at:stop]) for at, stop in bounds)
    return [text[len('{"v":') : -1] for text in documents_json(documents)]


def _document(element: bytes) -> bytes:
    return (len(element) + 5).to_bytes(4, "little") + element + b"\0"


def _absent(part: Part, count: int) -> pa.Array | None:
    """The mask of rows without a value; None when all have one."""
    if part.rows is None:
        return None
    absent: Bools = np.ones(count, bool)
    absent[part.rows] = False
    return pa.array(absent)
