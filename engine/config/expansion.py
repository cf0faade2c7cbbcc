"""``${...}`` in the strings of a configuration: variables of the environment, files, and secrets of AWS.

What comes from a file or from AWS is a secret, whatever key it is for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine.config.environment import OF_FILE, is_near, is_set_twice, value_of
from engine.config.secrets import from_aws, from_file
from engine.errors import ConfigError
from engine.quantities import Secret

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_SECRET = re.compile(r"\$\{(file|aws):([^}]*)\}")


def fetched_again(text: str) -> tuple[Secret, list[Secret]]:
    """A text with the files and secrets of AWS that it refers to, and these one by one.

    Raises:
        ConfigError: one of them cannot be had; the cause names it.
    """
    parts: list[Secret] = []

    def replace(match: re.Match[str]) -> str:
        try:
            parts.append(_fetch(*match.groups()))
        except ConfigError as error:
            raise ConfigError(error.operation, f"{match[0]}: {error.cause}", error.remedy) from None
        return parts[-1]

    return Secret(_SECRET.sub(replace, text)), parts


def _fetch(source: str, reference: str) -> Secret:
    return Secret(from_file(reference) if source == "file" else from_aws(reference))


class FromEnvironment(str):
    """A value from the environment: always text, whatever the key's type, so it is converted leniently.

    Attributes:
        origin: the text with its references to files and to AWS; empty if it has none.
    """

    origin = ""


class Missing:
    """Placeholder for a missing value that has already been reported."""


class Problems:
    """The problems found so far, and the keys whose values cannot be used."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.unread: set[str] = set()

    def add(self, problem: str, *keys: str) -> None:
        """Note a problem, and the keys that have no usable value because of it."""
        self.found.append(problem)
        self.unread.update(keys)


class Expansion:
    """Expands strings.

    State:
        secrets: what came from files and from AWS, each fetched once.
    """

    def __init__(self, environ: Mapping[str, str], problems: Problems) -> None:
        self._environ = environ
        self._problems = problems
        self._known: dict[str, Secret] = {}

    @property
    def secrets(self) -> list[Secret]:
        """What came from files and from AWS."""
        return list(self._known.values())

    def expand(self, value: Any, path: str = "") -> Any:
        """``value`` with all ``${...}`` in all its strings expanded."""
        if isinstance(value, dict):
            return {k: self.expand(v, f"{path}.{k}" if path else k) for k, v in value.items()}
        if isinstance(value, list):
            return [self.expand(v, f"{path}[{n}]") for n, v in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        missing = False

        def replace(match: re.Match[str]) -> str:
            nonlocal missing
            name, default = match.groups()
            found = self.text_of(name, path) or default
            missing |= found is None
            if found is None:
                self._note_missing(path, name)
            return found or ""

        text = _VARIABLE.sub(replace, value)
        return Missing() if missing else self.fetched(text, path)

    def text_of(self, name: str, path: str) -> str:
        """The text of a variable that the key at ``path`` is set to, or refers to; empty if it is not set."""
        if is_set_twice(self._environ, name):
            self._problems.add(f"{path}: both {name} and {name}{OF_FILE} are set; unset one of them", path)
        return value_of(self._environ, name)

    def fetched(self, text: str, path: str) -> FromEnvironment | Missing:
        """A text with the files and secrets that it refers to."""
        missing = False

        def replace(match: re.Match[str]) -> str:
            nonlocal missing
            try:
                return self._fetch(match[0], *match.groups())
            except ConfigError as error:
                missing = True
                self._problems.add(f"{path}: {match[0]}: {error.cause}. {error.remedy}", path)
                return ""

        value = FromEnvironment(_SECRET.sub(replace, text))
        if value != text:
            value.origin = text
        return Missing() if missing else value

    def _fetch(self, whole: str, source: str, reference: str) -> Secret:
        if whole not in self._known:
            self._known[whole] = _fetch(source, reference)
        return self._known[whole]

    def _note_missing(self, path: str, name: str) -> None:
        near = [each for each in self._environ if is_near(each, name)]
        hint = f"did you mean {near[0]}, which is?" if near else f"export {name}, or write ${{{name}:-default}}"
        self._problems.add(f"{path}: ${{{name}}} is not set; {hint}")
