"""What a Redis server's errors mean, and what to do about each.

Errors known to be a matter of configuration are raised as such; all others are worth a retry: a server that is out
of memory, failing over, loading or unable to save says so in an error reply, and recovers afterwards.
"""

from __future__ import annotations

import re

import redis
from redis import exceptions

from engine.errors import ConfigError, HeadraceError, TransientError

_RIGHTS = "Check the user and the password in state.url, and the user's rights."
_VERSION = "Is the server Redis 6 or later (or Valkey), and does it allow Lua scripts?"
_AWAY = "Is the state store up, and is state.url right?"
# The same for certificates: a mistake in the configuration, unless the connection has worked before.
_CERTIFICATES = (
    (
        "certificate verify failed|CERTIFICATE_VERIFY_FAILED|certificate is not valid|doesn't match",
        "The server's certificate is not trusted: set its CA by ssl_ca_certs in state.url, and address the server "
        "by a name that is in the certificate.",
    ),
    (
        "CERTIFICATE_REQUIRED|certificate required|bad certificate|unknown ca|UNKNOWN_CA",
        "The server requires a certificate that it trusts: name it by ssl_certfile and ssl_keyfile in state.url.",
    ),
)
# What the library says of a failed connection, and the remedy for it; the first match counts.
_UNREACHABLE = (
    ("Too many open files", "Raise this machine's limit of open files (ulimit -n)."),
    (
        "not known|name resolution|nodename nor servname|No address associated",
        "The name cannot be resolved: check the host in state.url, and this machine's DNS.",
    ),
    *_CERTIFICATES,
    ("SSL|TLS", "Does the server use TLS? rediss:// is with TLS, redis:// without."),
    (
        "[Tt]imeout|timed out",
        "The server does not answer in time: is a firewall in the way, is it overloaded, or does it not use TLS "
        "(rediss://)?",
    ),
    (
        "closed by server|reset by peer",
        "The server closed the connection: is it up, and does it require TLS (rediss://)?",
    ),
    (
        "MasterNotFound|No master found",
        "Do the Sentinels in state.url know the service, and can they reach its primary?",
    ),
)
_CLUSTER = "Name a single server or Sentinels in state.url; a cluster works only if one server has all slots."

# The library strips the code from the text of these.
_CODES: dict[type[redis.RedisError], str] = {
    exceptions.AuthenticationError: "WRONGPASS",
    exceptions.AuthorizationError: "NOPERM",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.AuthenticationWrongNumberOfArgsError: "WRONGPASS",
    exceptions.OutOfMemoryError: "OOM",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.BusyLoadingError: "LOADING",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.ExecAbortError: "EXECABORT",
    exceptions.AskError: "MOVED",  # MovedError is one too
    exceptions.ClusterCrossSlotError: "CROSSSLOT",
}
# The last is how a script reports a command that is denied.
_DENIED = {"NOAUTH", "WRONGPASS", "NOPERM", "has no permissions"}
_CONFIGURATION = {
    "MOVED": _CLUSTER,
    "ASK": _CLUSTER,
    "CROSSSLOT": _CLUSTER,
    "WRONGTYPE": "Something else uses keys with state.prefix: choose another prefix.",
    "NOPROTO": _VERSION,
    "DENIED": "The server is in protected mode: set a password, or let it listen on a local address only.",
    "unknown command": _VERSION,
    "wrong number of arguments": _VERSION,
    "DB index": "Check the database number at the end of state.url.",
    "not allowed in cluster mode": "A cluster has only database 0: name it in state.url, or none.",
    "without any password configured": "The server has no password: remove it from state.url.",
}
_PASSING = {
    "OOM": "The state store is out of memory: raise its maxmemory, or free some memory; it must never evict.",
    "MISCONF": "The state store cannot save to its disk: check free space, permissions and the server's log.",
    "NOREPLICAS": "Bring the state store's replicas back, or lower its min-replicas-to-write.",
    "READONLY": "The server is a replica now, perhaps after a failover: state.url must lead to the primary.",
    "MASTERDOWN": "The server is a replica that has lost its primary: state.url must lead to the primary.",
    "LOADING": "The state store is loading its data: this passes by itself.",
    "BUSY": "A script has been running there for a long time: wait for it, or end it with SCRIPT KILL.",
    "CLUSTERDOWN": "The cluster does not serve all of its slots: see CLUSTER INFO.",
    "TRYAGAIN": "The cluster is moving this slot: this passes by itself.",
    "max number of clients reached": "Raise the state store's maxclients, or close some of its clients.",
}
_WORDS = re.compile("|".join(rf"(?<![\w]){word}(?![\w])" for word in (*_DENIED, *_CONFIGURATION, *_PASSING)))


def translated(operation: str, where: str, error: redis.RedisError | OSError, *, worked: bool) -> HeadraceError:
    """The library's error, or the system's, as ours.

    Args:
        where: the server, without its password.
        worked: whether the server has accepted a command before: a password that it refuses now has been changed,
            and may be changed back or corrected on the server.
    """
    if isinstance(error, OSError):
        return TransientError(operation, f"{where}: {error}", _unreachable(error))
    word = _word(error)
    code = "" if not word or word in str(error) else f"{word} "
    cause = f"{where}: {code}{error}"
    if word in _DENIED:
        if worked:
            return TransientError(
                operation,
                cause,
                f"They worked before, or have just been read again: have they been changed? {_RIGHTS}",
            )
        return ConfigError(operation, cause, _RIGHTS)
    if word in _CONFIGURATION:
        return ConfigError(operation, cause, _CONFIGURATION[word])
    if word in _PASSING:
        return TransientError(operation, cause, _PASSING[word])
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        remedy = _unreachable(error)
        mistaken = not worked and remedy in dict(_CERTIFICATES).values()
        return (ConfigError if mistaken else TransientError)(operation, cause, remedy)
    if isinstance(error, redis.ResponseError):
        return TransientError(operation, cause, "The state store's own log may say more.")
    return ConfigError(operation, cause, _VERSION)


def is_refused(error: Exception) -> bool:
    """Whether another user or password might be accepted."""
    return isinstance(error, redis.RedisError) and _word(error) in _DENIED


def _unreachable(error: Exception) -> str:
    return next((remedy for words, remedy in _UNREACHABLE if re.search(words, str(error))), _AWAY)


def _word(error: redis.RedisError) -> str:
    """What identifies the error: the reply's code, or words of an ``ERR``; empty if unknown.

    Servers before version 7 embed a script's error in one of their own, so the whole text is searched.
    """
    if (code := next((code for kind, code in _CODES.items() if isinstance(error, kind)), "")) != "":
        return code
    found = _WORDS.search(str(error))
    return found[0] if found else ""
