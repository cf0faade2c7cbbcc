"""The one place where the driver's errors become ours: the operation, the server's message, the remedy.

A server's message can contain the whole command, including values. Only a sentence is shown: the innermost cause,
without documents, and its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    ConnectionFailure,
    InvalidURI,
    OperationFailure,
    PyMongoError,
)

from engine.errors import ConfigError, FatalError, HeadraceError, StreamLostError, TransientError

UNAUTHORIZED = 13
_UNAUTHENTICATED = {18, 8000, 11}  # AuthenticationFailed, AtlasError, UserNotFound
_HISTORY_LOST = {280, 286}  # ChangeStreamFatalError, ChangeStreamHistoryLost
# Never worth a retry: CommandNotFound, CommandNotSupported, InternalErrorNotSupported, NotImplemented,
# BSONObjectTooLarge.
_NEVER = {59, 115, 235, 238, 10334}
_UNSUPPORTED = {59, 115, 235, 238}
# BadValue, FailedToParse, TypeMismatch, IllegalOperation, IndexNotFound (of $text), InvalidOptions,
# InvalidNamespace, JSInterpreterFailure, CommandNotSupportedOnView, InvalidPipelineOperator, ConversionFailure,
# NoQueryExecutionPlans (of $near).
_BAD_QUERY = {2, 9, 14, 20, 27, 72, 73, 139, 166, 168, 241, 291}
_FIRST_LOCATION = 10_000
_MAX_LENGTH = 300

_HISTORY = (
    'Set source.on_history_lost = "snapshot": the stream continues from now and its collections are loaded again, '
    'so that no document is missing. "now" loads nothing: whatever changed in between stays missing. Then keep '
    "the oplog for longer (replSetResizeOplog, minRetentionHours)."
)
_OLD_SERVER = (
    "Headrace needs change streams as in MongoDB 4.4 and later (source.expanded_events and document images: 6.0). "
    "Some MongoDB-compatible servers support them only in part, or only once they are enabled."
)
_OF_THE_SET = (
    "Is replicaSet in source.uri the set's own name (rs.status().set), and can its members be reached from here "
    "by their names in its configuration (rs.conf())?"
)
_NO_NAME = "The name cannot be resolved: check the host in source.uri, and this machine's DNS."
# What the driver says of a failed connection, and the remedy for it; the first match counts.
_UNREACHABLE: tuple[tuple[str, str], ...] = (
    (
        "CERTIFICATE_VERIFY_FAILED|[Hh]ostname mismatch|certificate verify",
        "The server's certificate is not trusted: set its CA by tlsCAFile in source.uri, and address the server "
        "by a name that is in the certificate.",
    ),
    ("Too many open files", "Raise this machine's limit of open files (ulimit -n)."),
    (
        "CERTIFICATE_REQUIRED|ALERT_|tlsv1 alert|no certificate",
        "The server refuses this client's TLS: does it require a certificate (tlsCertificateKeyFile in "
        "source.uri)?",
    ),
    (
        "SSL|TLS",
        "Does the server use TLS? tls=true or tls=false in source.uri must match.",
    ),
    (
        "not known|nodename nor servname|failure in name resolution|No address associated",
        _NO_NAME,
    ),
    ("No replica set members|replica set name|not a member of replica set", _OF_THE_SET),
    ("No primary available|Primary", "The set has no primary at present: see rs.status()."),
    ("Connection refused", "Is MongoDB up, and are host and port in source.uri right?"),
    (
        "timed out|NetworkTimeout",
        "Does a firewall, an IP access list or a wrong address keep this machine from reaching it?",
    ),
    (
        "connection closed|Connection reset|EOF",
        "The server closed the connection: is it up, and does it require TLS (tls=true in source.uri)?",
    ),
)


@contextmanager
def translated(operation: str) -> Iterator[None]:
    """Raise the driver's errors as ours."""
    try:
        yield
    except PyMongoError as error:
        raise translate(operation, error) from error


def translate(operation: str, error: PyMongoError) -> HeadraceError:
    """The driver's error as one of ours."""
    cause = summary(error)
    if isinstance(error, OperationFailure):
        kind, remedy = _class_of(error)
        return kind(operation, cause, remedy)
    if isinstance(error, ConfigurationError) and _is_unresolved(error.__cause__):
        return TransientError(operation, cause, _NO_NAME)
    if isinstance(error, ConfigurationError | InvalidURI):
        return ConfigError(operation, cause, "Check source.uri.")
    if isinstance(error, ConnectionFailure) and "'idna' codec" in cause:
        return ConfigError(operation, cause, "Check the host in source.uri: it can be no name of a machine.")
    if isinstance(error, AutoReconnect | ConnectionFailure):
        if _is_untrusted(cause):
            return ConfigError(operation, cause, _UNREACHABLE[0][1])
        whole = str(error)  # with the state of each member
        remedy = next((text for words, text in _UNREACHABLE if re.search(words, cause)), "")
        remedy = remedy or next((text for words, text in _UNREACHABLE if re.search(words, whole)), "")
        return TransientError(operation, cause, remedy or "Is MongoDB up, and is source.uri right?")
    return FatalError(operation, f"{type(error).__name__}: {cause}")


