"""From a TOML file and the environment to a ``Config``, with every problem reported in one go."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Struct

from engine.config.quantities import Duration, Secret, Size, decode_quantity, format_duration, format_size
from engine.config.tree import Config, parse_start
from engine.core.schema import parse_type
from engine.errors import ConfigError

ENV_PREFIX = "HEADRACE_"
OPERATION = "read the configuration"


class _FromEnvironment(str):
    """A value that came through the environment: text whatever the key's type is, so it is read leniently."""

    __slots__ = ()


_WELL_KNOWN: dict[str, tuple[str, ...]] = {
    "MONGODB_URI": ("source", "uri"),
    "MONGODB_DATABASE": ("source", "database"),
    "MONGODB_COLLECTIONS": ("source", "collections"),
    "BATCH_SIZE": ("batch", "rows"),
    "AWS_REGION": ("sink", "s3", "region"),
    "REDIS_URL": ("state", "url"),
}
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_Problems = list[str]
_S = TypeVar("_S", bound=Struct)


def load(path: Path | None, environ: Mapping[str, str] | None = None) -> Config:
    """Read the file (if any) and the environment.

    Args:
        path: a TOML file, or None to take everything from the environment.
        environ: the environment; the process's own when None.

    Raises:
        ConfigError: with every problem found, each with its path and what would be right.
    """
    environ = os.environ if environ is None else environ
    problems: _Problems = []
    data = _expand(_read_file(path), "", environ, problems) if path else {}
    _apply_well_known(data, environ)
    _apply_overrides(data, environ, problems)
    config = _build(Config, data, "", problems)
    if config is not None and not problems:
        problems += _contradictions(config)
    if problems or config is None:
        where = str(path) if path else "the environment (no --config was given)"
        listing = "".join(f"\n  - {problem}" for problem in problems)
        raise ConfigError(OPERATION, f"{len(problems)} problem(s) in {where}:{listing}")
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
    """``value`` with ``${NAME}`` and ``${NAME:-default}`` replaced in all its strings."""
    if isinstance(value, dict):
        return {k: _expand(v, f"{path}.{k}" if path else k, environ, problems) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, f"{path}[{n}]", environ, problems) for n, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = environ.get(name) or default
        if found is None:
            problems.append(f"{path}: ${{{name}}} is not set; export {name}, or write ${{{name}:-default}}")
            return ""
        return found

    return _FromEnvironment(_VARIABLE.sub(replace, value))


