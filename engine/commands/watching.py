"""Reads ``/status`` of an engine that runs, and derives rates from what it said some seconds ago."""

from __future__ import annotations

import http.client
import ssl
import time
from base64 import b64encode
from collections import deque
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from engine.config.tree import TelemetryConfig
from engine.errors import ConfigError, TransientError, url_without_password
from engine.supervisor.telemetry import Status, StreamStatus

TIMEOUT_S = 3.0
MAX_BYTES = 64 * 2**20
RATE_OVER_S = 10.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Source:
    """The endpoints of an engine.

    Raises:
        ConfigError: the address or the certificate authorities are unusable.
    """

    def __init__(self, url: str, context: ssl.SSLContext | None = None, token: str = "") -> None:
        self.shown = url_without_password(url)
        self._operation = f"read the status of {self.shown}"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError("read --url", str(error), "Give http://host:port or https://host:port.") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("read --url", f"got {self.shown}", "Give http://host:port or https://host:port.")
        self._host, self._port, self._is_secure = parts.hostname, port, parts.scheme == "https"
        self.address = parts.netloc.rpartition("@")[2]
        self._path = parts.path.rstrip("/") + "/status"
        self._context = context or ssl.create_default_context()
        self._headers = {"Accept": "application/json"}
        if parts.username or parts.password:
            given = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {b64encode(given.encode()).decode()}"
        elif token:
            self._headers["Authorization"] = f"Bearer {token}"

    def read(self) -> Status | None:
        """The current status; None while the engine starts.

        Raises:
            ConfigError: it will not be told: wrong credentials, an untrusted certificate, or no engine there.
            TransientError: there is no answer now.
        """
        try:
            code, body = self._get()
        except ssl.SSLCertVerificationError as error:
            remedy = "Give the authority of its certificate with --ca-file."
            raise ConfigError(self._operation, error.verify_message, remedy) from error
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise TransientError(self._operation, cause) from error
        if code == 401:
            remedy = (
                "Give telemetry.password in the configuration, or in --url 'http://headrace:${NAME}@host:port'."
            )
            raise ConfigError(self._operation, "it asks for credentials that were not given or are wrong", remedy)
        try:
            if code == 503:
                return None
            if code != 200:
                raise ValueError(f"HTTP {code}")
            return msgspec.json.decode(body, type=Status)
        except ValueError as error:
            remedy = "Is the address that of an engine (telemetry.listen), and the engine of this version?"
            raise ConfigError(self._operation, f"the answer is no status ({error})", remedy) from error

    def _get(self) -> tuple[int, bytes]:
        connection: http.client.HTTPConnection
        if self._is_secure:
            options: dict[str, Any] = {"timeout": TIMEOUT_S, "context": self._context}
            connection = http.client.HTTPSConnection(self._host, self._port, **options)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", self._path, headers=self._headers)
            answer = connection.getresponse()
            return answer.status, answer.read(MAX_BYTES)
        finally:
            connection.close()


def source_of(telemetry: TelemetryConfig) -> Source:
    """The endpoints of the engine that runs here with this configuration.

    Its certificate is the one in the configuration, whatever host that is for.

    Raises:
        ConfigError: it has none, or its certificate cannot be read.
    """
    if not telemetry.listen:
        raise ConfigError("read telemetry.listen", "this engine has no endpoints", "Set it, or give --url.")
    host, _, port = telemetry.listen.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    host = _EVERYWHERE.get(host, host)
    host = f"[{host}]" if ":" in host else host
    if not telemetry.certificate_file:
        return Source(f"http://{host}:{port}", token=telemetry.password)
    context = trusting(telemetry.certificate_file, "telemetry.certificate_file")
    context.check_hostname = False
    return Source(f"https://{host}:{port}", context, telemetry.password)


def trusting(path: str, what: str) -> ssl.SSLContext:
    """A context that trusts the certificates of a file alone, those of servers included.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=path)
    except OSError as error:
        raise ConfigError(f"read {what} ({path})", str(error), "Give a file of certificates in PEM.") from error
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


class Rates:
    """What happened per second, over the last ``RATE_OVER_S``.

    State: the answers of that time.
    """

    def __init__(self) -> None:
        self._answers: deque[Status] = deque()

    def add(self, status: Status) -> None:
        """Take the next answer; a restarted engine counts from 0."""
        if self._answers and self._answers[-1].started_at != status.started_at:
            self._answers.clear()
        if not self._answers or status.at > self._answers[-1].at:
            self._answers.append(status)
        while len(self._answers) > 2 and status.at - self._answers[1].at >= RATE_OVER_S:
            self._answers.popleft()

    def of_stream(self, name: str, counter: str) -> float | None:
        """How much a counter of a stream has grown per second; None if that is not known yet."""
        return self._rate(lambda status: {each.stream: getattr(each, counter) for each in status.streams}, name)

    def cpu_of(self, process: str) -> float | None:
        """How many processors a process has used."""
        return self._rate(lambda status: {each.process: each.cpu_s for each in status.processes}, process)

    def total(self, counter: str) -> float | None:
        """The sum of all streams."""
        if len(self._answers) < 2:
            return None
        names = [each.stream for each in self._answers[-1].streams]
        return sum(self.of_stream(name, counter) or 0.0 for name in names)

    def _rate(self, values: Any, name: str) -> float | None:
        if len(self._answers) < 2:
            return None
        first, last = self._answers[0], self._answers[-1]
        before, now = values(first).get(name), values(last).get(name)
        if before is None or now is None:
            return None
        return float(max(0.0, now - before) / (last.at - first.at))


_RANKS = {"failed": 0, "stalled": 1, "starting": 2, "reading": 4, "standby": 5, "finished": 6}


def by_trouble(stream: StreamStatus) -> tuple[int, str]:
    """The order of streams: problems first."""
    is_doubtful = stream.state == "reading" and bool(stream.oplog_short or stream.replaced)
    return 3 if is_doubtful else _RANKS[stream.state], stream.stream


def reason(stream: StreamStatus) -> str:
    """Why a stream is not simply being read."""
    if stream.state == "standby":
        return f"held by {stream.held_by}" if stream.held_by else "another engine is to take it"
    doubt = "the oplog is running out" if stream.oplog_short else ""
    if stream.replaced:
        doubt = f"not loaded since they were replaced: {', '.join(stream.replaced)}"
    return stream.error or stream.problem or doubt


def verdict(status: Status | None) -> tuple[str, str]:
    """The engine in a few words, and how good that is: ``good``, ``care`` or ``bad``."""
    if status is None:
        return "starting", "care"
    if status.draining:
        return "draining", "care"
    ranks = [by_trouble(each)[0] for each in status.streams]
    unread = sum(rank < 3 for rank in ranks)
    if unread:
        return f"{unread} of {len(ranks)} streams not read", "bad" if min(ranks) < 2 else "care"
    if 3 in ranks:
        return "a stream needs attention", "care"
    reading = ranks.count(4)
    return (f"reading {reading} stream{'s' * (reading != 1)}" if reading else "standing by"), "good"


def utc(seconds: float) -> str:
    """The time of day, in UTC."""
    return time.strftime("%H:%M:%SZ", time.gmtime(seconds))
