"""How error replies of Redis servers are classified."""

from __future__ import annotations

import pytest
from redis._parsers.base import BaseParser

from engine.errors import ConfigError, TransientError
from engine.state.replies import translated


@pytest.mark.parametrize(
    ("reply", "kind", "remedy"),
    [
        (
            "ERR Error running script (call to f_1): @user_script:9: -OOM command not allowed",
            TransientError,
            "maxmem",
        ),
        ("TRYAGAIN Multiple keys request during rehashing of slot", TransientError, "this passes"),
        ("CLUSTERDOWN Hash slot not served", TransientError, "CLUSTER INFO"),
        ("LOADING Redis is loading the dataset in memory", TransientError, "loading"),
        ("UNBLOCKED force unblock from blocking operation", TransientError, "own log"),
        ("EXECABORT Transaction discarded because of previous errors.", TransientError, "own log"),
        ("ERR something that nobody has thought of", TransientError, "own log"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", ConfigError, "another prefix"),
        ("ERR unknown command 'EVAL', with args beginning with:", ConfigError, "allow Lua"),
        ("ERR DB index is out of range", ConfigError, "database number"),
        ("MOVED 3999 127.0.0.1:6381", ConfigError, "has all slots"),
        ("NOPERM this user has no permissions to run the 'eval' command", ConfigError, "rights"),
        ("DENIED Redis is running in protected mode", ConfigError, "protected mode"),
    ],
)
def test_unknown_replies_are_transient(reply: str, kind: type[Exception], remedy: str) -> None:
    """Replies that no local server can be made to send, quoted from those that do."""
    error = BaseParser.parse_error(reply)
    found = translated("write", "redis://host/0", error, worked=False)
    assert type(found) is kind
    assert remedy in found.remedy
    assert reply.removeprefix("ERR ").split(" ")[0] in found.cause
