"""Sizes, durations and secrets: types of the configuration that TOML does not have."""

from __future__ import annotations

import re
from typing import Any


class Size(int):
    """A number of bytes; written as ``"64MiB"``, ``"1.5GB"`` or a plain number."""


class Duration(float):
    """A time in seconds; written as ``"250ms"``, ``"30s"``, ``"5m"``, ``"12h"``, ``"14d"`` or a plain number."""


class Secret(str):
    """Text that is never shown: ``repr`` hides it, and the log redacts it.

    Attributes:
        origin: the text with its references to files and to AWS, from which it can be fetched again; empty if it
            has none.
    """

    origin = ""

    def __repr__(self) -> str:
        return "'***'" if self else "''"


_SIZE_UNITS: dict[str, float] = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_TIME_UNITS: dict[str, float] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
_QUANTITY = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def decode_quantity(kind: type, value: Any) -> Any:
    """The ``dec_hook`` of msgspec for these types.

    Raises:
        ValueError: ``value`` cannot be read as ``kind``.
    """
    if kind is Secret:
        if not isinstance(value, str):
            raise ValueError(kind)
        return Secret(value)
    units = _SIZE_UNITS if kind is Size else _TIME_UNITS
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(kind)
    match = _QUANTITY.fullmatch(str(value))
    if not match:
        raise ValueError(kind)
    unit = match[2].lower() if kind is Size else match[2]
    if unit not in units:
        raise ValueError(kind)
    return kind(float(match[1]) * units[unit])


def format_size(size_bytes: float) -> str:
    """``67108864`` as ``64MiB``; exact if it is a whole number of some unit."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= factor and size_bytes % factor == 0:
            return f"{int(size_bytes // factor)}{unit}"
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f}{unit}"
    return f"{int(size_bytes)}B"


def format_duration(seconds: float) -> str:
    """``1209600.0`` as ``14d``."""
    for unit, factor in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= factor and seconds % factor == 0:
            return f"{int(seconds // factor)}{unit}"
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"
