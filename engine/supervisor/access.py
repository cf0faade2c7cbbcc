"""Who may read the endpoints, and how what is sent is encrypted."""

from __future__ import annotations

import hmac
import logging
import ssl
import time
from base64 import b64encode
from pathlib import Path

from engine.config.tree import TelemetryConfig
from engine.errors import ConfigError

# Certificate files are looked at this often, at most.
LOOK_EVERY_S = 1.0

log = logging.getLogger("headrace")


class Credentials:
    """One password, which clients present with a user name (Basic) or alone (Bearer)."""

    challenge = b'Basic realm="headrace", charset="UTF-8"'

    def __init__(self, username: str, password: str) -> None:
        self._accepted = {
            b"basic": b64encode(f"{username}:{password}".encode()),
            b"bearer": password.encode(),
        }

    def accept(self, authorization: bytes) -> bool:
        """Whether an Authorization header is right; how long it takes does not tell how much of it is."""
        scheme, _, given = authorization.partition(b" ")
        accepted = self._accepted.get(scheme.lower())
        return accepted is not None and hmac.compare_digest(given.strip(), accepted)


class Certificate:
    """A certificate with its key, loaded again when their files change.

    State: what is in use, and the versions of the files that were seen last. Owner: the HTTP server's thread.

    Raises:
        ConfigError: they cannot be loaded.
    """

    def __init__(self, certificate_file: str, key_file: str) -> None:
        self._files = Path(certificate_file), Path(key_file)
        self._looked_at = time.monotonic()
        self._seen = self._versions()
        try:
            self._context = self._load()
        except (OSError, ValueError) as error:
            remedy = "Give files in PEM, the key without a password, which the engine's user can read."
            operation = f"load telemetry.certificate_file ({certificate_file}) and its key ({key_file})"
            raise ConfigError(operation, _cause(error), remedy) from error

    def context(self) -> ssl.SSLContext:
        """What to use for the next connection.

        While new files do not belong together, as between the writing of one and of the other, the former
        certificate remains in use.
        """
        now = time.monotonic()
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            versions = self._versions()
            if versions != self._seen:
                self._seen = versions
                self._reload()
        return self._context

    def _reload(self) -> None:
        try:
            self._context = self._load()
            log.info("the endpoints' certificate has been replaced")
        except (OSError, ValueError) as error:
            what = "the endpoints' new certificate cannot be loaded; the former one remains in use"
            log.warning(what, extra={"fields": {"file": str(self._files[0]), "cause": _cause(error)}})

    def _load(self) -> ssl.SSLContext:
        # A new context each time: one that has failed to load a pair may be left with half of it.
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.options |= ssl.OP_NO_RENEGOTIATION
        # Without a password of ours, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(*self._files, password="")
        return context

    def _versions(self) -> list[tuple[int, int, int] | None]:
        return [_version(path) for path in self._files]


def credentials_of(telemetry: TelemetryConfig) -> Credentials | None:
    """What clients must present; None for nothing."""
    return Credentials(telemetry.username, telemetry.password) if telemetry.password else None


def certificate_of(telemetry: TelemetryConfig) -> Certificate | None:
    """The server's certificate; None without TLS.

    Raises:
        ConfigError: it cannot be loaded.
    """
    if not telemetry.certificate_file:
        return None
    return Certificate(telemetry.certificate_file, telemetry.key_file or telemetry.certificate_file)


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()  # of the file itself: Kubernetes replaces the link to it
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _cause(error: Exception) -> str:
    """OpenSSL's messages name the place in its source; its reasons say what is wrong."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return getattr(error, "strerror", None) or str(error)
