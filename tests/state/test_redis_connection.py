"""TLS to Redis: authorities and certificates of our own, for single servers and for Sentinels."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import redis
import trustme

from bench.local import LocalStack
from bench.local.servers import Process, free_ports, valkey_path
from engine.config import Secret
from engine.config.tree import StateConfig
from engine.errors import ConfigError
from engine.state.redis import RedisStore
from tests.tls import tls_in_front_of, written_ca, written_certificate


def read(url: str) -> None:
    with closing(RedisStore(StateConfig(Secret(url)), read_only=True)) as store:
        store.read_all()


def test_a_server_that_wants_a_certificate(stack: LocalStack, tmp_path: Path) -> None:
    authority = trustme.CA()
    ca = written_ca(authority, tmp_path)
    both, key = written_certificate(authority, tmp_path, "client", password="k3y")
    options = f"ssl_ca_certs={ca}&ssl_certfile={both}&ssl_keyfile={key}"
    with tls_in_front_of(stack.valkey.port, authority, clients=authority) as port:
        url = f"rediss://localhost:{port}/0"
        read(f"{url}?{options}&ssl_password=k3y")
        with pytest.raises(ConfigError, match=r"ssl_password if the key is encrypted") as caught:
            read(f"{url}?{options}&ssl_password=wr0ng")
        assert "wr0ng" not in str(caught.value)
        with pytest.raises(ConfigError, match=r"requires a certificate.* ssl_certfile"):
            read(f"{url}?ssl_ca_certs={ca}")


@pytest.mark.parametrize("fault", ["another authority", "another name"])
def test_a_certificate_that_is_not_trusted(stack: LocalStack, tmp_path: Path, fault: str) -> None:
    authority = trustme.CA()
    names = ("elsewhere.example",) if fault == "another name" else ("localhost",)
    ca = written_ca(authority if fault == "another name" else trustme.CA(), tmp_path)
    refused = pytest.raises(ConfigError, match=r"not trusted: set its CA by ssl_ca_certs")
    with tls_in_front_of(stack.valkey.port, authority, names) as port, refused:
        read(f"rediss://localhost:{port}/0?ssl_ca_certs={ca}")


@pytest.mark.parametrize(
    "url",
    [
        "rediss://h/0?ssl_ca_certs=/nowhere.pem",
        "rediss://h/0?ssl_certfile=/nowhere.pem",
        "rediss+sentinel://h:1/main?ssl_ca_certs=/nowhere.pem",
        "redis://127.0.0.1:1/0?ssl_ca_cert=/nowhere.pem",
        "redis+sentinel://h:1/main?ssl_ca_cert=/nowhere.pem",
    ],
)
def test_files_and_options_that_do_not_exist(url: str) -> None:
    with pytest.raises(ConfigError, match=r"state\.url"):
        read(url)


def test_sentinels_are_asked_through_tls_too(stack: LocalStack, tmp_path: Path) -> None:
    authority = trustme.CA()
    ca = written_ca(authority, tmp_path)
    (port,) = free_ports(1)
    with tls_in_front_of(stack.valkey.port, authority) as server:
        config = tmp_path / "sentinel.conf"
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {tmp_path}",
            f"sentinel monitor main 127.0.0.1 {server} 1",
        ]
        # It speaks no TLS itself, and so cannot reach what it monitors.
        config.write_text("\n".join([*lines, "sentinel down-after-milliseconds main 3600000", ""]))
        process = Process("sentinel", [valkey_path(), str(config), "--sentinel"], tmp_path)
        process.start()
        process.wait_ready(lambda: answers(port))
        try:
            with tls_in_front_of(port, authority) as sentinel:
                read(f"rediss+sentinel://localhost:{sentinel}/main/0?ssl_ca_certs={ca}")
        finally:
            process.kill()


def answers(port: int) -> bool:
    try:
        with closing(redis.Redis(port=port)) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False
