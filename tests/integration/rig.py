"""Servers behind proxies, an engine with a live writer, and a comparison with a plain driver after each fault."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from bench.local import LocalStack
from bench.local.servers import wait_until
from engine.config.tree import LAKE
from tests.clocks import SteppedClock
from tests.integration.harness import Engine, EngineConfig, Lake, operation_time
from tests.integration.proxy import Gate
from tests.integration.s3_proxy import S3Proxy

Client = MongoClient[dict[str, Any]]
WITHIN_S = 150.0
LEASE_S = 10.0
_numbers = itertools.count()
_WRITE_EVERY_S = 0.05


class Servers:
    """A replica set of three, S3 and Valkey, each behind a proxy that the engine cannot avoid."""

    def __init__(self) -> None:
        self.stack = LocalStack(members=3)
        assert self.stack.mongo is not None
        self.mongo = self.stack.mongo
        self.gates = [Gate(port) for port in self.mongo.ports]
        self.mongo.advertised = [gate.port for gate in self.gates]
        self.s3 = S3Proxy(self.stack.s3.port)
        self.valkey = self.stack.valkey
        self.state = Gate(self.valkey.port)

    def __enter__(self) -> Self:
        self.stack.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.s3.shutdown()
        self.s3.server_close()
        for gate in (*self.gates, self.state):
            gate.close()
        if self.valkey is not self.stack.valkey:
            self.valkey.stop()
        self.stack.stop()

    def primary(self) -> int:
        """The number of the primary."""
        for number, port in enumerate(self.mongo.ports):
            with suppress(PyMongoError), self.member(port) as client:
                if client.admin.command("hello")["isWritablePrimary"]:
                    return number
        raise NoPrimaryError

    def has_primary(self) -> bool:
        """Whether there is one."""
        with suppress(NoPrimaryError):
            return self.primary() >= 0
        return False

    def member(self, port: int) -> Client:
        """A client of one member, around the proxies."""
        return MongoClient("127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=2000)

    def wait_whole(self) -> None:
        """Wait until all members are up again, and one of them is the primary."""

        def is_whole() -> bool:
            with suppress(PyMongoError, NoPrimaryError), self.member(self.mongo.ports[self.primary()]) as client:
                states = {each["stateStr"] for each in client.admin.command("replSetGetStatus")["members"]}
                return states == {"PRIMARY", "SECONDARY"}
            return False

        wait_until(is_whole, "the replica set")


class NoPrimaryError(Exception):
    """There is none at present."""


class Writer:
    """Inserts in a thread, whenever the server is up, until it is paused."""

    def __init__(self, client: Client, database: str) -> None:
        self._orders = client[database].orders
        self._running = threading.Event()
        self._idle = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended:
            if not self._running.wait(_WRITE_EVERY_S):
                self._idle.set()
                continue
            self._idle.clear()
            with suppress(PyMongoError):
                self._orders.insert_many([{"text": "x" * 100} for _ in range(10)])
            time.sleep(_WRITE_EVERY_S)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write meanwhile."""
        self._idle.clear()
        self._running.set()
        try:
            yield
        finally:
            self._running.clear()
            self._idle.wait()

    def end(self) -> None:
        """End the thread."""
        self._ended = True
        self._thread.join()


@dataclass
class Outcome:
    """What came of a fault.

    Attributes:
        did: what the engine did, in words.
        again_s: from the end of the fault until events were committed again.
        lost: events of the plain driver's change stream that are not in the lake.
        doubled: rows that are in the lake again, or that the plain change stream does not know.
        said: distinct warnings and errors, and all of the log since the fault began.
    """

    did: str
    again_s: float
    lost: int
    doubled: int
    said: list[str] = field(default_factory=list)
    log: str = ""


