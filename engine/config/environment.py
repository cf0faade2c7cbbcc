"""The environment's part of the configuration: which variables set keys, and which are near misses of one.

``NAME_FILE=/path`` is ``NAME=${file:/path}``, as images of other programs have it for secrets.

A misspelled variable would be ignored silently, and a default used in its place. Every ``HEADRACE_...`` is ours,
so one that is not a key is refused. The other names are shared with other tools: a near miss of one is refused
only if the right name would have had an effect, and only if it is one typo away.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_origin

from msgspec import Struct

from engine.config.expectations import keys_of, unwrap
from engine.config.tree import Config
from engine.failpoints import VARIABLE as FAILPOINT

PREFIX = "HEADRACE_"
OF_FILE = "_FILE"
Path = tuple[str, ...]

# These set keys that the file does not.
WELL_KNOWN: dict[str, Path] = {
    "MONGODB_URI": ("source", "uri"),
    "MONGODB_DATABASE": ("source", "database"),
    "MONGODB_COLLECTIONS": ("source", "collections"),
    "BATCH_SIZE": ("batch", "rows"),
    "AWS_REGION": ("sink", "s3", "region"),
    "REDIS_URL": ("state", "url"),
    "S3_BUCKET": ("sink", "url"),
    "S3_PREFIX": ("sink", "url"),
}
# AWS has other names that look like this one, such as AWS_DEFAULT_REGION.
_WITHOUT_NEAR_MISSES = {"AWS_REGION"}
# Ours, but not keys: used by the tests and by scripts/.
_NO_KEYS = {FAILPOINT, "HEADRACE_VENV"}


def value_of(environ: Mapping[str, str], name: str) -> str:
    """The variable's value, or a reference to the file that ``<name>_FILE`` names; empty if neither is set."""
    file = environ.get(name + OF_FILE, "")
    return environ.get(name, "") or (f"${{file:{file}}}" if file else "")


def is_set_twice(environ: Mapping[str, str], name: str) -> bool:
    """Whether both the variable and ``<name>_FILE`` are set, and it is not clear which one counts."""
    return bool(environ.get(name) and environ.get(name + OF_FILE))


def overrides(environ: Mapping[str, str]) -> tuple[dict[str, Path], list[str]]:
    """The variables that set keys, with the key of each, and problems with our other variables.

    One that is set by the name of a file is returned under its own name.
    """
    keys = {PREFIX + "__".join(path).upper(): is_table for path, is_table in _leaves(Config)}
    found: dict[str, Path] = {}
    problems: list[str] = []
    for name in sorted(environ):
        if not name.upper().startswith(PREFIX) or name in _NO_KEYS or _is_of_a_service(name, environ):
            continue
        upper = name.upper()
        in_file = upper not in keys and upper.removesuffix(OF_FILE) in keys
        is_key = in_file or upper in keys
        is_key |= any(upper.startswith(f"{key}__") for key, is_table in keys.items() if is_table)
        if is_key and name.startswith(PREFIX):
            own = name[: -len(OF_FILE)] if in_file else name
            found[own] = tuple(part.lower() for part in own.removeprefix(PREFIX).split("__"))
        else:
            problems.append(f"{name}: no such key; {_hint(name, keys)}")
    return found, problems


def near_misses(environ: Mapping[str, str], is_open: Mapping[str, bool]) -> Iterator[str]:
    """Problems with variables that were probably meant to be well-known ones.

    Args:
        is_open: for each well-known variable, whether it would have an effect if it were set.
    """
    for known in WELL_KNOWN.keys() - _WITHOUT_NEAR_MISSES:
        if not is_open[known] or value_of(environ, known):
            continue
        for name, value in environ.items():
            if value and name not in WELL_KNOWN and is_near(name, known):
                yield f"{name}: not read; did you mean {known}?"


def is_near(name: str, known: str) -> bool:
    """Whether the two differ only in case, separators, a plural, ``MONGO`` for ``MONGODB``, and one typo.

    A typo is an extra, missing or wrong letter, or two swapped ones, but not in the first letter (``PATCH_SIZE``
    is another word) or in a digit (``REDIS_URL_2`` is another server).
    """
    one, other = _bare(name), _bare(known)
    if one[:1] != other[:1] or _digits(one) != _digits(other):
        return False
    while one and one[:1] == other[:1]:
        one, other = one[1:], other[1:]
    while one and one[-1:] == other[-1:]:
        one, other = one[:-1], other[:-1]
    return max(len(one), len(other)) <= 1 or (len(one) == 2 and one == other[::-1])


def closest(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant; empty for none."""
    names = list(known)
    same = [each for each in names if _bare(each) == _bare(name)]
    return next(iter(same or difflib.get_close_matches(name.upper(), names, n=1, cutoff=0.75)), "")


def _hint(name: str, keys: Iterable[str]) -> str:
    near = closest(name, keys)
    if near:
        return f"did you mean {near}?"
    return "keys are set as HEADRACE_SECTION__KEY (two underscores before each key), see `headrace docs reference`"


def _bare(name: str) -> str:
    bare = "".join(letter for letter in name.upper() if letter.isalnum())
    return bare.replace("MONGODB", "MONGO").removesuffix("S")


def _digits(name: str) -> str:
    return "".join(filter(str.isdigit, name))


def _is_of_a_service(name: str, environ: Mapping[str, str]) -> bool:
    """Whether Kubernetes set it for a Service: one named ``headrace`` gives each pod HEADRACE_PORT and more.

    See https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables.
    """
    hosts = (each for each in environ if each.startswith(PREFIX) and each.endswith("_SERVICE_HOST"))
    services = [each.removesuffix("_SERVICE_HOST") for each in hosts]
    return any(name.startswith((f"{each}_SERVICE_", f"{each}_PORT")) for each in services)


def _leaves(kind: type[Struct], path: Path = ()) -> Iterator[tuple[Path, bool]]:
    """Every key, and whether it takes a table."""
    for field in keys_of(kind):
        base: Any = unwrap(field.type)[0]
        if isinstance(base, type) and issubclass(base, Struct):
            yield from _leaves(base, (*path, field.name))
        else:
            yield (*path, field.name), get_origin(base) is dict
