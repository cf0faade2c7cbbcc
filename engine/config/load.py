"""From a TOML file and the environment to a ``Config``, with all problems reported together."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin

import msgspec
from msgspec import NODEFAULT, Struct, structs

from engine.config.contradictions import contradictions
from engine.config.environment import WELL_KNOWN, near_misses, overrides, value_of
from engine.config.expansion import Expansion, FromEnvironment, Missing, Problems
from engine.config.expectations import expectation, keys_of, unwrap
from engine.config.tree import Config, SinkConfig, SourceConfig
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


_S = TypeVar("_S", bound=Struct)


def load(path: Path | None, environ: Mapping[str, str] | None = None) -> Config:
    """Read the file (if any) and the environment.

    Args:
        path: a TOML file, or None to take everything from the environment.
        environ: the environment; the process's own if None.

    Raises:
        InvalidConfigError: with every problem found, each with its path and what is expected.
    """
    environ = os.environ if environ is None else environ
    problems = Problems()
    variables, misnamed = overrides(environ)
    data: dict[str, Any] = {}
    unreadable = remedy = ""
    try:
        data = _read_file(path) if path else {}
    except ConfigError as error:
        unreadable, remedy = error.cause, error.remedy
    expansion = Expansion(environ, problems)
    data = expansion.expand(data)
    for name, key in variables.items():
        at = ".".join(key)
        value = expansion.fetched(expansion.text_of(name, at), at)
        if not _set_path(data, key, value, replace=True):
            problems.add(f"{name}: {at} is not a section")
    if not unreadable:
        for problem in near_misses(environ, _without_value(data, environ)):
            problems.add(problem)
    _apply_well_known(data, environ, expansion)
    config = structs.replace(_build(Config, data, "", problems), fetched=tuple(expansion.secrets))
    if config.table.format != "none" and not _is_set(data, ("sink", "partition_by")):
        config = structs.replace(config, sink=structs.replace(config.sink, partition_by="table"))
    found = problems.found + [text for keys, text in contradictions(config) if not problems.unread & {*keys}]
    if unreadable:  # other problems may come from not having read it
        found = [unreadable]
    found += misnamed
    if found:
        where = str(path) if path else "the environment (no --config was given)"
        listing = "".join(f"\n  - {problem}" for problem in found)
        raise InvalidConfigError(f"{len(found)} problem(s) in {where}:{listing}", remedy, config)
    return config


def unconfigured() -> Config:
    """A configuration for what needs none: defaults, without a source or a sink."""
    return Config(SourceConfig(Secret("")), SinkConfig(""))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            OPERATION, f"{path}: {error.strerror}", "Give an existing file with --config."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            OPERATION, f"{path} is not valid TOML: {error}", "See `headrace docs reference`."
        ) from error


def _without_value(data: dict[str, Any], environ: Mapping[str, str]) -> dict[str, bool]:
    """For each well-known variable, whether the key that it sets has no value yet and is used at all."""
    source = data.get("source", {})
    watch = source.get("watch", "collections") if isinstance(source, dict) else ""
    is_open = {name: not _is_set(data, path) for name, path in WELL_KNOWN.items()}
    is_open["MONGODB_DATABASE"] &= watch != "deployment"
    is_open["MONGODB_COLLECTIONS"] &= watch == "collections"
    is_open["S3_PREFIX"] &= bool(value_of(environ, "S3_BUCKET"))
    return is_open


def _is_set(data: dict[str, Any], path: tuple[str, ...]) -> bool:
    section: Any = data
    for part in path:
        if not isinstance(section, dict) or part not in section:
            return False
        section = section[part]
    return True


def _apply_well_known(data: dict[str, Any], environ: Mapping[str, str], expansion: Expansion) -> None:
    """Set keys that have no value yet from the variables that other tools use too."""
    for name, key in WELL_KNOWN.items():
        if name == "S3_PREFIX" or _is_set(data, key) or not value_of(environ, name):
            continue
        at = ".".join(key)
        text = expansion.text_of(name, at)
        if name == "S3_BUCKET":
            prefix = expansion.text_of("S3_PREFIX", at).strip("/")
            text = f"s3://{text}/{prefix}".rstrip("/")
        _set_path(data, key, expansion.fetched(text, at), replace=False)


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


def _build(kind: type[_S], data: Any, path: str, problems: Problems) -> _S:
    """The struct of ``data``; an unreadable value is noted, and replaced by its default or an empty one."""
    fields = {each.name: each for each in keys_of(kind)}
    if not isinstance(data, Mapping):
        problems.add(f"{path}: expected a section [{path}], got {_shown(data)}")
        problems.unread.update(f"{path}.{name}" for name in fields)
        data = {name: Missing() for name in fields}
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


def _note_unknown_key(key: str, path: str, known: list[str], problems: Problems) -> None:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
    at = f"{path}." if path else ""
    # The key that was probably meant should not be reported as missing as well.
    problems.add(f"{at}{key}: unknown key; {hint}", *(f"{at}{each}" for each in close))


def _convert(value: Any, annotation: Any, path: str, problems: Problems) -> Any:
    """The value as the key's type; ``NODEFAULT`` if it cannot be converted."""
    if _is_incomplete(value):
        problems.unread.add(path)
        return NODEFAULT
    lenient = isinstance(value, FromEnvironment)
    origin = value.origin if isinstance(value, FromEnvironment) else ""
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
    if isinstance(result, Secret):
        result.origin = origin
    return result


def _is_incomplete(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_is_incomplete, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Missing)


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
