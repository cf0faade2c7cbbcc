"""Secrets that are kept elsewhere: in files, as of Docker and Kubernetes, and in AWS Secrets Manager."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from engine.errors import ConfigError

_OPERATION = "read a secret"
_FILE_BYTES = 64 * 2**10
_REMEDIES = {
    "ResourceNotFoundException": "Check the secret's id, and the region (AWS_REGION).",
    "AccessDeniedException": "Grant secretsmanager:GetSecretValue on it (and kms:Decrypt on its key).",
    "DecryptionFailure": "Grant kms:Decrypt on the secret's key.",
    "UnrecognizedClientException": "Correct the credentials of the AWS chain.",
    "InvalidSignatureException": "Correct the credentials of the AWS chain.",
    "ExpiredTokenException": "Renew the credentials of the AWS chain.",
    "NoCredentialsError": "Give the process a role, or credentials in the AWS chain.",
    "NoRegionError": "Set AWS_REGION.",
}
_OTHERS = "Is AWS Secrets Manager reachable from here (AWS_REGION, AWS_ENDPOINT_URL)?"


def from_file(path: str) -> str:
    """The content of a file, without the newlines at its end.

    Raises:
        ConfigError: there is none, it cannot be read, or it is empty.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(_OPERATION, "no such file", "Is the secret mounted there?") from None
    except (OSError, ValueError) as error:
        cause = f"the file cannot be read ({getattr(error, 'strerror', '') or error})"
        raise ConfigError(_OPERATION, cause, "Let the engine's user read it.") from None
    if len(content) > _FILE_BYTES:
        raise ConfigError(_OPERATION, "the file is larger than 64 KiB", "Name the file of a single secret.")
    try:
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:  # its message would show some of the bytes
        raise ConfigError(_OPERATION, "the file is not text in UTF-8", "Write the secret as text.") from None
    if not text:
        raise ConfigError(_OPERATION, "the file is empty", "Write the secret into it.")
    return text


def from_aws(reference: str) -> str:
    """The text of a secret in AWS Secrets Manager, or of one key of it if it is a JSON object.

    The credentials, the region and the endpoint are those of the AWS chain.

    Args:
        reference: ``secret-id`` or ``secret-id#json-key``; the id may be an ARN.

    Raises:
        ConfigError: the secret cannot be fetched, or there is no such key in it.
    """
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    secret_id, _, key = reference.partition("#")
    limits = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 3})
    region = os.environ.get("AWS_REGION")  # which botocore does not read
    if secret_id.startswith("arn:") and secret_id.count(":") > 3:
        region = secret_id.split(":")[3]
    try:
        client = botocore.session.Session().create_client("secretsmanager", region_name=region, config=limits)
        answer: dict[str, Any] = client.get_secret_value(SecretId=secret_id)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        raise ConfigError(_OPERATION, f"AWS refuses it ({code})", _REMEDIES.get(code, _OTHERS)) from None
    except (BotoCoreError, ValueError) as error:  # the latter of an endpoint that is no URL
        remedy = _REMEDIES.get(type(error).__name__, _OTHERS)
        raise ConfigError(_OPERATION, f"{type(error).__name__}: {error}".rstrip("."), remedy) from None
    text = answer.get("SecretString") or answer.get("SecretBinary", b"").decode(errors="replace")
    if key:
        text = _member(text, key)
    if not text:
        raise ConfigError(_OPERATION, "the secret is empty", "Give it a value.")
    return str(text)


def _member(text: str, key: str) -> str:
    try:
        found = json.loads(text)
    except ValueError:  # its message would show some of the text
        found = None
    if not isinstance(found, dict):
        raise ConfigError(_OPERATION, "the secret is not a JSON object", f"Leave out #{key}, or make it one.")
    if key not in found:
        remedy = f"It has {', '.join(sorted(found)) or 'none'}."  # names, not values
        raise ConfigError(_OPERATION, f"the secret has no key {key!r}", remedy)
    return str(found[key])
