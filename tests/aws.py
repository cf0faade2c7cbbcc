"""A stand-in for AWS Secrets Manager."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


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

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": f"http://127.0.0.1:{server.server_port}",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "chain",
            "AWS_SECRET_ACCESS_KEY": "ch4in-secret",
        }
    finally:
        server.shutdown()
        server.server_close()
