"""The documents of one collection as columns: scanned by cursors, typed by the schema, built as Arrow arrays.

What a column cannot hold, and what has no column, is *rescued*: it is returned with its path, for
``_cdc_rescued``. A single element of a list cannot be rescued, so the whole array is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.core.schema import IDENTIFIER, DataType, Field, columns_left, path_of
from engine.decode.arrays import ArrayLevel, scan_arrays
from engine.decode.columns import Parts, build, scattered
from engine.decode.cursor import Bools, Flag, Ints, Level, Loose, Part, Plan, View, scan_documents
from engine.decode.json import text_json, values_json
from engine.decode.schema import Observed, SchemaOptions, arrow_type
from engine.rawbson import elements as raw

_NUMBERS = (raw.DOUBLE, raw.INT32, raw.INT64)


class Rescue(NamedTuple):
    """Values that no column holds, of one path and one BSON type.

    Attributes:
        column: the type of the column that refused them; None if there is no column.
    """

    path: str
    kind: int
    part: Part
    column: DataType | None


class Tree:
    """A scanned level with the levels below it."""

    def __init__(self, level: Level) -> None:
        self.level = level
        self.documents: dict[bytes, Tree] = {}
        self.arrays: dict[bytes, Tree] = {}

    def has_loose(self) -> bool:
        """Whether there are values that belong to no part, here or below."""
        below = (*self.documents.values(), *self.arrays.values())
        return bool(self.level.loose) or any(tree.has_loose() for tree in below)


class DocumentScanner:
    """Scans documents of one collection and remembers their headers."""

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
        fields: Sequence[Field],
        odd: Flag,
    ) -> Tree:
        """All values of these documents, including nested ones to the depth of the columns.

        Args:
            fields: the schema's; JSON columns are not scanned inside.
        """
        return self._documents(view, Part(rows, starts, ends, None), count, self._plan, fields, 1, odd)

    def _documents(
        self, view: View, part: Part, count: int, plan: Plan, fields: Sequence[Field], depth: int, odd: Flag
    ) -> Tree:
        types = {field.name.encode(): field.type for field in fields}
        max_fields = self._options.max_fields

        def worth(loose: Sequence[Loose]) -> Set[bytes]:
            if depth > 1:
                return types.keys()
            times = Counter(each.name for each in loose if each.name not in types)
            often = [name for name, _ in times.most_common(columns_left(fields, max_fields))]
            return types.keys() | {IDENTIFIER.encode(), *often}

        level = scan_documents(view, part.at, part.stop, part.rows, count, plan, odd, max_fields, worth)
        tree = Tree(level)
        for name, parts in level.columns.items():
            self._inside(view, tree, name, parts, plan.child(name), types.get(name), depth, odd)
        return tree

    def _inside(
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
        """Scan the documents and arrays of one field, if these have or may get columns."""
        documents, arrays = parts.get(raw.DOCUMENT), parts.get(raw.ARRAY)
        deep = depth >= self._options.max_depth
        if documents is not None and (type_.kind == "struct" if type_ else not deep):
            fields = type_.fields if type_ else ()
            tree.documents[name] = self._documents(view, documents, tree.level.count, plan, fields, depth + 1, odd)
        in_array = isinstance(tree.level, ArrayLevel)
        if arrays is not None and (type_.kind == "list" if type_ else not (deep and in_array)):
            elements = scan_arrays(view, arrays, odd)
            below = tree.arrays[name] = Tree(elements)

            def odd_owner(rows: Ints) -> None:
                odd(elements.owners[rows])

            item = type_.item if type_ else None
            for parts_ in elements.columns.values():
                self._inside(view, below, b"", parts_, plan.child(b""), item, depth + in_array, odd_owner)


def observe(view: View, tree: Tree, fine: Bools | None) -> dict[str, Observed]:
    """Count the values of each field.

    Args:
        fine: the rows to count; None for all.
    """
    return {
        name.decode(): _observe_field(view, tree, name, parts, fine) for name, parts in tree.level.columns.items()
    }


def _observe_field(view: View, tree: Tree, name: bytes, parts: Parts, fine: Bools | None) -> Observed:
    seen = Observed()
    for kind, whole in parts.items():
        part = whole if fine is None else whole.select(fine if whole.rows is None else fine[whole.rows], len(fine))
        if kind == raw.BINARY:
            subtypes, times = np.unique(view.bytes[part.at + 4], return_counts=True)
            seen.add_binaries(dict(zip(subtypes.tolist(), times.tolist(), strict=True)))
        elif len(part):
            seen.add(kind, len(part))
    if (documents := tree.documents.get(name)) is not None:
        seen.fields = observe(view, documents, fine)
        seen.crowded = bool(documents.level.loose)
    if (below := tree.arrays.get(name)) is not None:
        assert isinstance(below.level, ArrayLevel)
        fine_items = None if fine is None else fine[below.level.owners]
        for parts_ in below.level.columns.values():
            seen.item = _observe_field(view, below, b"", parts_, fine_items)
    return seen


class Builder:
    """Builds the columns of scanned documents.

    State:
        rescued: what no column could hold so far.
        malformed: the rows with a value that should become JSON but is not valid BSON.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self.rescued: list[Rescue] = []
        self.malformed: list[int] = []

    def columns(self, tree: Tree, fields: Sequence[Field], path: str = "") -> dict[str, pa.Array]:
        """The columns of the fields that occur, by column name."""
        arrays: dict[str, pa.Array] = {}
        types = {field.name.encode(): field for field in fields}
        for name, parts in tree.level.columns.items():
            field = types.get(name)
            at = path_of(path, name.decode())
            if field is None:
                self._rescue(at, [(kind, part) for kind, part in parts.items() if kind not in raw.NOTHING], None)
            elif field.type.kind != "drop":
                arrays[field.column_name] = self._field(tree, name, parts, field.type, at)
        for loose in tree.level.loose:
            if loose.kind not in raw.NOTHING:
                part = Part(np.array([loose.row]), np.array([loose.at]), np.array([loose.stop]), None)
                self._rescue(path_of(path, loose.name.decode()), [(loose.kind, part)], None)
        return arrays

    def _field(self, tree: Tree, name: bytes, parts: Parts, type_: DataType, path: str) -> pa.Array:
        count = tree.level.count
        values = {kind: part for kind, part in parts.items() if kind not in raw.NOTHING}
        match type_.kind:
            case "json":
                return self._json(values, count)
            case "struct":
                self._rescue(path, [(kind, part) for kind, part in values.items() if kind != raw.DOCUMENT], type_)
                documents = values.get(raw.DOCUMENT)
                return self._struct(tree.documents.get(name), documents, type_, path, count)
            case "list":
                self._rescue(path, [(kind, part) for kind, part in values.items() if kind != raw.ARRAY], type_)
                below = tree.arrays.get(name)
                return self._list(below, values.get(raw.ARRAY), type_, path, count)
            case _:
                array, refused = build(self._view, type_, values, count)
                self._rescue(path, refused, type_)
                return array

    def _struct(self, below: Tree | None, part: Part | None, type_: DataType, path: str, count: int) -> pa.Array:
        arrow = arrow_type(type_)
        if below is None or part is None:
            return pa.nulls(count, arrow)
        found = self.columns(below, type_.fields, path)
        children = [found[each.name] if each.name in found else pa.nulls(count, each.type) for each in arrow]
        return pa.StructArray.from_arrays(children, fields=list(arrow), mask=_absent(part, count))

    def _list(self, below: Tree | None, part: Part | None, type_: DataType, path: str, count: int) -> pa.Array:
        arrow = arrow_type(type_)
        if below is None or part is None:
            return pa.nulls(count, arrow)
        assert isinstance(below.level, ArrayLevel)
        assert type_.item is not None
        owners = below.level.owners
        inner = Builder(self._view)
        elements = inner._field(below, b"", below.level.columns.get(b"", {}), type_.item, "")
        self.malformed += owners[np.array(inner.malformed, np.int64)].tolist()
        offsets = np.zeros(len(part) + 1, np.int32)
        np.cumsum(below.level.lengths, out=offsets[1:])
        lists = pa.ListArray.from_arrays(pa.array(offsets), elements, type=arrow)
        if not inner.rescued:
            return scattered(lists, part.rows, count)
        rows = np.arange(count, dtype=np.int64) if part.rows is None else part.rows
        refused = [owners if each.part.rows is None else owners[each.part.rows] for each in inner.rescued]
        bad = np.isin(rows, np.concatenate(refused))
        self._rescue(path, [(raw.ARRAY, part.select(bad, count))], type_)
        return scattered(lists.filter(pa.array(~bad)), rows[~bad], count)

    def _json(self, parts: Parts, count: int) -> pa.Array:
        texts: list[str | None] = [None] * count
        for kind, part in parts.items():
            rows = range(count) if part.rows is None else part.rows.tolist()
            for row, text in zip(rows, part_json(self._view, kind, part), strict=True):
                texts[row] = text
                if text is None:
                    self.malformed.append(row)
        return pa.array(texts, pa.string())

    def _rescue(self, path: str, refused: Sequence[tuple[int, Part]], column: DataType | None) -> None:
        self.rescued += [Rescue(path, kind, part, column) for kind, part in refused if len(part)]

    def rescued_column(self, count: int) -> pa.Array:
        """What was rescued as ``{path: value}``, for each of ``count`` rows, with sorted paths."""
        members: list[str] = []
        rows_of_members: list[Ints] = []
        for path, kind, part, _ in sorted(self.rescued, key=lambda rescue: rescue.path):
            rows = np.arange(count, dtype=np.int64) if part.rows is None else part.rows
            texts = part_json(self._view, kind, part)
            if None in texts:
                fine = np.array([text is not None for text in texts], bool)
                self.malformed += rows[~fine].tolist()
                rows, texts = rows[fine], [text for text in texts if text is not None]
            label = text_json(path) + ":"
            members += [label + text for text in texts]  # type: ignore[operator]
            rows_of_members.append(rows)
        return _objects(members, np.concatenate(rows_of_members), count)


