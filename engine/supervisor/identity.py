"""What an engine says of itself in the first line of its log."""

from __future__ import annotations

import os
import platform
import socket
from typing import Any

import msgspec
from msgspec import NODEFAULT, Struct

from engine import __version__
from engine.config import Config, Secret
from engine.config.expectations import keys_of
from engine.errors import url_without_password
from engine.owner import this_owner
from engine.quantities import Duration, Size, format_duration, format_size


def first_line(config: Config) -> dict[str, Any]:
    """The fields of the first line: version, identity, servers, and the keys that the configuration has set."""
    addresses = {"mongodb": config.source.uri, "sink": config.sink.url, "state": config.state.url}
    return {
        "version": __version__,
        "engine": this_owner(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "servers": {name: url_without_password(url) for name, url in addresses.items()},
        "config": changed(config),
    }


def changed(section: Struct) -> dict[str, Any]:
    """The keys of a section that differ from their defaults, in its nesting; secrets are not shown."""
    found: dict[str, Any] = {}
    for field in keys_of(type(section)):
        value = getattr(section, field.name)
        if isinstance(value, Struct):
            found |= {field.name: inner} if (inner := changed(value)) else {}
        elif value != _default(field):
            found[field.name] = _shown(value)
    return found


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default_factory() if field.default_factory is not NODEFAULT else field.default


def _shown(value: Any) -> Any:
    if isinstance(value, Secret):
        return url_without_password(value) if "://" in value else "***"
    if isinstance(value, Size):
        return format_size(value)
    return format_duration(value) if isinstance(value, Duration) else value
