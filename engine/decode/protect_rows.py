"""Protected fields, row by row: the definition of what ``protect`` does to all rows at once.

Also what decides about events and documents that cannot be read: see ``withheld``.
"""

from __future__ import annotations

import hmac
from struct import Struct as Layout

from engine.config.tree import PROTECTIONS
from engine.decode.identity import merge_key
from engine.decode.json import MAX_DEPTH
from engine.errors import ConfigError
from engine.rawbson import elements as raw
from engine.rawbson.elements import MalformedBSON, elements, find

_INT32 = Layout("<i")
# Fields of an event that hold no value of a document. A dead letter of a protected stream has nothing else.
NO_VALUES = {b"_id", b"operationType", b"clusterTime", b"wallTime", b"ns", b"to", b"lsid", b"txnNumber"}
# An element of a type that does not exist: what has it is a dead letter.
_UNDECODABLE = b"\x7ewithheld by schema.protect\0"


def string(text: bytes) -> bytes:
    """The BSON value of a string."""
    return _INT32.pack(len(text) + 1) + text + b"\0"


MASK = b"***"
MASKED = string(MASK)


class Rule:
    """A field on the way to protected ones, or a protected one.

    Attributes:
        action: what happens to the field itself; empty if only fields below it are protected.
    """

    def __init__(self) -> None:
        self.action = ""
        self.below: dict[bytes, Rule] = {}

    def add(self, path: str, action: str) -> None:
        """Protect a field below this one."""
        rule = self
        for name in path.encode().split(b"."):
            rule = rule.below.setdefault(name, Rule())
        rule.action = max(rule.action, action, key=_strength)


# The rules that a place in a document may be under; several if its path can be read in several ways.
Rules = tuple[Rule, ...]


def _strength(action: str) -> int:
    """Of several actions for one field, the strongest counts."""
    return PROTECTIONS.index(action) if action else -1


