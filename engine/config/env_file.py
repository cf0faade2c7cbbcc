"""Files of environment variables, as ``docker run`` and compose take them: ``--env-file``.

The format is that of python-dotenv: ``NAME=value``, optionally after ``export``, with comments and quotes. What it
cannot parse is refused here, and nothing is substituted: ``${...}`` in a value means what it means in a variable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dotenv.parser import parse_stream

from engine.errors import ConfigError

_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_FORMAT = "Write one NAME=value per line; a value with spaces or # needs quotes."


def read_env_files(paths: Sequence[Path], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of these files that ``environ`` does not have; of two files, the later one counts.

    Raises:
        ConfigError: a file cannot be read, or a line has no variable; the value is not shown.
    """
    found: dict[str, str] = {}
    for path in paths:
        found |= _read(path, environ)
    return {name: value for name, value in found.items() if name not in environ}


def _read(path: Path, environ: Mapping[str, str]) -> dict[str, str]:
    operation = f"read the variables in {path}"
    try:
        with path.open(encoding="utf-8") as file:
            bindings = list(parse_stream(file))
    except OSError as error:
        raise ConfigError(operation, str(error.strerror), "Give an existing file with --env-file.") from error
    except UnicodeDecodeError:  # its message would show some of the bytes
        raise ConfigError(operation, "the file is not text in UTF-8", _FORMAT) from None
    found: dict[str, str] = {}
    for each in bindings:
        name, value = each.key, each.value
        text = each.original.string  # with the empty lines before it
        line = each.original.line + text[: len(text) - len(text.lstrip())].count("\n")
        if each.error or (name is not None and not _NAME.fullmatch(name)):
            raise ConfigError(operation, f"line {line} cannot be parsed", _FORMAT)
        if name is None:  # a comment, or nothing
            continue
        if value is not None:
            found[name] = value
        elif name not in environ:  # as docker run has it, a name alone takes the value from the environment
            cause = f"line {line} gives {name} no value, and it is not in the environment"
            raise ConfigError(operation, cause, f"Write {name}= and the value.")
    return found
