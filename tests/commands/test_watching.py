"""What ``top`` gets from an engine's endpoints: with TLS, with passwords, and from what is no engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from msgspec.structs import replace

from engine.commands.watching import Rates, Source, source_of, trusting
from engine.config import Secret
from engine.config.tree import TelemetryConfig
from engine.errors import ConfigError, TransientError
from engine.supervisor.telemetry import Telemetry
from tests.supervisor.test_telemetry import STREAM, like, status
from tests.tls import written_ca, written_certificate

PASSWORD = "pl4nted p@ss/word"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[tuple[TelemetryConfig, Path]]:
    """Endpoints with TLS and a password, for another host; their configuration, and their authority."""
    authority = trustme.CA()
    certificate, key = written_certificate(authority, tmp_path, "server", ["localhost"])
    config = TelemetryConfig("127.0.0.1:0", str(certificate), str(key), password=Secret(PASSWORD))
    telemetry = Telemetry()
    telemetry.status = status(STREAM)
    address = telemetry.serve(config)
    yield replace(config, listen=f"0.0.0.0:{address.rpartition(':')[2]}"), written_ca(authority, tmp_path)
    telemetry.close()


def test_the_engine_of_a_configuration(engine: tuple[TelemetryConfig, Path]) -> None:
    """Its certificate is trusted for what it is, not for its name."""
    config, _ = engine
    found = source_of(config).read()
    assert found is not None
    assert [each.stream for each in found.streams] == ["shop.orders"]
    with pytest.raises(ConfigError, match="credentials") as refused:
        source_of(replace(config, password=Secret("wrong"))).read()
    assert PASSWORD not in str(refused.value)


def test_an_engine_elsewhere(engine: tuple[TelemetryConfig, Path], tmp_path: Path) -> None:
    config, ca_file = engine
    port = config.listen.rpartition(":")[2]
    url = f"https://headrace:pl4nted%20p%40ss%2Fword@localhost:{port}"
    assert Source(url, trusting(str(ca_file), "--ca-file")).read()
    with pytest.raises(ConfigError, match="--ca-file") as refused:
        Source(url).read()
    assert "pl4nted" not in str(refused.value)
    with pytest.raises(ConfigError, match="IP address mismatch"):  # the certificate is for localhost
        Source(url.replace("localhost", "127.0.0.1"), trusting(str(ca_file), "--ca-file")).read()
    with pytest.raises(TransientError):  # not HTTP without TLS
        Source(f"http://127.0.0.1:{port}").read()
    other = written_ca(trustme.CA(), tmp_path, "other.pem")
    with pytest.raises(ConfigError, match=r"self-signed|unable to get"):
        Source(url, trusting(str(other), "--ca-file")).read()


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "http://", "http://x:port", "http://[::1"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="read --url"):
        Source(url)


def test_rates_of_counters_that_start_over() -> None:
    rates = Rates()
    for at, read, started_at in [(1.0, 100, 0.0), (3.0, 300, 0.0), (4.0, 10, 3.5), (6.0, 30, 3.5)]:
        rates.add(replace(status(like("a", events_read=read)), at=at, started_at=started_at))
        known = rates.of_stream("a", "events_read")
        assert known == {1.0: None, 3.0: 100.0, 4.0: None, 6.0: 10.0}[at]
    assert rates.of_stream("b", "events_read") is None
