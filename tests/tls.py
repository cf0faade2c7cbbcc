"""TLS in front of servers without it, and certificates."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

LOCAL = ("localhost", "127.0.0.1")


@contextmanager
def tls_in_front_of(
    port: int,
    authority: trustme.CA,
    names: Sequence[str] = LOCAL,
    *,
    clients: trustme.CA | None = None,
    seen: list[bytes] | None = None,
) -> Iterator[int]:
    """Terminate TLS in front of a server; the port for clients.

    Args:
        names: what the certificate is for.
        clients: who must have issued a client's certificate; None if clients need none.
        seen: gets what clients send.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        clients.configure_trust(context)
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket, seen: list[bytes] | None) -> None:
        try:
            while data := source.recv(65536):
                if seen is not None:
                    seen.append(data)
                target.sendall(data)
        except OSError:
            pass
        for each in (source, target):
            with closing(each):
                pass

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            outside = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            try:
                outside.do_handshake()
            except OSError:  # the client does not like us, or we do not like it
                _end(socket.socket(fileno=outside.detach()))
                continue
            inside = socket.create_connection(("127.0.0.1", port))
            for source, target, kept in ((outside, inside, seen), (inside, outside, None)):
                threading.Thread(target=pump, args=(source, target, kept), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def _end(connection: socket.socket) -> None:
    """Close a connection so that the other side can read why: unread data would make it a reset."""
    with connection, suppress(OSError):
        connection.settimeout(1.0)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


def written_ca(authority: trustme.CA, directory: Path, name: str = "ca.pem") -> Path:
    """The file of an authority's certificate."""
    path = directory / name
    authority.cert_pem.write_to_path(str(path))
    return path


def written_certificate(
    authority: trustme.CA, directory: Path, name: str, names: Sequence[str] = LOCAL, password: str = ""
) -> tuple[Path, Path]:
    """The files of a new certificate with its key, and of the key alone; encrypted with a password."""
    issued = authority.issue_cert(*names)
    key = issued.private_key_pem.bytes()
    if password:
        encryption = BestAvailableEncryption(password.encode())
        key = load_pem_private_key(key, None).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    both, alone = directory / f"{name}.pem", directory / f"{name}.key"
    both.write_bytes(key + b"".join(each.bytes() for each in issued.cert_chain_pems))
    alone.write_bytes(key)
    return both, alone
