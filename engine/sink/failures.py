"""What goes wrong with a sink, as ours: which kind it is, and what can be done about it."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from collections.abc import Iterator

from engine.errors import ConfigError, HeadraceError, TransientError


@contextlib.contextmanager
def translated(operation: str, *, proved: bool = False) -> Iterator[None]:
    """Raise the errors of stores, networks and disks as ours; every other one is a bug, and passes as it is.

    Args:
        proved: the configuration has worked before. Whatever goes wrong then is worth another attempt: stores
            answer "not found" for an upload that was completed by a request whose answer was lost, and
            "forbidden" for a token that has just run out.
    """
    try:
        yield
    except HeadraceError:
        raise
    except Exception as error:
        if not _is_known(error, proved=proved):
            raise
        _forget_frames(error)
        raise _translate(operation, error, proved=proved) from error


def _forget_frames(error: BaseException | None) -> None:
    """Let go of what the failed calls were given: a part of an upload, rows, until a collector comes around."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


# The packages whose errors are the store's or the network's: of S3, and of what else a URL of fsspec can name.
_OF_STORES = {"aiobotocore", "botocore", "s3fs"}
_OF_NETWORKS = {"aiohttp", "ftplib", "http", "httpcore", "httpx", "requests", "urllib3"}
_OF_OTHER_STORES = {"adlfs", "azure", "fsspec", "gcsfs", "google", "oci", "ossfs", "paramiko", "smbprotocol"}
_KNOWN = _OF_STORES | _OF_NETWORKS | _OF_OTHER_STORES


def _is_known(error: Exception, *, proved: bool) -> bool:
    """Whether it may be no bug: by who has made its class, or what Python says of files and connections.

    Python's other errors tell of a URL that cannot be used, as long as it has never been used.
    """
    if any(each.__module__.partition(".")[0] in _KNOWN for each in type(error).__mro__):
        return True
    return isinstance(error, OSError | EOFError) or (not proved and isinstance(error, _UNUSABLE))


_UNUSABLE = (ImportError, ValueError, NotImplementedError)
_CHAIN = "where they come from (the AWS chain or [sink.s3])"
_NO_CREDENTIALS = f"There are no credentials, or only a part of them: give them {_CHAIN}."
_UNKNOWN = f"The store does not take these credentials: correct access key and secret key {_CHAIN}."
_EXPIRED = f"The credentials have expired: renew them {_CHAIN}."
_DENIED = (
    "The store knows these credentials and forbids it: grant them s3:PutObject and s3:AbortMultipartUpload on the "
    "objects, and s3:ListBucket on the bucket."
)
_SKEWED = "This machine's clock is too far from the store's: set it right (NTP)."
_REGION = "The bucket is elsewhere: set sink.s3.region to its region."
_AGAIN = " They worked before; files and chain are read again at each attempt."
_NO_SPACE = "Free space there, or raise the quota: it goes on by itself, within [retry]."
_BUSY = "The store is busy or has a fault of its own; it is tried again, within [retry]."
_NO_SUCH_PLACE = "Check sink.url and [sink.s3]; a URL of another kind needs its fsspec package."
_NO_KEEPER = "Nobody answers who could give credentials: is that service up, and reached from here?"
_AWAY = "Is the store up, and sink.s3.endpoint_url right?"
_SILENT = "The store does not answer in time: is a firewall or proxy between, and sink.s3.endpoint_url right?"
_NO_NAME = (
    "The store's name cannot be resolved: check sink.s3.endpoint_url and sink.s3.region, and this machine's DNS."
)
_TLS = (
    "No secure connection can be made: do http and https in sink.s3.endpoint_url agree with the store, and is its "
    "certificate trusted here (AWS_CA_BUNDLE)?"
)
# What stores answer when they do not take the credentials (any more); 403 is what a HEAD request has of it.
_REFUSED: dict[str, str] = {
    "403": _DENIED,
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidAccessKeyId": _UNKNOWN,
    "InvalidToken": _UNKNOWN,
    "SignatureDoesNotMatch": _UNKNOWN,
    # Of the libraries, which have found none that they could send.
    "CredentialRetrievalError": _NO_CREDENTIALS,
    "NoCredentialsError": _NO_CREDENTIALS,
    "PartialCredentialsError": _NO_CREDENTIALS,
    "TokenRetrievalError": _EXPIRED,
    "UnauthorizedSSOTokenError": _EXPIRED,
}
_UNFETCHED = {"CredentialRetrievalError", "TokenRetrievalError"}
_OTHER_CODES = {
    "RequestTimeTooSkewed": _SKEWED,
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "301": _REGION,
}
# What botocore says of a configuration that it cannot use.
_NO_PLACE = {
    "ConfigNotFound",
    "ConfigParseError",
    "EndpointProviderError",
    "InvalidConfigError",
    "ParamValidationError",
    "ProfileNotFound",
}
_FULL_CODES = {"507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"}
_FULL_NUMBERS = {errno.ENOSPC, errno.EDQUOT}
_BUSY_CODES = {
    "429",
    "500",
    "502",
    "503",
    "504",
    "InternalError",
    "OperationAborted",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
}


