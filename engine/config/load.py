"""From a TOML file and the environment to a ``Config``, with all problems reported together."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin

import msgspec
from msgspec import NODEFAULT, Struct

from engine.config.contradictions import contradictions
from engine.config.environment import WELL_KNOWN, is_near, near_misses, overrides
from engine.config.expectations import expectation, unwrap
from engine.config.tree import Config
from engine.errors import ConfigError
from engine.quantities import Secret, decode_quantity

OPERATION = "read the configuration"


class InvalidConfigError(ConfigError):
    """The configuration cannot be read.

    Attributes:
        config: as much of it as could be read, with defaults for the rest; it says how to show errors.
    """

    def __init__(self, cause: str, remedy: str, config: Config) -> None:
        super().__init__(OPERATION, cause, remedy)
        self.config = config


class _FromEnvironment(str):
    """A value from the environment: always text, whatever the key's type, so it is converted leniently."""

    __slots__ = ()


class _Missing:
    """Placeholder for a missing value that has already been reported."""


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_S = TypeVar("_S", bound=Struct)


class _Problems:
    """The problems found so far, and the keys whose values cannot be used."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.unread: set[str] = set()

    def add(self, problem: str, *keys: str) -> None:
        """Note a problem, and the keys that have no usable value because of it."""
        self.found.append(problem)
        self.unread.update(keys)


def load(path: Path | None, environ: Mapping[str, str] | None = None) -> Config:
    """Read the file (if any) and the environment.

    Args:
        path: a TOML file, or None to take everything from the environment.
        environ: the environment; the process's own if None.

    Raises:
        InvalidConfigError: with every problem found, each with its path and what is expected.
    """
    environ = os.environ if environ is None else environ
    problems = _Problems()
    variables, misnamed = overrides(environ)
    data: dict[str, Any] = {}
    unreadable = remedy = ""
    try:
        data = _read_file(path) if path else {}
    except ConfigError as error:
        unreadable, remedy = error.cause, error.remedy
    data = _expand(data, "", environ, problems)
    for name, key in variables.items():
        if not _set_path(data, key, _FromEnvironment(environ[name]), replace=True):
            problems.add(f"{name}: {'.'.join(key)} is not a section")
    if not unreadable:
        for problem in near_misses(environ, _without_value(data, environ)):
            problems.add(problem)
    _apply_well_known(data, environ)
    config = _build(Config, data, "", problems)
    found = problems.found + [text for keys, text in contradictions(config) if not problems.unread & {*keys}]
    if unreadable:  # other problems may come from not having read it
        found = [unreadable]
    found += misnamed
    if found:
        where = str(path) if path else "the environment (no --config was given)"
        listing = "".join(f"\n  - {problem}" for problem in found)
        raise InvalidConfigError(f"{len(found)} problem(s) in {where}:{listing}", remedy, config)
    return config


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            OPERATION, f"{path}: {error.strerror}", "Give an existing file with --config."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            OPERATION, f"{path} is not valid TOML: {error}", "See configs/reference.toml."
        ) from error


def _expand(value: Any, path: str, environ: Mapping[str, str], problems: _Problems) -> Any:
    """``value`` with ``${NAME}`` and ``${NAME:-default}`` expanded in all its strings."""
    if isinstance(value, dict):
        return {k: _expand(v, f"{path}.{k}" if path else k, environ, problems) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, f"{path}[{n}]", environ, problems) for n, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    missing = False

    def replace(match: re.Match[str]) -> str:
        nonlocal missing
        name, default = match.groups()
        found = environ.get(name) or default
        if found is None:
            missing = True
            near = [each for each in environ if is_near(each, name)]
            hint = (
                f"did you mean {near[0]}, which is?" if near else f"export {name}, or write ${{{name}:-default}}"
            )
            problems.add(f"{path}: ${{{name}}} is not set; {hint}")
        return found or ""

    text = _FromEnvironment(_VARIABLE.sub(replace, value))
    return _Missing() if missing else text


def _without_value(data: dict[str, Any], environ: Mapping[str, str]) -> dict[str, bool]:
    """For each well-known variable, whether the key that it sets has no value yet and is used at all."""

    def is_set(path: tuple[str, ...]) -> bool:
        section: Any = data
        for part in path:
            if not isinstance(section, dict) or part not in section:
                return False
            section = section[part]
        return True

    source = data.get("source", {})
    watch = source.get("watch", "collections") if isinstance(source, dict) else ""
    is_open = {name: not is_set(path) for name, path in WELL_KNOWN.items()}
    is_open["MONGODB_DATABASE"] &= watch != "deployment"
    is_open["MONGODB_COLLECTIONS"] &= watch == "collections"
    is_open["S3_PREFIX"] &= bool(environ.get("S3_BUCKET"))
    return is_open


def _apply_well_known(data: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Set keys that have no value yet from the variables that other tools use too."""
    values = {name: value for name in WELL_KNOWN if (value := environ.get(name))}
    prefix = values.pop("S3_PREFIX", "").strip("/")
    if bucket := values.pop("S3_BUCKET", ""):
        values["S3_BUCKET"] = f"s3://{bucket}/{prefix}".rstrip("/")
    for name, value in values.items():
        _set_path(data, WELL_KNOWN[name], _FromEnvironment(value), replace=False)


