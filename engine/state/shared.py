"""Compare-and-swap of the shared documents: schemas, the plans and the list of backfills, the handover."""

from __future__ import annotations

from collections.abc import Callable

from engine.errors import TransientError
from engine.state.seam import StateStore

# An attempt fails only if another engine's succeeds, and each engine changes a document only a few times.
MAX_ATTEMPTS = 100


def amend(store: StateStore, name: str, change: Callable[[int, str], str | None]) -> tuple[int, str]:
    """Change a shared document; returns its version and text afterwards.

    Args:
        change: takes the current version and text (``(0, "")`` if there is no document), and returns the text
            of the next version, or None to leave the document as it is. It is called again whenever another
            engine was faster, and may raise.

    Raises:
        StateLostError, TransientError, ConfigError: from the methods of ``StateStore``.
        TransientError: another engine was faster ``MAX_ATTEMPTS`` times in a row.
    """
    for _ in range(MAX_ATTEMPTS):
        version, text = store.read_shared(name)
        changed = change(version, text)
        if changed is None:
            return version, text
        if store.write_shared(name, version + 1, changed):
            return version + 1, changed
    cause = f"another engine changed it between our read and our write, {MAX_ATTEMPTS} times in a row"
    raise TransientError(f"change {name} in the state store", cause, "Start fewer engines at once.")