def _code(error: BaseException | None) -> str:
    """What an S3 store called its error; empty for what is none of a store's."""
    while error is not None:
        if isinstance(response := getattr(error, "response", None), dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


def is_refused(error: BaseException | None) -> bool:
    """Whether other credentials might be taken where these were not."""
    return bool(_refusal(error))


def _refusal(error: BaseException | None) -> str:
    return _REFUSED.get(_code(error), "") or _REFUSED.get(type(error).__name__, "")


def _translate(operation: str, error: Exception, *, proved: bool) -> HeadraceError:
    code = _code(error)
    cause = f"{type(error).__name__}: {error}"
    if code and code not in cause:
        cause += f" ({code})"
    kind, remedy = _class_of(error, code, proved=proved)
    return kind(operation, cause, remedy)


def _class_of(error: Exception, code: str, *, proved: bool) -> tuple[type[HeadraceError], str]:
    """The kind of an error, and what can be done about it."""
    lasting: type[HeadraceError] = TransientError if proved else ConfigError
    if _is_unfetched(error):
        return TransientError, _NO_KEEPER
    if remedy := _refusal(error):
        return lasting, remedy + (_AGAIN if proved else "")
    if code in _OTHER_CODES:
        return lasting, _OTHER_CODES[code]
    if code in _FULL_CODES or (not code and getattr(error, "errno", None) in _FULL_NUMBERS):
        return TransientError, _NO_SPACE
    if code in _BUSY_CODES:
        return TransientError, _BUSY
    if isinstance(error, FileNotFoundError) and code == "NoSuchUpload":
        return TransientError, "Its upload was aborted, by a rule of the bucket or by hand; it is made again."
    if isinstance(error, FileNotFoundError):
        return lasting, "Create the bucket (or directory), or correct sink.url."
    if isinstance(error, PermissionError):
        return lasting, _DENIED if code else "Let the engine's user write there, or correct sink.url."
    if isinstance(error, _UNUSABLE) or _names(error) & _NO_PLACE:
        return lasting, _NO_SUCH_PLACE
    if remedy := _unreachable(error):
        return TransientError, remedy
    return TransientError, _OTHER_REMEDIES.get(getattr(error, "errno", None) or 0, "") if not code else ""


_OTHER_REMEDIES = {
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or make fewer objects (sink.partition_by).",
    errno.EROFS: "The file system is read-only: mount it for writing, or correct sink.url.",
    errno.ENAMETOOLONG: "A name is too long for this file system: use another one, or S3.",
    errno.ENOTDIR: "Something that is no directory is in the way: correct sink.url.",
}


def _unreachable(error: Exception) -> str:
    """What to do when nobody answers, or not in time; empty for another error.

    The libraries below have classes of their own for it, and tell the reason in what their errors come from.
    """
    if not _is_away(error):
        return ""
    reasons = list(_chain(error))
    if any(isinstance(each, socket.gaierror) for each in reasons):
        return _NO_NAME
    if any(isinstance(each, ssl.SSLError) or "SSL" in type(each).__name__ for each in reasons):
        return _TLS
    if any(isinstance(each, TimeoutError) or "Timeout" in type(each).__name__ for each in reasons):
        return _SILENT
    return _AWAY


def _is_away(error: BaseException) -> bool:
    """Whether it says that nobody has answered."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return bool(_names(error) & {"HTTPClientError", "ConnectionError", "ClientConnectionError"})


def _is_unfetched(error: BaseException) -> bool:
    """Whether credentials could not be had because the service that gives them did not answer."""
    return type(error).__name__ in _UNFETCHED and any(map(_is_away, _chain(error)))


def _names(error: BaseException) -> set[str]:
    """What its class, and those that it derives from, are called."""
    return {each.__name__ for each in type(error).__mro__}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it comes from."""
    while error is not None:
        yield error
        error = error.__cause__ or getattr(error, "os_error", None) or error.__context__
