"""The connection to Redis that ``state.url`` describes: one server or Sentinels, with or without TLS."""

from __future__ import annotations

import errno
import ssl
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from engine.config.tree import StateConfig
from engine.errors import ConfigError

TIMEOUT_S = 5.0
WAIT_TIMEOUT_MS = 5000
_OPERATION = "open the state store"
# The library's names of the options for TLS, and of those for Sentinels besides.
_TLS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_cert_reqs", "ssl_check_hostname"}
_OF_SENTINELS = {"sentinel_username", "sentinel_password"}


def connect(config: StateConfig) -> redis.Redis:
    """A client with one connection, which is made at once if it is to a single server.

    Raises:
        ConfigError: the URL, or a file that it names, cannot be used.
        RedisError: from the library.
    """
    scheme, query = config.url.partition("://")[0], config.url.partition("?")[2]
    options = {name: values[-1] for name, values in parse_qs(query).items()}
    common: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": TIMEOUT_S + WAIT_TIMEOUT_MS / 1000,
        "socket_connect_timeout": TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),  # the caller retries, and counts its attempts
    }
    if scheme.startswith("rediss"):
        common["ssl_check_hostname"] = True
        _check_tls(options)
    if "+sentinel" in scheme:
        return _connect_sentinel(config.url, options, common)
    try:
        return redis.Redis.from_url(config.url, single_connection_client=True, **common)
    except (ValueError, TypeError) as error:  # the latter of an option that does not exist
        raise ConfigError(_OPERATION, str(error), "Check state.url.") from None


def _check_tls(options: dict[str, str]) -> None:
    """Read the files as the library will, whose errors look like those of a server that is away."""
    try:
        if ca_file := options.get("ssl_ca_certs"):
            ssl.create_default_context(cafile=ca_file)
        if certificate := options.get("ssl_certfile"):
            key, password = options.get("ssl_keyfile"), options.get("ssl_password", "")
            ssl.create_default_context().load_cert_chain(certificate, key, lambda: password)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
            raise  # no fault of the files
        files = ", ".join(f"{name} {value}" for name, value in options.items() if name in _TLS - {"ssl_password"})
        remedy = "Name PEM files that the engine can read, with ssl_password if the key is encrypted."
        raise ConfigError(_OPERATION, f"state.url: {files}: {error}", remedy) from None


def _connect_sentinel(url: str, options: dict[str, str], common: dict[str, Any]) -> redis.Redis:
    """``redis+sentinel://[user:password@]host:port[,host:port]/service[/db][?sentinel_password=...]``.

    With ``rediss``, the connections to the Sentinels have TLS as well as those to the servers.
    """
    parts = urlsplit(url)
    user, _, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    try:
        if unknown := options.keys() - _TLS - _OF_SENTINELS:
            raise ValueError(f"unknown option {min(unknown)}")
        addresses = [(host, int(port or 26379)) for host, _, port in (h.rpartition(":") for h in hosts.split(","))]
        for host, _ in addresses:
            host.encode("idna")  # so does connecting, whose UnicodeError would not be one of the library's
        common |= {
            "db": int(db or 0),
            "username": unquote(user.partition(":")[0]) or None,
            "password": unquote(user.partition(":")[2]) or None,
        }
    except ValueError as error:
        remedy = "Write redis+sentinel://host:port,host:port/service/db."
        raise ConfigError(_OPERATION, f"state.url: {error}", remedy) from None
    from redis.sentinel import Sentinel

    tls: dict[str, Any] = {"ssl": parts.scheme.startswith("rediss")}
    if tls["ssl"]:
        tls |= {"ssl_check_hostname": True} | {name: options[name] for name in _TLS & options.keys()}
        tls["ssl_check_hostname"] = str(tls["ssl_check_hostname"]).lower() not in ("false", "0", "no")
    sentinel_options = {
        "username": options.get("sentinel_username"),
        "password": options.get("sentinel_password"),
        "socket_timeout": TIMEOUT_S,
    }
    sentinel = Sentinel(addresses, sentinel_kwargs=sentinel_options | tls, **common | tls)  # type: ignore[no-untyped-call]
    client: redis.Redis = sentinel.master_for(service)  # type: ignore[no-untyped-call]
    return client
