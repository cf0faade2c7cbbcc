"""The HTTP server: what can be tested without an engine. ``integration/test_endpoints.py`` has the rest."""

from __future__ import annotations

import sys
import urllib.request

import pytest

from engine.supervisor.endpoints import HttpServer, Reply


def test_it_can_be_closed_at_any_moment(caplog: pytest.LogCaptureFixture) -> None:
    """Also while it is still starting."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(600):
            server = HttpServer("127.0.0.1:0", lambda _: None)
            for _ in range(number):
                pass
            server.close()
            server.close()
    finally:
        sys.setswitchinterval(interval)
    assert not caplog.records


def test_it_answers_until_it_is_closed() -> None:
    server = HttpServer("127.0.0.1:0", lambda path: Reply(200, "text/plain", path.encode()))
    with urllib.request.urlopen(f"http://{server.address}/x", timeout=30) as answer:
        assert answer.read() == b"/x"
    server.close()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{server.address}/x", timeout=30)
