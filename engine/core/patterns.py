"""Names of databases and collections by pattern.

``*`` stands for any characters, also none, and ``?`` for one. A backslash makes the character after it stand for
itself, if that is ``*``, ``?`` or a backslash; any other backslash stands for itself already. Everything else is
literal, and upper and lower case differ, as they do for the server.

Two selections may be compared: whether there is a name that both select. That is decided on the patterns
themselves, so it includes names that do not exist yet.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum
from functools import lru_cache

# Between the database and the collection. No name has this character, and no wildcard stands for it.
SEPARATOR = "\0"
# More states than any sensible patterns have; beyond it, two selections are taken to have a name in common.
MAX_STATES = 4_000


class Wildcard(Enum):
    """What stands for other characters."""

    ANY = "*"
    ONE = "?"


# A pattern as a sequence of characters and wildcards.
Glob = tuple[str | Wildcard, ...]
_OTHER = ""  # any character that is in none of the patterns


@lru_cache(4096)
def parse(pattern: str) -> Glob:
    """The characters and wildcards of a pattern."""
    found: list[str | Wildcard] = []
    escaped = False
    for at, char in enumerate(pattern):
        if escaped:
            found.append(char)
            escaped = False
        elif char == "\\" and pattern[at + 1 : at + 2] in ("*", "?", "\\"):
            escaped = True
        else:
            found.append(Wildcard(char) if char in "*?" else char)
    return tuple(found)


def name_of(pattern: str) -> str | None:
    """The only name that a pattern stands for; None if it has wildcards."""
    parts = parse(pattern)
    return "".join(map(str, parts)) if not any(isinstance(each, Wildcard) for each in parts) else None


def escape(name: str) -> str:
    """The pattern that stands for this name alone."""
    return re.sub(r"([*?\\])", r"\\\1", name)


def divide(pattern: str) -> tuple[str, str]:
    """A pattern ``<database>.<collection>`` as two; no database's name has a ``.``."""
    database, _, collection = pattern.partition(".")
    return database, collection


def regex(pattern: str) -> str:
    """A regular expression for a whole name, for PCRE and Python, in which ``.`` must match line ends too."""
    translated = {Wildcard.ANY: ".*", Wildcard.ONE: "."}
    return "".join(translated[each] if isinstance(each, Wildcard) else re.escape(each) for each in parse(pattern))


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern stands for this name."""
    return re.fullmatch(regex(pattern), name, re.DOTALL) is not None


def have_common(selections: Iterable[Sequence[Glob]], excluded: Sequence[Glob]) -> bool:
    """Whether some text is matched by a pattern of each selection, and by none of the excluded ones.

    Sets of places in the patterns are followed through all characters that they distinguish.
    """
    groups = [*map(tuple, selections), tuple(excluded)]
    alphabet = {char for group in groups for glob in group for char in glob if isinstance(char, str)} | {_OTHER}
    start = tuple(_closed(group, {(n, 0) for n in range(len(group))}) for group in groups)
    seen, left = {start}, deque([start])
    while left and len(seen) < MAX_STATES:
        state = left.popleft()
        *wanted, unwanted = (_has_end(group, places) for group, places in zip(groups, state, strict=True))
        if all(wanted) and not unwanted:
            return True
        for char in alphabet:
            after = tuple(_step(group, places, char) for group, places in zip(groups, state, strict=True))
            if all(after[:-1]) and after not in seen:
                seen.add(after)
                left.append(after)
    return bool(left)


# A place is the number of a pattern and an index into it.
_Places = frozenset[tuple[int, int]]


def _step(group: Sequence[Glob], places: _Places, char: str) -> _Places:
    found = set()
    for number, at in places:
        part = group[number][at] if at < len(group[number]) else None
        if part == char:
            found.add((number, at + 1))
        elif isinstance(part, Wildcard) and char != SEPARATOR:
            found.add((number, at if part is Wildcard.ANY else at + 1))
    return _closed(group, found)


def _closed(group: Sequence[Glob], places: set[tuple[int, int]]) -> _Places:
    """These places, and those after a ``*`` that stands for nothing."""
    left = list(places)
    while left:
        number, at = left.pop()
        if at < len(group[number]) and group[number][at] is Wildcard.ANY and (number, at + 1) not in places:
            places.add((number, at + 1))
            left.append((number, at + 1))
    return frozenset(places)


def _has_end(group: Sequence[Glob], places: _Places) -> bool:
    return any(at == len(group[number]) for number, at in places)
