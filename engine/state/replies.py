"""What a Redis server's errors mean, and what to do about each.

What is known to be a matter of configuration is told at once; everything else may pass: a server that is out of
memory, fails over, loads or cannot save says so in an error reply, and is well again when that is over.
"""

from __future__ import annotations

import re

import redis
from redis import exceptions

from engine.errors import ConfigError, HeadraceError, TransientError

_RIGHTS = "Check the user and the password in state.url, and their rights."
_VERSION = "Is state.url a Redis 6 or later (or Valkey) that allows Lua scripts?"
_AWAY = "Is the state store up, and state.url right?"
# What the library says of a connection that cannot be made; the first that fits.
_UNREACHABLE = (
    (
        "not known|name resolution|nodename nor servname|No address associated",
        "Its name cannot be resolved: check the host in state.url, and this machine's DNS.",
    ),
    (
        "certificate",
        "Its certificate is not trusted here: name its authority by ssl_ca_certs in state.url, and the server by "
        "a name that is in the certificate.",
    ),
    ("SSL|TLS", "Does it speak TLS? rediss:// is with TLS, redis:// without."),
    (
        "[Tt]imeout|timed out",
        "It does not answer in time: is a firewall between, is it overloaded, or does it not speak TLS (rediss://)?",
    ),
    ("closed by server|reset by peer", "It hung up: is it up, and does it want TLS (rediss://)?"),
    (
        "MasterNotFound|No master found",
        "Do the Sentinels in state.url know the service, and see its primary?",
    ),
)
_CLUSTER = "Name one server, or a Sentinel: of a cluster, one that has all slots."

# The library takes the code off the text of these.
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
# The last is what a script meets inside.
_DENIED = {"NOAUTH", "WRONGPASS", "NOPERM", "has no permissions"}
_CONFIGURATION = {
    "MOVED": _CLUSTER,
    "ASK": _CLUSTER,
    "CROSSSLOT": _CLUSTER,
    "WRONGTYPE": "Something else uses the keys of state.prefix: choose another one.",
    "NOPROTO": _VERSION,
    "DENIED": "It is in protected mode: give it a password, or let it listen on an address of this machine only.",
    "unknown command": _VERSION,
    "wrong number of arguments": _VERSION,
    "DB index": "Check the database's number at the end of state.url.",
    "not allowed in cluster mode": "A cluster has the database 0 only.",
    "without any password configured": "The server has no password: take it out of state.url.",
}
_PASSING = {
    "OOM": "The state store is out of memory: raise its maxmemory, or free some; it must never evict.",
    "MISCONF": "The state store cannot save to its disk: see to its space and rights, and to the server's log.",
    "NOREPLICAS": "Bring the state store's replicas back, or lower its min-replicas-to-write.",
    "READONLY": "It is a replica now, perhaps after a failover: state.url must lead to the primary.",
    "MASTERDOWN": "It is a replica without its primary: state.url must lead to the primary.",
    "LOADING": "It is loading its data: this passes.",
    "BUSY": "A script has been running there for long: wait for it, or end it with SCRIPT KILL.",
    "CLUSTERDOWN": "The cluster does not serve all of its slots: see CLUSTER INFO.",
    "TRYAGAIN": "The cluster is moving this slot: this passes.",
    "max number of clients reached": "Raise the state store's maxclients, or close some of its clients.",
}
_WORDS = re.compile("|".join(rf"(?<![\w]){word}(?![\w])" for word in (*_DENIED, *_CONFIGURATION, *_PASSING)))


def translated(operation: str, where: str, error: redis.RedisError, *, worked: bool) -> HeadraceError:
    """The library's error as ours.

    Args:
        where: the server, without its password.
        worked: whether the server has ever done what it was asked: a password that is refused then has been
            changed, and may be changed back or put right there.
    """
    word = _word(error)
    code = "" if not word or word in str(error) else f"{word} "
    cause = f"{where}: {code}{error}"
    if word in _DENIED:
        if worked:
            return TransientError(operation, cause, f"It worked before: has it been changed? {_RIGHTS}")
        return ConfigError(operation, cause, _RIGHTS)
    if word in _CONFIGURATION:
        return ConfigError(operation, cause, _CONFIGURATION[word])
    if word in _PASSING:
        return TransientError(operation, cause, _PASSING[word])
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        remedies = (remedy for words, remedy in _UNREACHABLE if re.search(words, str(error)))
        return TransientError(operation, cause, next(remedies, _AWAY))
    if isinstance(error, redis.ResponseError):
        return TransientError(operation, cause, "The state store's own log may tell more.")
    return ConfigError(operation, cause, _VERSION)


def _word(error: redis.RedisError) -> str:
    """What tells which error it is: the reply's code, or words of an ``ERR``; empty for none that is known.

    Servers before version 7 put a script's error into the middle of one of their own, so that it is looked for
    anywhere in the text.
    """
    if (code := next((code for kind, code in _CODES.items() if isinstance(error, kind)), "")) != "":
        return code
    found = _WORDS.search(str(error))
    return found[0] if found else ""
