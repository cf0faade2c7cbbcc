"""The reference, generated from the code: ``configs/reference.toml``, and the tables of keys, metrics and records.

``python -m engine.commands.reference`` writes them; tests fail until it has been run.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from msgspec import NODEFAULT, Struct
from msgspec.structs import FieldInfo

from engine.config.expectations import expectation, keys_of, unwrap
from engine.config.tree import Config
from engine.core import lifecycle, records
from engine.quantities import Duration, Size, format_duration, format_size
from engine.supervisor.metrics import metrics_markdown

_E = TypeVar("_E", bound=Enum)
ROOT = Path(__file__).parents[2]
CONFIGURATION, OPERATIONS = ROOT / "configs" / "README.md", ROOT / "configs" / "OPERATIONS.md"
PROTOCOL = ROOT / "engine" / "core" / "PROTOCOL.md"


def _sections(kind: type[Struct], path: str = "") -> Iterator[tuple[str, type[Struct], list[FieldInfo]]]:
    fields = keys_of(kind)
    plain = [field for field in fields if not _is_section(field)]
    if plain:
        yield path, kind, plain
    for field in fields:
        if _is_section(field):
            yield from _sections(field.type, f"{path}.{field.name}" if path else field.name)


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.type, type) and issubclass(field.type, Struct)


def _default(field: FieldInfo) -> Any:
    if field.default is not NODEFAULT:
        return field.default
    return field.default_factory() if field.default_factory is not NODEFAULT else NODEFAULT


def _toml(value: Any) -> str:
    if isinstance(value, Size):
        return f'"{format_size(value)}"'
    if isinstance(value, Duration):
        return f'"{format_duration(value)}"'
    return "{}" if value == {} else json.dumps(str(value) if isinstance(value, str) else value)


def _meaning(field: FieldInfo) -> str:
    """The key's description, with the values that it takes if they are not obvious."""
    base, facts = unwrap(field.type)
    text = str(facts["description"])
    if isinstance(base, type) and issubclass(base, str):
        return text
    return f"{text} Takes {expectation(field.type).removeprefix('expected ')}."


def reference_toml() -> str:
    """Every key with its default, its description, and the values that it takes."""
    lines = [
        "# Every key of Headrace, with its default. Generated from the code: python -m engine.commands.reference",
        "#",
        "# ${NAME} and ${NAME:-default} are taken from the environment, where any key can also be set as",
        "# HEADRACE_SECTION__KEY; ${file:/path} is the content of a file, and ${aws:secret-id} a secret of AWS",
        "# Secrets Manager.",
    ]
    for path, kind, fields in _sections(Config):
        lines += ["", f"# {(kind.__doc__ or '').strip()}", f"[{path}]"]
        for field in fields:
            default = _default(field)
            lines += textwrap.wrap(_meaning(field), 110, initial_indent="# ", subsequent_indent="# ")
            lines.append(
                f"# {field.name} =    (required)" if default is NODEFAULT else f"{field.name} = {_toml(default)}"
            )
    return "\n".join(lines) + "\n"


def reference_markdown() -> str:
    """The same as a table."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for path, _, fields in _sections(Config):
        for field in fields:
            default = _default(field)
            shown = "*required*" if default is NODEFAULT else f"`{_toml(default)}`"
            text = _meaning(field).replace("|", "\\|")
            lines.append(f"| `{path}.{field.name}` | {shown} | {text} |")
    return "\n".join(lines) + "\n"


def with_table(document: str, name: str, table: str) -> str:
    """A document with the table inserted between the two markers of this name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = document.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{table}{end}{after}"


def configuration_with_reference(document: str) -> str:
    """The document on the configuration with the table of all keys."""
    return with_table(document, "reference", reference_markdown())


def operations_with_metrics(document: str) -> str:
    """The document on operations with the table of all metrics."""
    return with_table(document, "metrics", metrics_markdown())


def protocol_with_tables(document: str) -> str:
    """The document on the protocol with the tables of a stream's life, and of a record's fields.

    What the stages and the fields mean is in the docstrings of their modules.
    """
    rows = re.findall(r"^\|.*\n", records.__doc__ or "", re.MULTILINE)
    document = with_table(document, "record", "".join(rows).replace("``", "`"))
    stages = re.findall(r"^    ([A-Z]+) +(.*)$", lifecycle.__doc__ or "", re.MULTILINE)
    table = ["| stage | the stream waits, or is at work |", "|---|---|"]
    table += [f"| {name} | {meaning} |" for name, meaning in stages]
    table += ["", "| event | lease | stage |", "|---|---|---|"]
    for event, (leases, found) in lifecycle.TRANSITIONS.items():
        table.append(f"| {event} | {_moves(leases)} | {_moves(found)} |")
    return with_table(document, "lifecycle", "\n".join(table) + "\n")


def _moves(table: Mapping[_E, _E]) -> str:
    """What leads where, in the order of the targets; sources with one target together."""
    kind = type(next(iter(table)))
    if dict(table) == {each: each for each in kind}:
        return "any"
    moves = [target.name for target in kind if table.get(target) is target]
    for target in kind:
        if sources := [each.name for each in kind if table.get(each) is target and each is not target]:
            moves.append(f"{', '.join(sources)} → {target.name}")
    return "; ".join(moves)


def main() -> None:
    """Write them all."""
    (ROOT / "configs" / "reference.toml").write_text(reference_toml())
    CONFIGURATION.write_text(configuration_with_reference(CONFIGURATION.read_text()))
    OPERATIONS.write_text(operations_with_metrics(OPERATIONS.read_text()))
    PROTOCOL.write_text(protocol_with_tables(PROTOCOL.read_text()))


if __name__ == "__main__":
    main()