class Rig:
    """One engine, started when it is first used, and again after it has ended.

    Args:
        kind: where the state is: "redis" (or "clock", with a clock that can be stepped) or "lake".
        clock: of the engine.
    """

    def __init__(self, servers: Servers, directory: Path, kind: str, clock: SteppedClock | None = None) -> None:
        self.servers = servers
        self.name = f"faults{next(_numbers)}"
        self.directory = directory / self.name
        self.directory.mkdir()
        self.config = EngineConfig(servers.stack, self.directory, self.name)
        self.config.set("lease", ttl=f"{LEASE_S:.0f}s")
        self.config.set("retry", max_attempts=1000)
        self.config.set("state", url=f"redis://127.0.0.1:{servers.state.port}/0")
        self.config.set("sink.s3", endpoint_url=servers.s3.url)
        if kind == "lake":
            self.config.set("state", url=LAKE)
        self.clock = clock
        self._lake = Lake(servers.stack, self.name)
        self.client: Client = MongoClient(servers.mongo.uri)
        self.database = self.client[self.name]
        self.writer = Writer(self.client, self.name)
        self._since = operation_time(self.client)
        self._expected: set[str] = set()
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The engine, which captures by then."""
        if self._engine is None:
            self._engine = Engine(self.config, environment=self.clock.environment if self.clock else None)
            self._engine.wait_reading()
        return self._engine

    def is_engines(self, pid: int) -> bool:
        """Whether a process is one of the engine's."""
        engine = self._engine
        return engine is not None and pid in (engine.process.pid, *engine.children())

    def lose(self, kill: Callable[[Engine], object]) -> None:
        """Kill the engine; the next use starts another."""
        kill(self.engine)
        self._engine = None

    def committed(self) -> int:
        """The number of events that this engine has committed."""
        status = self.engine.wait_for(lambda status: bool(status["streams"]), "status")
        return int(status["streams"][0]["events_committed"])

    def wait_more(self, than: int) -> None:
        """Wait until more events are committed."""
        self.engine.wait_for(
            lambda status: bool(status["streams"]) and status["streams"][0]["events_committed"] > than,
            "more events",
            WITHIN_S,
        )

    def close(self) -> None:
        """End everything that was started here."""
        self.writer.end()
        if self._engine is not None:
            self._engine.__exit__()
        self.client.close()

    def end(self) -> None:
        """End the engine; it must do so properly."""
        if self._engine is not None:
            assert self._engine.terminate() == 0, self._engine.log_tail()
            self._engine = None

    def tried(self, fault: AbstractContextManager[None], lasts_s: float, *, stops: bool) -> Outcome:
        """Bring about a fault, wait until the engine has recovered, and compare.

        Args:
            fault: brings it about, and ends it.
            lasts_s: for how long, after it was brought about.
            stops: whether the engine ends by it; then it is started again once the fault has ended.
        """
        engine = self.engine
        log_from = engine.log_path.stat().st_size
        before = {each["process"]: each["restarts"] for each in (engine.status() or {})["processes"]}
        ending = ""
        with self.writer.writing():
            self.wait_more(self.committed())
            with fault:
                time.sleep(lasts_s)
                if stops:
                    code = engine.end()
                    self._engine = None
                    ending = f"stopped, exit {code}: {_last(engine.log())}"
            ended = time.monotonic()
            self.wait_more(0 if stops else self.committed())
            again_s = time.monotonic() - ended
            log = engine.log_path.read_bytes()[log_from:].decode(errors="replace")
            self.wait_more(self.committed())
        lost, doubled = self.compared()
        after = {each["process"]: each["restarts"] for each in (self.engine.status() or {})["processes"]}
        replaced = sum(max(0, after[each] - before.get(each, 0)) for each in after)
        said = _said(log)
        if self.engine is not engine and not ending:
            ending = "was started again"
        return Outcome(ending or _did(said, replaced), again_s, lost, doubled, said, log)

    def compared(self) -> tuple[int, int]:
        """How many events are missing once all should be there, and how many rows are too many."""
        self._expected |= self._plain()
        landed: Counter[str] = Counter()

        def is_complete() -> bool:
            nonlocal landed
            landed = self._landed()
            return not self._expected - set(landed)

        deadline = time.monotonic() + WITHIN_S
        while not is_complete() and time.monotonic() < deadline:
            time.sleep(0.1)
        unknown = set(landed) - self._expected
        return len(self._expected - set(landed)), len(unknown) + sum(landed.values()) - len(landed)

    def _plain(self) -> set[str]:
        """All events since the last comparison, by a plain change stream."""
        mark = self.database.orders.insert_one({"text": "the end"}).inserted_id
        found = set()
        with self.database.watch(start_at_operation_time=self._since, max_await_time_ms=200) as stream:
            for event in stream:
                found.add(event["_id"]["_data"])
                if event["documentKey"]["_id"] == mark:
                    self._since = event["clusterTime"]
                    return found
        raise AssertionError("the change stream has ended")

    def _landed(self) -> Counter[str]:
        return Counter(token for tokens in self._lake.tokens().values() for token in tokens)


def _said(log: str) -> list[str]:
    """Warnings and errors, distinct, in order of first appearance."""
    records = [json.loads(line) for line in log.splitlines() if line.startswith("{") and line.endswith("}")]
    return list(dict.fromkeys(each["message"] for each in records if each["level"] in ("warning", "error")))


# What the engine does, by what its log says.
_MEANINGS = {
    "is away": "retried",
    "has ended a request": "retried",
    "streams are held up": "said what held it up",
    "stream failed; starting over": "resumed the stream",
    "restoring them": "repaired its record",
    "this process was paused": "noticed the pause",
    "standing by": "took its lease again",
    "another engine runs this stream": "waited for its lease",
    "memory is short": "flushed early",
}


def meanings(log: str) -> str:
    """What the engines of a test did, by their log."""
    did = _did(_said(log), 0)
    return did if "process died" not in log else f"{did}; replaced processes".removeprefix("went on; ")


def stopped(log: str) -> str:
    """The end of an engine that does not go on, by its log."""
    return f"stopped, exit 1: {_last(log)}"


def _did(said: list[str], replaced: int) -> str:
    found = [what for words, what in _MEANINGS.items() if any(words in each for each in said)]
    did = list(dict.fromkeys(found))
    did += [f"replaced {replaced} process{'es' * (replaced > 1)}"] if replaced else []
    return "; ".join(did) or "went on"


def _last(log: str) -> str:
    """The cause in the last line of the log."""
    records = [json.loads(line) for line in log.splitlines() if line.startswith("{") and line.endswith("}")]
    errors = [each for each in records if each["level"] == "error"]
    return str(errors[-1].get("error", errors[-1]["message"])) if errors else ""