class Rows:
    """Rewrites single events and documents.

    Args:
        key: of the hashes.
    """

    def __init__(self, key: bytes) -> None:
        self._keyed = hmac.new(key, digestmod="sha256")

    # --- the parts of an event ---------------------------------------------------------------------------

    def event(self, data: bytes, at: int, rules: Rules) -> bytes | None:
        """The event at ``at``; None if nothing in it changes.

        Raises:
            ConfigError: a shard key is protected.
            MalformedBSON: it cannot be read.
        """
        edits = _Edits(data, at)
        for kind, name, value, stop in elements(data, at):
            if name in NO_VALUES or kind in raw.NOTHING:
                continue
            new: bytes | None = None
            if name == b"documentKey":
                self._refuse_in_key(data, value, rules)
            elif name == b"updateDescription" and kind == raw.DOCUMENT:
                new = self._update(data, value, rules)
            elif kind == raw.DOCUMENT:
                new = self.document(data, value, rules)
            elif name in (b"fullDocument", b"fullDocumentBeforeChange", b"updateDescription"):
                raise MalformedBSON(f"{name.decode()} is a {raw.NAMES.get(kind, kind)}")
            if new is not None:
                edits.replace(kind, name, value, stop, new)
        return edits.document()

    def _refuse_in_key(self, data: bytes, at: int, rules: Rules) -> None:
        if self.document(data, at, rules) is not None:
            cause = (
                "a protected field is part of the document key (as a shard key is), which every resume token has"
            )
            remedy = "Remove it from schema.protect: it cannot be kept out of the lake and the state store."
            raise ConfigError("protect fields", cause, remedy)

    def _update(self, data: bytes, at: int, rules: Rules) -> bytes | None:
        """The update's description, whose names are paths."""
        edits = _Edits(data, at)
        for kind, name, value, stop in elements(data, at):
            new: bytes | None = None
            if name == b"updatedFields" and kind == raw.DOCUMENT:
                new = self.document(data, value, rules, are_paths=True)
            elif name == b"disambiguatedPaths" and kind == raw.DOCUMENT:
                new = _paths_kept(data, value, rules)
            elif name in (b"removedFields", b"truncatedArrays") and kind == raw.ARRAY:
                new = _names_kept(data, value, rules)
            if new is not None:
                edits.replace(kind, name, value, stop, new)
        return edits.document()

    # --- documents ---------------------------------------------------------------------------------------

    def document(
        self,
        data: bytes,
        at: int,
        rules: Rules,
        depth: int = 0,
        *,
        is_array: bool = False,
        are_paths: bool = False,
    ) -> bytes | None:
        """The document (or array) at ``at``; None if nothing in it changes.

        Args:
            rules: what its fields are under.
            are_paths: its names are dotted paths, in which a number may be an index.

        Raises:
            MalformedBSON: it cannot be read.
        """
        if depth > MAX_DEPTH:
            raise MalformedBSON(f"more than {MAX_DEPTH} levels at byte {at}")
        edits = _Edits(data, at)
        for kind, name, value, stop in elements(data, at):
            action, under, beyond = steps(rules, name, skip=is_array or are_paths)
            if action:
                if beyond:
                    edits.rename(kind, beyond, value, stop, action, name)
                elif kind not in raw.NOTHING:
                    self._protect(edits, kind, name, value, stop, action, is_array=is_array)
            elif under and kind in (raw.DOCUMENT, raw.ARRAY):
                new = self.document(data, value, under, depth + 1, is_array=kind == raw.ARRAY)
                if new is not None:
                    edits.replace(kind, name, value, stop, new)
        return edits.document()

    def _protect(
        self, edits: _Edits, kind: int, name: bytes, value: int, stop: int, action: str, *, is_array: bool
    ) -> None:
        if action == "drop":
            if is_array:  # the others keep their places
                edits.replace(raw.NULL, name, value, stop, b"")
            else:
                edits.remove(name, value, stop)
        else:
            new = MASKED if action == "mask" else self.hashed(canonical(edits.data, kind, value, stop))
            edits.replace(raw.STRING, name, value, stop, new)

    def hashed(self, text: bytes) -> bytes:
        """The string in place of a value with this canonical text."""
        digest = self._keyed.copy()  # half the cost of hmac.digest, which sets up the key anew
        digest.update(text)
        return string(digest.hexdigest().encode())


def canonical(data: bytes, kind: int, at: int, stop: int) -> bytes:
    """What is hashed of a value: its merge key, or its bytes if it is malformed."""
    try:
        return merge_key(data, kind, at, stop).encode()
    except MalformedBSON:
        return bytes([kind]) + data[at:stop]


