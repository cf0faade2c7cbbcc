"""Secrets that were changed while the engine runs: fetched again from where they came, once a server refuses them.

Each process does so for itself. The supervisor's copy of the configuration, which new processes are given, stays
as it was read; a process that is refused with it fetches the secret again, too.
"""

from __future__ import annotations

import logging

from msgspec.structs import replace

from engine.config.expansion import fetched_again
from engine.config.tree import S3Config, StateConfig
from engine.errors import ConfigError, Redactor
from engine.quantities import Secret

log = logging.getLogger("headrace")


def renewed(secret: Secret) -> Secret:
    """The secret as it is now in the files, or in AWS Secrets Manager, that it came from.

    If these cannot be read, that is logged, and the secret is returned as it is known.
    """
    if not secret.origin:
        return secret
    try:
        found, parts = fetched_again(secret.origin)
    except ConfigError as error:
        fields = {"cause": error.cause, "remedy": error.remedy}
        log.warning("a secret cannot be read again", extra={"fields": fields})
        return secret
    for part in (found, *parts):
        Redactor.learn(part)
    if found != secret:
        log.info("a secret has been read again, and has changed")
    found.origin = secret.origin
    return found


def renewed_state(state: StateConfig) -> StateConfig:
    """The section with its URL as it is now."""
    return replace(state, url=renewed(state.url))


def renewed_s3(s3: S3Config) -> S3Config:
    """The section with its credentials as they are now."""
    names = ("access_key", "secret_key", "session_token")
    return replace(s3, **{name: renewed(getattr(s3, name)) for name in names})