def _set_path(data: dict[str, Any], path: tuple[str, ...], value: Any, *, replace: bool) -> bool:
    """Set a key; False if a part of its path is not a section."""
    section: Any = data
    for part in path[:-1]:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            return False
    if replace or path[-1] not in section:
        section[path[-1]] = value
    return True


def _build(kind: type[_S], data: Any, path: str, problems: _Problems) -> _S:
    """The struct of ``data``; an unreadable value is noted, and replaced by its default or an empty one."""
    fields = {each.name: each for each in msgspec.structs.fields(kind)}
    if not isinstance(data, Mapping):
        problems.add(f"{path}: expected a section [{path}], got {_shown(data)}")
        problems.unread.update(f"{path}.{name}" for name in fields)
        data = {name: _Missing() for name in fields}
    values: dict[str, Any] = {}
    for key in data:
        if key not in fields:
            _note_unknown_key(key, path, list(fields), problems)
    for name, each in fields.items():
        at = f"{path}.{name}" if path else name
        if isinstance(each.type, type) and issubclass(each.type, Struct):
            values[name] = _build(each.type, data.get(name, {}), at, problems)
            continue
        value = data.get(name, NODEFAULT)
        if value is not NODEFAULT:
            value = _convert(value, each.type, at, problems)
        elif each.required and at not in problems.unread:
            problems.add(f"{at}: missing; {expectation(each.type)}", at)
        if value is not NODEFAULT or each.required:
            values[name] = unwrap(each.type)[0]() if value is NODEFAULT else value
    return kind(**values)


def _note_unknown_key(key: str, path: str, known: list[str], problems: _Problems) -> None:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
    at = f"{path}." if path else ""
    # The key that was probably meant should not be reported as missing as well.
    problems.add(f"{at}{key}: unknown key; {hint}", *(f"{at}{each}" for each in close))


def _convert(value: Any, annotation: Any, path: str, problems: _Problems) -> Any:
    """The value as the key's type; ``NODEFAULT`` if it cannot be converted."""
    if _is_incomplete(value):
        problems.unread.add(path)
        return NODEFAULT
    lenient = isinstance(value, _FromEnvironment)
    if lenient:
        value = _parse_text(str(value), unwrap(annotation)[0])
    try:
        result = msgspec.convert(value, annotation, strict=not lenient, dec_hook=decode_quantity)
    except msgspec.ValidationError:
        problems.add(f"{path}: got {_shown(value, annotation)}; {expectation(annotation)}", path)
        return NODEFAULT
    minimum = unwrap(annotation)[1].get("min")
    if minimum is not None and result < minimum:
        problems.add(f"{path}: got {_shown(value)}; {expectation(annotation)}", path)
        return NODEFAULT
    return result


def _is_incomplete(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_is_incomplete, value.values() if isinstance(value, dict) else value))
    return isinstance(value, _Missing)


def _parse_text(text: str, base: Any) -> Any:
    """Text from the environment for a list or a table: TOML syntax, or a comma-separated list."""
    if get_origin(base) not in (list, dict):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return [part.strip() for part in text.split(",") if part.strip()]


def _shown(value: Any, annotation: Any = None) -> str:
    if unwrap(annotation)[0] is Secret:
        return f"a {type(value).__name__}"
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "..."