def _is_untrusted(cause: str) -> bool:
    """Whether the reason is the server's certificate, and not that of one member while another one is away."""
    return bool(re.search(_UNREACHABLE[0][0], cause)) and not re.search("refused|timed out|closed|reset", cause)


def _is_unresolved(error: BaseException | None) -> bool:
    """Whether a look-up for ``mongodb+srv://`` has found nothing, of a name that may be there later."""
    names = {each.__name__ for each in type(error).__mro__}
    return "DNSException" in names and "SyntaxError" not in names  # both dnspython's


def _class_of(error: OperationFailure) -> tuple[type[HeadraceError], str]:
    """An error that is not known to be permanent is transient: servers have hundreds of codes and get new ones."""
    message = _message(error)
    if error.code in _UNAUTHENTICATED:
        return ConfigError, "Check the user, the password and authSource in source.uri."
    if error.code == UNAUTHORIZED:
        return ConfigError, _grant(message)
    if error.code in _HISTORY_LOST or error.has_error_label("NonResumableChangeStreamError"):
        return StreamLostError, _HISTORY
    if is_bad_query(error) and not error.has_error_label("ResumableChangeStreamError"):
        if re.search(r"'\$changeStream['.]|only supported on replica sets", message):
            return ConfigError, _OLD_SERVER
        return ConfigError, "Check source.pipeline and the other keys of [source]."
    if error.code in _NEVER:
        return FatalError, _OLD_SERVER if error.code in _UNSUPPORTED else ""
    return TransientError, ""


def _grant(message: str) -> str:
    """The missing right, from the server's message: ``not authorized on shop to execute command { find: ..``"""
    match = re.search(r"not authorized on (\S+) to execute command \{ ?(\w*)", message)
    database, command = match.groups() if match else ("", "")
    if database == "local":
        return "Grant the user read on the database local, or the role clusterMonitor."
    if database == "admin" and command == "aggregate":
        remedy = (
            "Grant the user find and changeStream on all databases (the role readAnyDatabase on admin has both)"
        )
        return f'{remedy}, or set source.watch to "database" or "collections".'
    if database == "admin":
        return "Grant the user the role clusterMonitor."
    where = f"the database {database}" if database else "the databases it watches"
    remedy = f"Grant the user find and changeStream on {where}"
    return f"{remedy} (the role read has both, and collStats for backfills)."


def has_answered(error: HeadraceError) -> bool:
    """Whether the error is a server's answer, in contrast to a server that cannot be reached."""
    return isinstance(error.__cause__, OperationFailure)


def is_refused(error: HeadraceError) -> bool:
    """Whether the server does not accept the user or the password."""
    return isinstance(error.__cause__, OperationFailure) and error.__cause__.code in _UNAUTHENTICATED


def is_bad_query(error: OperationFailure) -> bool:
    """Whether the server rejects the request itself: a pipeline, a filter, an option, a view.

    Most of its checks of a query have a code but no name; the name is then "Location" and the code.
    """
    name = str((error.details or {}).get("codeName", ""))
    is_check = (error.code or 0) >= _FIRST_LOCATION and name.startswith("Location")
    return error.code in _BAD_QUERY or is_check


def summary(error: PyMongoError) -> str:
    """What went wrong, in a sentence."""
    if not isinstance(error, OperationFailure):
        return _short(str(error).partition(", Timeout:")[0].partition(", Topology Description:")[0])
    name = str((error.details or {}).get("codeName", ""))
    code = f"{name}, code {error.code}" if name and not name.startswith("Location") else f"code {error.code}"
    return f"{_short(_message(error))} ({code})"


def _message(error: OperationFailure) -> str:
    return str((error.details or {}).get("errmsg") or str(error).partition(", full error:")[0])


def _short(text: str) -> str:
    """The innermost cause, without documents and without the driver's settings."""
    text = text.rpartition(" :: caused by :: ")[2]
    text = re.sub(r" to execute command \{ ?(\w+).*", r" to execute \1", text, flags=re.DOTALL)
    text = re.sub(r" ?\(configured timeouts: [^)]*\)", "", text)
    while (shorter := re.sub(r"\{[^{}]*\}", "(...)", text)) != text:
        text = shorter
    text = " ".join(re.sub(r"\{.*", "(...)", text).split())
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH].rpartition(' ')[0]} ..."
