"""Clients of ``telemetry.listen`` cannot harm the engine, and probes are still answered."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from pymongo import MongoClient

from tests.integration.harness import Engine, EngineConfig, Lake

Client = MongoClient[dict[str, Any]]
IDLE = 2000
PER_PROCESS = 500
EVENTS = 6000
PROBE_TIMEOUT_S = 5.0
# Opens many connections, sends nothing, and waits for the end of its standard input.
_IDLER = """
import socket, sys
kept = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(int(sys.argv[2]))]
print("connected", flush=True)
sys.stdin.read()
"""
ODD = {
    b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n": b" 200 ",
    b"GET /health HTTP/1.0\r\n\r\n": b" 200 ",
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 3: b" 200 ",
    b"GET /health HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n": b" 200 ",
    b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n": b" 404 ",
    b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc": b" 405 ",
    b"POST /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n": b" 405 ",
    b"BREW /status HTTP/1.1\r\nHost: x\r\n\r\n": b" 405 ",
    b"GET /health\r\n\r\n": b" 400 ",  # HTTP/0.9
    b"GET /health HTTP/1.1\r\n\r\n": b" 400 ",  # without a host
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n": b" 400 ",  # TLS
    b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 300_000: b" 400 ",
    b"POST /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnothing\r\n": b" 400 ",
}


@contextlib.contextmanager
def idle_connections(port: int) -> Iterator[None]:
    """This many silent connections, from several processes."""
    command = [sys.executable, "-c", _IDLER, str(port), str(PER_PROCESS)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with contextlib.ExitStack() as stack:
        idlers = [stack.enter_context(subprocess.Popen(command, **pipes)) for _ in range(IDLE // PER_PROCESS)]
        for each in idlers:
            assert each.stdout is not None
            assert each.stdout.readline() == b"connected\n"
        yield


def ask(port: int, request: bytes) -> bytes:
    """The answer, or the part received before the connection was closed."""
    answer = b""
    address = "127.0.0.1", port
    with socket.create_connection(address, PROBE_TIMEOUT_S) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(request)
        while data := connection.recv(65536):
            answer += data
    return answer


def is_cut_off(connection: socket.socket) -> bool:
    """Whether the server disconnects a client that sends an endless request byte by byte."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            connection.sendall(b"a")
        except ConnectionError:
            return True
        time.sleep(0.1)
    return False


def slow_to_read(port: int) -> socket.socket:
    """A client that requests a lot, and has a small receive buffer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.connect(("127.0.0.1", port))
    connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    return connection


def lowest_free(pid: int) -> int:
    """The next free file descriptor of a process; as the limit, it allows no more."""
    open_ = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in itertools.count() if number not in open_)


def test_connections_of_all_kinds(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    orders = mongo[config.name].orders
    stopped = threading.Event()

    def insert() -> None:
        for number in range(0, EVENTS, 100):
            orders.insert_many([{"n": number + n} for n in range(100)])
            stopped.wait(0.05)

    with Engine(config) as engine:
        engine.wait_reading()
        supervisor = psutil.Process(engine.process.pid)
        supervisor.rlimit(resource.RLIMIT_NOFILE, (1024, 1024))
        before = supervisor.num_fds()
        inserting = threading.Thread(target=insert)
        inserting.start()
        try:
            with idle_connections(config.port), contextlib.ExitStack() as stack:
                readers = [stack.enter_context(slow_to_read(config.port)) for _ in range(20)]
                loris = [socket.create_connection(("127.0.0.1", config.port)) for _ in range(20)]
                for each in loris:
                    stack.enter_context(each).sendall(b"GET /health HTTP/1.1\r\nX-")
                assert b" 200 " in ask(config.port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert supervisor.num_fds() < before + 300
                for request, code in ODD.items():
                    answer = ask(config.port, request)
                    assert code in answer.partition(b"\r\n")[0], (request[:50], answer[:200])
                    assert b" 200 " in ask(config.port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                for _ in range(20):
                    ask(config.port, os.urandom(2000) + b"\r\n\r\n")
                head = ask(config.port, b"HEAD /status HTTP/1.1\r\nHost: x\r\n\r\n")
                assert head.endswith(b"\r\n\r\n")
                for each in readers:
                    assert each.recv(1) == b"H"
                assert is_cut_off(loris[-1])
                # The engine closes the connections, although the clients keep their ends open.
                engine.wait_for(lambda _: supervisor.num_fds() < before + 20, "free file descriptors")
        finally:
            stopped.set()
            inserting.join()
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] == EVENTS, "all events")
        assert engine.terminate() == 0
        assert '"level":"error"' not in engine.log()
        assert "Traceback" not in engine.log()
    assert sorted(row["n"] for row in lake.rows()) == list(range(EVENTS))


def test_no_more_files_can_be_opened(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """Nor can /proc be read: failing to measure something must not end the engine."""
    orders = mongo[config.name].orders
    with Engine(config) as engine:
        engine.wait_reading()
        supervisor = psutil.Process(engine.process.pid)
        before = supervisor.rlimit(resource.RLIMIT_NOFILE)
        orders.insert_many([{"n": n} for n in range(1000)])
        deadline = time.monotonic() + 60
        while "memory cannot be measured" not in engine.log():
            assert engine.process.poll() is None, engine.log_tail()
            assert time.monotonic() < deadline, engine.log_tail()
            supervisor.rlimit(resource.RLIMIT_NOFILE, (lowest_free(supervisor.pid), before[1]))
            time.sleep(0.1)
        supervisor.rlimit(resource.RLIMIT_NOFILE, before)
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] == 1000, "all events")
        engine.wait_for(lambda status: status["memory_bytes"], "memory is measured again")
        assert engine.terminate() == 0
    assert sorted(row["n"] for row in lake.rows()) == list(range(1000))


def test_the_limit_of_open_files_is_raised(config: EngineConfig) -> None:
    """To the hard limit, for the engine and its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        engine = Engine(config)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with engine:
        engine.wait_reading()
        for pid in (engine.process.pid, *engine.pids("reader"), *engine.pids("writer")):
            assert psutil.Process(pid).rlimit(resource.RLIMIT_NOFILE) == (hard, hard)