def _apply_well_known(data: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Fill what the file leaves open from the variables that other tools use too."""
    for name, path in _WELL_KNOWN.items():
        if value := environ.get(name):
            _set_path(data, path, _FromEnvironment(value), replace=False)
    if bucket := environ.get("S3_BUCKET"):
        prefix = environ.get("S3_PREFIX", "").strip("/")
        url = f"s3://{bucket}/{prefix}".rstrip("/")
        _set_path(data, ("sink", "url"), _FromEnvironment(url), replace=False)


def _apply_overrides(data: dict[str, Any], environ: Mapping[str, str], problems: _Problems) -> None:
    """``HEADRACE_SECTION__KEY`` wins over everything else."""
    for name, value in sorted(environ.items()):
        if name.startswith(ENV_PREFIX) and "__" in name:
            path = tuple(part.lower() for part in name.removeprefix(ENV_PREFIX).split("__"))
            try:
                _set_path(data, path, _FromEnvironment(value), replace=True)
            except TypeError:
                problems.append(f"{name}: {'.'.join(path)} is not a section")


def _set_path(data: dict[str, Any], path: tuple[str, ...], value: Any, *, replace: bool) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise TypeError(part)
    if replace or path[-1] not in data:
        data[path[-1]] = value


def _build(kind: type[_S], data: Any, path: str, problems: _Problems) -> _S | None:
    """The struct of ``data``, or None when something below is wrong; the problems say what."""
    if not isinstance(data, Mapping):
        problems.append(f"{path}: expected a section [{path}], got {_shown(data)}")
        return None
    fields = {each.name: each for each in msgspec.structs.fields(kind)}
    values: dict[str, Any] = {}
    before = len(problems)
    for key in data:
        if key not in fields:
            problems.append(_unknown_key(key, path, list(fields)))
    for name, each in fields.items():
        at = f"{path}.{name}" if path else name
        if isinstance(each.type, type) and issubclass(each.type, Struct):
            if name in data or each.required:
                values[name] = _build(each.type, data.get(name, {}), at, problems)
        elif name in data:
            values[name] = _convert(data[name], each.type, at, problems)
        elif each.required:
            problems.append(f"{at}: missing; {expectation(each.type)}")
    return kind(**values) if len(problems) == before else None


def _unknown_key(key: str, path: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
    return f"{path}.{key}: unknown key; {hint}" if path else f"{key}: unknown key; {hint}"


def _convert(value: Any, annotation: Any, path: str, problems: _Problems) -> Any:
    lenient = isinstance(value, _FromEnvironment)
    if lenient:
        value = _parse_text(str(value), unwrap(annotation)[0])
    try:
        result = msgspec.convert(value, annotation, strict=not lenient, dec_hook=decode_quantity)
    except msgspec.ValidationError:
        problems.append(f"{path}: got {_shown(value, annotation)}; {expectation(annotation)}")
        return None
    least = unwrap(annotation)[1].get("min")
    if least is not None and result < least:
        problems.append(f"{path}: got {_shown(value)}; {expectation(annotation)}")
    return result


def _parse_text(text: str, base: Any) -> Any:
    """Text from the environment for a list or a table: TOML syntax, or a plain comma list."""
    if get_origin(base) not in (list, dict):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return [part.strip() for part in text.split(",") if part.strip()]


def unwrap(annotation: Any) -> tuple[Any, dict[str, Any]]:
    """The type inside ``Annotated``, and what its ``Meta`` says: ``description``, ``min``, ``ge``, ``le``."""
    if get_origin(annotation) is not Annotated:
        return annotation, {}
    base, *metas = get_args(annotation)
    facts: dict[str, Any] = {}
    for meta in metas:
        facts |= {name: getattr(meta, name) for name in ("description", "ge", "le", "min_length")}
        facts |= meta.extra or {}
    return base, {name: fact for name, fact in facts.items() if fact is not None}


def expectation(annotation: Any) -> str:
    """What would be right for a key, in words: ``"expected an integer from 1 to 64"``."""
    base, facts = unwrap(annotation)
    if get_origin(base) is Literal:
        return "expected one of " + ", ".join(f'"{choice}"' for choice in get_args(base))
    if base is Size:
        least = f", at least {format_size(facts['min'])}" if "min" in facts else ""
        return f'expected a size such as "64MiB"{least}'
    if base is Duration:
        least = f", at least {format_duration(facts['min'])}" if "min" in facts else ""
        return f'expected a time such as "30s" or "5m"{least}'
    if base is int:
        low, high = facts.get("ge"), facts.get("le")
        bounds = f" from {low} to {high}" if high is not None else f" of at least {low}" if low is not None else ""
        return f"expected an integer{bounds}"
    if base is bool:
        return "expected true or false"
    if isinstance(base, type) and issubclass(base, str):
        return "expected a text" + (" that is not empty" if facts.get("min_length") else "")
    origin = get_origin(base)
    if origin is list:
        return "expected a list of texts" if get_args(base)[0] is str else "expected a list of tables"
    assert origin is dict, base
    return f"expected a table of {'integers' if get_args(base)[1] is int else 'texts'}"


def _shown(value: Any, annotation: Any = None) -> str:
    if unwrap(annotation)[0] is Secret:
        return f"a {type(value).__name__}"
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _contradictions(config: Config) -> _Problems:
    """What is wrong between keys, each of which is right alone."""
    source, found = config.source, []
    if not re.match(r"mongodb(\+srv)?://", source.uri):
        found.append("source.uri: expected mongodb:// or mongodb+srv://")
    if source.watch != "deployment" and not source.database:
        found.append(f'source.database: missing; needed for watch = "{source.watch}"')
    if source.watch == "collections" and not source.collections:
        found.append('source.collections: missing; name them, or set source.watch = "database"')
    if source.watch != "collections" and (source.collections or source.split):
        found.append(f'source.collections, source.split: not used with watch = "{source.watch}"; remove them')
    found += [
        f"source.split: {name} is not in source.collections"
        for name in source.split
        if source.watch == "collections" and name not in source.collections
    ]
    found += [
        f"source.split.{name}: expected an integer of at least 1"
        for name, parts in source.split.items()
        if parts < 1
    ]
    if len(set(source.collections)) < len(source.collections):
        found.append("source.collections: a name stands there twice")
    try:
        parse_start(source.start)
    except ValueError:
        found.append(
            f'source.start: got {source.start!r}; expected "now", "snapshot", "earliest", or an RFC 3339 time '
            'such as "2026-05-01T00:00:00Z"'
        )
    for key, text in config.schema.overrides.items():
        try:
            parse_type(text)
        except ValueError as error:
            found.append(f"schema.overrides.{key!r}: {error}")
        if "." not in key.strip("."):
            found.append(f"schema.overrides.{key!r}: expected <collection>.<field>")
    if "://" not in config.sink.url:
        found.append("sink.url: expected a URL such as s3://bucket/prefix or file:///data/lake")
    if config.sink.format != "parquet" and config.sink.compression in ("snappy", "lz4"):
        found.append(f'sink.compression: {config.sink.format} takes "zstd", "gzip" or "none"')
    if config.sink.compression == "gzip" and config.sink.compression_level > 9:
        found.append("sink.compression_level: gzip takes 1 to 9")
    if not re.match(r"(redis|rediss|unix|redis\+sentinel|rediss\+sentinel|sqlite)://", config.state.url):
        found.append("state.url: expected redis://, rediss://, redis+sentinel:// or sqlite://")
    if config.telemetry.listen and not re.fullmatch(r".*:\d{1,5}", config.telemetry.listen):
        found.append('telemetry.listen: expected "host:port", or "" for none')
    return found
