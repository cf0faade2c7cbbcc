"""The failure classes, and the one place where secrets are taken out of text.

Every error names the operation, its cause, and what to do. A library's exception is translated once, at
the edge where it comes in (``source.session``, ``sink``, ``state``); inward of the edges only these
classes travel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal
from urllib.parse import quote, quote_plus, unquote, unquote_plus

_RESTORE = (
    "Restore the store's data, and see to it that it is durable and never evicts (Redis: appendonly and "
    "maxmemory-policy noeviction). The footers of the newest objects tell where the lake stands."
)

FailureKind = Literal["config", "transient", "stream_lost", "lease_lost", "fatal"]


class HeadraceError(Exception):
    """Base of what the engine raises on purpose.

    Args:
        operation: what was being done, as a verb phrase: ``"open the change stream of shop.orders"``.
        cause: what went wrong, in the words of whoever knows.
        remedy: what the user can do; empty when there is nothing to do but wait.
    """

    kind: FailureKind = "fatal"

    def __init__(self, operation: str, cause: str, remedy: str = "") -> None:
        super().__init__(operation, cause, remedy)
        self.operation = operation
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.operation}: {self.cause}"
        return f"{text.rstrip('.')}. {self.remedy}" if self.remedy else text


class ConfigError(HeadraceError):
    """The configuration cannot work; found at start, exit code 2."""

    kind: FailureKind = "config"


class TransientError(HeadraceError):
    """A server is away or busy; worth another attempt, within the retry budget."""

    kind: FailureKind = "transient"


class StreamLostError(HeadraceError):
    """The change stream cannot go on from where it was; ``source.on_history_lost`` decides."""

    kind: FailureKind = "stream_lost"


class InterruptedScanError(HeadraceError):
    """What was being read must be read from its start: another attempt at the same place does not help."""

    kind: FailureKind = "transient"


class LeaseLostError(HeadraceError):
    """Another engine holds the stream now; nothing may be written for it any more."""

    kind: FailureKind = "lease_lost"


class FatalError(HeadraceError):
    """The engine cannot go on; exit code 1."""


class StateLostError(FatalError):
    """The state store has less than it has acknowledged. To go on would make anew what is in the lake already."""

    def __init__(self, operation: str, cause: str, remedy: str = "") -> None:
        super().__init__(operation, cause, remedy or _RESTORE)


class NoStateError(FatalError):
    """There is no state yet where it is to be looked at."""


_BY_KIND: dict[FailureKind, type[HeadraceError]] = {
    each.kind: each for each in (ConfigError, TransientError, StreamLostError, LeaseLostError, FatalError)
}


class EngineEnded(Exception):
    """The engine has ended with an error and an exit code."""

    def __init__(self, code: int, error: HeadraceError) -> None:
        super().__init__(str(error))
        self.code = code
        self.error = error


def error_of_kind(kind: FailureKind, operation: str, cause: str, remedy: str) -> HeadraceError:
    """The error that another process described by these fields."""
    return _BY_KIND[kind](operation, cause, remedy)


class Redactor:
    """Replaces the given secrets in any text, however a URL may have quoted them."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms: set[str] = set()
        for secret in secrets:
            if secret:
                plain = {secret, unquote(secret), unquote_plus(secret)}
                forms |= plain | {quote(p, safe="") for p in plain} | {quote_plus(p) for p in plain}
        self._forms = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """``text`` with ``***`` where a secret stood."""
        for form in self._forms:
            text = text.replace(form, "***")
        return text


def url_password(url: str) -> str:
    """The password of a URL's user part as it stands there (quoted), or ``""``.

    Works on connection strings with several hosts, and on broken ones, which ``urlsplit`` would refuse.
    """
    location = re.match(r"[^/?#]*://([^/?#]*)", url)
    user = location[1].rpartition("@")[0] if location else ""
    return user.partition(":")[2]


def url_without_password(url: str) -> str:
    """``url`` with ``***`` for its password."""
    password = url_password(url)
    return url.replace(f":{password}@", ":***@", 1) if password else url
