"""The error classes, and the one place where secrets are removed from text.

Every error names the operation, the cause and the remedy. A library's exception is translated once, at the edge
where it comes in (``source.failures``, ``objects.failures``, ``state.replies``); everywhere else only these
classes are used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import ClassVar, Literal
from urllib.parse import quote, quote_plus, unquote, unquote_plus

_RESTORE = (
    "Restore the store's newest data, or stop every engine and make the state again from the lake (headrace state "
    "rebuild). Make sure that the store is durable and never evicts (Redis: appendonly and maxmemory-policy "
    "noeviction)."
)

FailureKind = Literal["config", "transient", "stream_lost", "lease_lost", "fatal"]


class HeadraceError(Exception):
    """Base class of the errors that the engine raises deliberately.

    Args:
        operation: what was being done, as a verb phrase: ``"open the change stream of shop.orders"``.
        cause: what went wrong, in the words of the component that failed.
        remedy: what the user can do; empty if there is nothing to do but wait.
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
    """The configuration cannot work; exit code 2 at start."""

    kind: FailureKind = "config"


class TransientError(HeadraceError):
    """A server is unavailable or busy; worth another attempt, within the retry budget.

    Attributes:
        who: is away, if not the server that was asked.
    """

    kind: FailureKind = "transient"
    who = ""


class StreamLostError(HeadraceError):
    """The change stream cannot resume from its position; ``source.on_history_lost`` decides."""

    kind: FailureKind = "stream_lost"


class InterruptedScanError(HeadraceError):
    """The split must be read again from its start: retrying from the same position does not help."""

    kind: FailureKind = "transient"


class LeaseLostError(HeadraceError):
    """Another engine holds the stream's lease now; nothing more may be written for it here."""

    kind: FailureKind = "lease_lost"


class FatalError(HeadraceError):
    """The engine cannot continue; exit code 1."""


class StateLostError(FatalError):
    """The state store has lost acknowledged writes; continuing would produce again what is already in the lake."""

    def __init__(self, operation: str, cause: str, remedy: str = "") -> None:
        super().__init__(operation, cause, remedy or _RESTORE)


class NoStateError(FatalError):
    """There is no state to show yet."""


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
    """Replaces the given secrets in any text, however a URL may have quoted them, or a message escaped them.

    What this process has learnt since it started (``learn``) is replaced by every redactor.
    """

    _learnt: ClassVar[tuple[str, ...]] = ()

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._forms = _longest_first(form for secret in secrets for form in _forms(secret))

    @classmethod
    def learn(cls, secret: str) -> None:
        """Add a secret to all redactors of this process."""
        cls._learnt = _longest_first((*cls._learnt, *_forms(secret)))

    def __call__(self, text: str) -> str:
        """``text`` with ``***`` in place of secrets."""
        for form in (*self._forms, *self._learnt):
            text = text.replace(form, "***")
        return text


def _forms(secret: str) -> set[str]:
    """The ways in which a text may show a secret."""
    if not secret:
        return set()
    plain = {secret, unquote(secret), unquote_plus(secret)}
    ways: tuple[Callable[[str], str], ...] = (
        str,
        partial(quote, safe=""),
        quote_plus,
        quote,
        lambda p: repr(p)[1:-1],
        lambda p: json.dumps(p)[1:-1],
    )
    return {way(each) for each in plain for way in ways}


def _longest_first(forms: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(forms), key=len, reverse=True))


def url_password(url: str) -> str:
    """The password in a URL's user part, as it is there (quoted), or ``""``.

    Works on connection strings with several hosts, and on broken ones, which ``urlsplit`` would refuse.
    """
    location = re.match(r"[^/?#]*://([^/?#]*)", url)
    user = location[1].rpartition("@")[0] if location else ""
    return user.partition(":")[2]


def url_without_password(url: str) -> str:
    """``url`` with ``***`` for its password, and for those in its options."""
    password = url_password(url)
    shown = url.replace(f":{password}@", ":***@", 1) if password else url
    return re.sub(r"(?i)([?&][^=&#]*(?:password|token|secret)[^=&#]*=)[^&#]+", r"\1***", shown)
