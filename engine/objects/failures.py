"""The errors of a sink, translated into ours: their kind, and the remedy."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from collections.abc import Iterator

from engine.errors import ConfigError, HeadraceError, TransientError


@contextlib.contextmanager
def translated(operation: str, *, proved: bool = False) -> Iterator[None]:
    """Raise the errors of stores, networks and disks as ours; any other error is a bug and passes unchanged.

    Args:
        proved: the configuration has worked before, so any error is worth another attempt: stores answer "not
            found" for an upload that was completed by a request whose answer was lost, and "forbidden" for a token
            that has just expired.
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
    """Free the arguments of the failed calls (a part of an upload, rows), which the frames would keep alive."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


# The packages whose errors come from a store or a network: for S3, and for the other URLs of fsspec.
_OF_STORES = {"aiobotocore", "botocore", "s3fs"}
_OF_NETWORKS = {"aiohttp", "ftplib", "http", "httpcore", "httpx", "requests", "urllib3"}
_OF_OTHER_STORES = {"adlfs", "azure", "fsspec", "gcsfs", "google", "oci", "ossfs", "paramiko", "smbprotocol"}
_KNOWN = _OF_STORES | _OF_NETWORKS | _OF_OTHER_STORES


def _is_known(error: Exception, *, proved: bool) -> bool:
    """Whether it may not be a bug, by the package of its class, or as a Python error for files and connections.

    Some other Python errors mean that a URL is unusable, as long as it has never worked.
    """
    if any(each.__module__.partition(".")[0] in _KNOWN for each in type(error).__mro__):
        return True
    return isinstance(error, OSError | EOFError) or (not proved and isinstance(error, _UNUSABLE))


_UNUSABLE = (ImportError, ValueError, NotImplementedError)
_CHAIN = "where they come from (the AWS chain or [sink.s3])"
_NO_CREDENTIALS = f"There are no credentials, or they are incomplete: set them {_CHAIN}."
_UNKNOWN = f"The store does not accept these credentials: correct access key and secret key {_CHAIN}."
_EXPIRED = f"The credentials have expired: renew them {_CHAIN}."
_DENIED = (
    "These credentials are valid but lack a right: grant them s3:ListBucket on the bucket, and on the objects "
    "s3:PutObject and s3:AbortMultipartUpload to write and s3:GetObject to read (in _headrace/ all of these and "
    "s3:DeleteObject; with sink.s3.tags also s3:PutObjectTagging; with SSE-KMS also kms:GenerateDataKey and "
    "kms:Decrypt on the key)."
)
_SKEWED = "This machine's clock differs too much from the store's: synchronize it (NTP)."
_REGION = "The bucket is in another region: set sink.s3.region to it."
_AGAIN = " They worked before; files and chain are read again at each attempt."
_NO_SPACE = "Free space there, or raise the quota: the engine continues by itself, within [retry]."
_BUSY = "The store is busy or has an internal error; it is retried, within [retry]."
_NO_SUCH_PLACE = "Check sink.url and [sink.s3]; a URL of another kind needs its fsspec package."
_NO_PROVIDER = "The service that provides credentials does not answer: is it up, and reachable from here?"
_AWAY = "Is the store up, and is sink.s3.endpoint_url right?"
_SILENT = (
    "The store does not answer in time: is a firewall or proxy in the way, and is sink.s3.endpoint_url right?"
)
_NO_NAME = (
    "The store's name cannot be resolved: check sink.s3.endpoint_url and sink.s3.region, and this machine's DNS."
)
_TLS = "No secure connection can be made: is http or https in sink.s3.endpoint_url right for the store?"
_UNTRUSTED = (
    "The store's certificate is not trusted: set its CA by sink.s3.ca_file (or AWS_CA_BUNDLE), and address the "
    "store by a name that is in the certificate."
)
_KMS = (
    "Check sink.s3.kms_key_id: the key must exist in the bucket's region and be enabled, and these credentials "
    "need kms:GenerateDataKey and kms:Decrypt on it."
)
# What stores answer when they do not accept the credentials (any more); for a HEAD request there is only the 403.
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
    # From the libraries, when they find none to send.
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


def error_code(error: BaseException | None) -> str:
    """The S3 store's error code; empty for an error that is not from a store."""
    while error is not None:
        if isinstance(response := getattr(error, "response", None), dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


def is_refused(error: BaseException | None) -> bool:
    """Whether other credentials might be accepted."""
    return bool(_refusal(error))


def _refusal(error: BaseException | None) -> str:
    return _REFUSED.get(error_code(error), "") or _REFUSED.get(type(error).__name__, "")


def _translate(operation: str, error: Exception, *, proved: bool) -> HeadraceError:
    code = error_code(error)
    cause = f"{type(error).__name__}: {error}"
    if code and code not in cause:
        cause += f" ({code})"
    kind, remedy = _class_of(error, code, proved=proved)
    return kind(operation, cause, remedy)


def _class_of(error: Exception, code: str, *, proved: bool) -> tuple[type[HeadraceError], str]:
    """The kind of an error, and the remedy."""
    lasting: type[HeadraceError] = TransientError if proved else ConfigError
    if _is_unfetched(error):
        return TransientError, _NO_PROVIDER
    if remedy := _refusal(error):
        return lasting, remedy + (_AGAIN if proved else "")
    if code.startswith("KMS."):
        return lasting, _KMS
    if code in _OTHER_CODES:
        return lasting, _OTHER_CODES[code]
    if code in _FULL_CODES or (not code and getattr(error, "errno", None) in _FULL_NUMBERS):
        return TransientError, _NO_SPACE
    if code in _BUSY_CODES:
        return TransientError, _BUSY
    if isinstance(error, FileNotFoundError) and code == "NoSuchUpload":
        return TransientError, "Its upload was aborted, by a rule of the bucket or by hand; it is repeated."
    if isinstance(error, FileNotFoundError) or code == "NoSuchBucket":
        return lasting, "Create the bucket (or directory), or correct sink.url."
    if isinstance(error, PermissionError):
        return lasting, _DENIED if code else "Let the engine's user write there, or correct sink.url."
    if isinstance(error, _UNUSABLE) or _names(error) & _NO_PLACE:
        return lasting, _NO_SUCH_PLACE
    if _is_untrusted(error):
        return lasting, _UNTRUSTED
    if remedy := _unreachable(error):
        return TransientError, remedy
    return TransientError, _OTHER_REMEDIES.get(getattr(error, "errno", None) or 0, "") if not code else ""


_OTHER_REMEDIES = {
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or write fewer objects (sink.partition_by).",
    errno.EROFS: "The file system is read-only: mount it read-write, or correct sink.url.",
    errno.ENAMETOOLONG: "A name is too long for this file system: use another one, or S3.",
    errno.ENOTDIR: "A part of the path is not a directory: correct sink.url.",
}


def _unreachable(error: Exception) -> str:
    """The remedy when the store does not answer, or not in time; empty for other errors.

    The libraries have error classes of their own for that, and the reason is further down the chain.
    """
    if not _is_away(error):
        return ""
    reasons = list(_chain(error))
    if any(isinstance(each, OSError) and each.errno == errno.EMFILE for each in reasons):
        return _OTHER_REMEDIES[errno.EMFILE]
    if any(isinstance(each, socket.gaierror) for each in reasons):
        return _NO_NAME
    if any(isinstance(each, ssl.SSLError) or "SSL" in type(each).__name__ for each in reasons):
        return _TLS
    if any(isinstance(each, TimeoutError) or "Timeout" in type(each).__name__ for each in reasons):
        return _SILENT
    return _AWAY


def _is_untrusted(error: Exception) -> bool:
    """Whether the store's certificate was not accepted; botocore gives the reason only as text."""
    return _is_away(error) and any("CERTIFICATE_VERIFY_FAILED" in str(each) for each in _chain(error))


def _is_away(error: BaseException) -> bool:
    """Whether it says that there was no answer."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return bool(_names(error) & {"HTTPClientError", "ConnectionError", "ClientConnectionError"})


def _is_unfetched(error: BaseException) -> bool:
    """Whether credentials could not be fetched because the service that provides them did not answer."""
    return type(error).__name__ in _UNFETCHED and any(map(_is_away, _chain(error)))


def _names(error: BaseException) -> set[str]:
    """The names of its class and its base classes."""
    return {each.__name__ for each in type(error).__mro__}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or getattr(error, "os_error", None) or error.__context__