class _Edits:
    """A copy of the document at ``at`` with some elements changed, made of the runs between them."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self._pieces: list[bytes] = []
        self._kept = at + 4
        self._end = at + _INT32.unpack_from(data, at)[0]
        self._renamed: set[bytes] = set()

    def replace(self, kind: int, name: bytes, value: int, stop: int, new: bytes) -> None:
        """Give an element another type and value."""
        self.remove(name, value, stop)
        self._pieces.append(bytes([kind]) + name + b"\0" + new)

    def remove(self, name: bytes, value: int, stop: int) -> None:
        """Leave an element out."""
        self._pieces.append(self.data[self._kept : value - len(name) - 2])
        self._kept = stop

    def rename(self, kind: int, new: bytes, value: int, stop: int, action: str, name: bytes) -> None:
        """Hide an element inside a protected field, its name included: such names may be values, as of a map."""
        self.remove(name, value, stop)
        if action != "drop" and new not in self._renamed:
            self._renamed.add(new)
            self._pieces.append(bytes([raw.STRING]) + new + b"\0" + MASKED)

    def document(self) -> bytes | None:
        """The whole; None if nothing has changed."""
        if not self._pieces:
            return None
        body = b"".join(self._pieces) + self.data[self._kept : self._end]
        return _INT32.pack(len(body) + 4) + body


def steps(rules: Rules, name: bytes, *, skip: bool) -> tuple[str, Rules, bytes]:
    """Follow a name from some rules.

    Args:
        skip: a number in the name may be an index, which paths need not have.

    Returns:
        The action for the field, or for the protected one that it is inside of; the rules for what is below it;
        and in the second case the name with ``***`` in place of what is beyond the protected one.
    """
    parts = name.split(b".") if b"." in name else (name,)
    for number, part in enumerate(parts, 1):
        under = tuple([rule.below[part] for rule in rules if part in rule.below])
        if under and (action := max((rule.action for rule in under), key=_strength)):
            inside = number < len(parts)
            return action, (), b".".join((*parts[:number], MASK)) if inside else b""
        if skip and part.isdigit():
            under += rules
        if not under:
            return "", (), b""
        rules = under
    return "", rules, b""


def _names_kept(data: bytes, at: int, rules: Rules) -> bytes | None:
    """``removedFields`` or ``truncatedArrays``: paths, or documents with one."""
    kept: list[tuple[int, bytes]] = []
    changed = False
    for kind, _, value, stop in elements(data, at):
        new: bytes | None = data[value:stop]
        if kind == raw.STRING:
            new = _path_kept(data[value + 4 : stop - 1], rules, data[value:stop])
        elif kind == raw.DOCUMENT and (field := find(data, value, b"field")) and field[0] == raw.STRING:
            path = _path_kept(data[field[1] + 4 : field[2] - 1], rules, data[field[1] : field[2]])
            edits = _Edits(data, value)
            if path != data[field[1] : field[2]]:
                edits.replace(raw.STRING, b"field", field[1], field[2], path or b"")
                new = None if path is None else edits.document()
        changed |= new != data[value:stop]
        if new is not None and (kind, new) not in kept[-1:]:
            kept.append((kind, new))
    if not changed:
        return None
    body = b"".join(b"%c%d\0%b" % (kind, number, value) for number, (kind, value) in enumerate(kept))
    return _INT32.pack(len(body) + 5) + body + b"\0"


def _path_kept(path: bytes, rules: Rules, value: bytes) -> bytes | None:
    """The string of a path, without names inside of protected fields; None if the field is dropped."""
    action, _, beyond = steps(rules, path, skip=True)
    if action == "drop":
        return None
    return string(beyond) if beyond else value


def _paths_kept(data: bytes, at: int, rules: Rules) -> bytes | None:
    """``disambiguatedPaths`` without those of dropped fields, and of names inside of protected ones."""
    edits = _Edits(data, at)
    for _, name, value, stop in elements(data, at):
        action, _, beyond = steps(rules, name, skip=True)
        if action == "drop" or beyond:
            edits.remove(name, value, stop)
    return edits.document()


def collection_of(data: bytes, at: int) -> str:
    """The collection of the event at ``at``; empty if it is not known.

    Raises:
        MalformedBSON: it cannot be read.
    """
    namespace = find(data, at, b"ns")
    if namespace is None or namespace[0] != raw.DOCUMENT:
        return ""
    found = find(data, namespace[1], b"coll")
    return data[found[1] + 4 : found[2] - 1].decode(errors="replace") if found and found[0] == raw.STRING else ""


def withheld(data: bytes, at: int, harmless: set[bytes]) -> bytes:
    """What becomes a dead letter of bytes that cannot be read: only the elements that hold no protected value.

    Without the rest it cannot be told what is protected and what is not.
    """
    kept: list[bytes] = []
    try:
        for _, name, value, stop in elements(data, at):
            if name in harmless:
                kept.append(data[value - len(name) - 2 : stop])
    except MalformedBSON:
        pass
    body = b"".join(kept) + _UNDECODABLE
    return _INT32.pack(len(body) + 5) + body + b"\0"
