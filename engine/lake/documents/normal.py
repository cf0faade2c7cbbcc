"""The form in which the documents of one collection are compared, by its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from engine.config.tree import SchemaConfig
from engine.core.schema import path_of
from engine.decode.protect import paths_in
from engine.decode.schema import SchemaOptions
from engine.lake.documents import elements as el
from engine.lake.documents.comparison import normal_form


def normal_of(config: SchemaConfig, collection: str) -> Callable[[bytes], bytes]:
    """A function from documents, as BSON, to their normal form, as BSON.

    Fields that ``schema.overrides`` drops are left out, on both sides: the lake may still have them inside JSON.
    So are those that ``schema.protect`` keeps out of the lake: what is shown of a normal form shows none of them.
    """
    overrides = SchemaOptions.of(config).overridden(collection)
    dropped = frozenset(path for path, type_ in overrides.items() if type_.kind == "drop")
    protected = _tree(path for key in config.protect for path in paths_in(key, collection))
    decimals = any(type_.kind == "decimal128" for type_ in overrides.values())
    compared = partial(normal_form, decimals=decimals)
    if not (dropped or protected):
        return compared
    left_out = _LeftOut(dropped, (protected,))
    return lambda document: compared(_without(document, left_out))


class _Tree(dict[bytes, "_Tree"]):
    """Protected paths by their first names; empty at the end of one."""


def _tree(paths: Iterable[str]) -> _Tree:
    tree = _Tree()
    for path in paths:
        *parents, last = path.encode().split(b".")
        place: _Tree | None = tree
        for name in parents:
            # A path below a protected field adds nothing.
            place = (
                None if place is None or (name in place and not place[name]) else place.setdefault(name, _Tree())
            )
        if place is not None:
            place[last] = _Tree()
    return tree


class _LeftOut(NamedTuple):
    """What is left out below a place in a document.

    Attributes:
        dropped: whole paths, in which names that have dots are escaped.
        protected: paths from here on, in which a dot in a name is like one between names.
        path: of this place.
    """

    dropped: frozenset[str]
    protected: tuple[Mapping[bytes, _Tree], ...]
    path: str = ""

    def below(self, name: bytes, *, is_index: bool) -> _LeftOut | None:
        """The same below a field (or an element of an array); None if that itself is left out."""
        path = self.path if is_index else path_of(self.path, name.decode(errors="replace"))
        if path in self.dropped:
            return None
        places = self.protected
        for part in name.split(b"."):
            found = tuple(each[part] for each in places if part in each)
            if not all(found):
                return None
            # A path leads through arrays with or without the index.
            places = found + places if is_index else found
        return _LeftOut(self.dropped, places, path)


def _without(document: bytes, left_out: _LeftOut, *, is_array: bool = False) -> bytes:
    return el.framed(_kept(document, left_out, is_array))


def _kept(document: bytes, left_out: _LeftOut, is_array: bool) -> Iterator[bytes]:
    for name, value in el.fields(document):
        below = left_out.below(name, is_index=is_array)
        if below is not None:
            kind, data = value
            if kind in (el.DOCUMENT, el.ARRAY):
                value = kind, _without(data, below, is_array=kind == el.ARRAY)  # noqa: PLW2901
            yield el.element(name, value)