def _objects(members: Sequence[str], rows: Ints, count: int) -> pa.Array:
    """JSON objects of these members, which each belong to one row, in this order; null for rows without any."""
    times = np.bincount(rows, minlength=count)
    offsets = np.zeros(count + 1, np.int32)
    np.cumsum(times, out=offsets[1:])
    ordered = pa.array(members, pa.string()).take(pa.array(np.argsort(rows, kind="stable")))
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), ordered), ",")
    return pc.if_else(pa.array(times > 0), pc.binary_join_element_wise("{", joined, "}", ""), None)


def checked_json(view: View, kind: int, part: Part, odd: Flag) -> Sequence[str | None]:
    """The same as ``part_json``; ``odd`` is called with the rows in which a value is malformed."""
    texts = part_json(view, kind, part)
    if None in texts:
        bad = np.array([index for index, text in enumerate(texts) if text is None], np.int64)
        odd(bad if part.rows is None else part.rows[bad])
    return texts


def part_json(view: View, kind: int, part: Part) -> Sequence[str | None]:
    """Each value of a part as relaxed Extended JSON; None if it is malformed."""
    numbers = part.payload.tolist() if kind in _NUMBERS and part.payload is not None else None
    return values_json(view.data, kind, part.at, part.stop, numbers)


def _absent(part: Part, count: int) -> pa.Array | None:
    """The mask of rows without a value; None if all have one."""
    if part.rows is None:
        return None
    absent: Bools = np.ones(count, bool)
    absent[part.rows] = False
    return pa.array(absent)
