"""The compiled inner loops of decoding, where an installation has them.

They are built from ``_native.c`` when the package is installed and a C compiler is there; otherwise ``library`` is
None, and numpy and plain Python compute the same, more slowly. Who calls them looks at ``library`` each time, so
that tests hold both ways to the same results.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from engine.rawbson import elements

PAYLOADS: dict[int, np.dtype[Any]] = {
    elements.DOUBLE: np.dtype("<f8"),
    elements.OBJECT_ID: np.dtype("V12"),
    elements.BOOL: np.dtype("u1"),
    elements.DATE: np.dtype("<i8"),
    elements.INT32: np.dtype("<i4"),
    elements.TIMESTAMP: np.dtype("<u8"),
    elements.INT64: np.dtype("<i8"),
    elements.DECIMAL128: np.dtype("V16"),
}


def _loaded() -> ModuleType | None:
    if sys.byteorder != "little":  # as BSON is, and the compiled code expects
        return None
    try:
        compiled = import_module("engine.rawbson._native")
    except ImportError:
        return None
    for kind, size in (elements.FIXED_SIZES | elements.SIZED).items():
        sized, least = kind in elements.SIZED, elements.MIN_SIZES.get(kind, 0)
        payload = PAYLOADS[kind].itemsize if kind in PAYLOADS else 0
        compiled.set_rule(kind, size, sized, least, kind in elements.ENDS_WITH_NUL, payload)
    compiled.set_regex(elements.REGEX)
    return compiled


library = _loaded()
