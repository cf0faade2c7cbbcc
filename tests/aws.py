"""Stand-ins for AWS Secrets Manager, and for the service that gives roles their credentials (STS)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs


@contextmanager
def secrets_manager(secrets: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Serve these secrets; the environment in which clients find the server, with credentials.

    The secret ``denied`` is refused.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["SecretId"]
            status, answer = 400, {"__type": "ResourceNotFoundException", "message": "not found"}
            if asked == "denied":
                answer = {"__type": "AccessDeniedException", "message": "no"}
            elif asked in secrets:
                status, answer = 200, {"Name": asked, "SecretString": secrets[asked]}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with _serving(Handler) as url:
        yield {
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "chain",
            "AWS_SECRET_ACCESS_KEY": "ch4in-secret",
        }


_ANSWER = """\
<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult>
<Credentials><AccessKeyId>KEY{number}</AccessKeyId><SecretAccessKey>s3cret{number}</SecretAccessKey>
<SessionToken>token{number}</SessionToken><Expiration>{expires}</Expiration></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""


@contextmanager
def role_of_a_pod(token: Path, asked: list[str]) -> Iterator[dict[str, str]]:
    """Give a role's credentials for the token in a file (IRSA); the environment that Kubernetes gives such a pod.

    Each time they are others, and so near their end that clients ask again for the next request.

    Args:
        asked: gets the tokens that were shown.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            asked.append(form["WebIdentityToken"][0])
            expires = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
            body = _ANSWER.format(number=len(asked), expires=expires).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with _serving(Handler) as url:
        yield {
            "AWS_ENDPOINT_URL_STS": url,
            "AWS_REGION": "us-east-1",
            "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/headrace",
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
        }


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
