"""A fleet on a live workload: engines are killed, stopped, added and rolled at random, and all must be exact.

``python -m tests.integration.fleet --minutes 5`` prints each event, and how long streams had no owner for it.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from bench.local import LocalStack
from engine.config.tree import LAKE
from tests.integration.harness import Engine, EngineConfig, Lake, PlainStream, catch_up, operation_time
from tests.integration.soak import writing

STREAMS = 6
# Beyond the lease, until every stream has an owner again.
GRACE_S = 5.0
# What looking takes, on a machine that is busy with much else.
LOOKING_S = 3.0


@dataclass
class Fleet:
    """Some engines with one configuration.

    State: the engines that run, and those that are stopped (SIGSTOP); how many have been started.
    """

    config: EngineConfig
    engines: list[Engine] = field(default_factory=list)
    stopped: list[Engine] = field(default_factory=list)
    started: int = 0

    def start(self, **sections: dict[str, Any]) -> Engine:
        """Start another engine, with these sections changed."""
        directory = self.config.directory / f"engine{self.started}"
        directory.mkdir()
        self.started += 1
        shared = {name: dict(keys) for name, keys in self.config.sections.items() if name in SHARED}
        config = EngineConfig(self.config.stack, directory, self.config.name, shared)
        for name, keys in sections.items():
            config.set(name, **keys)
        self.engines.append(Engine(config))
        return self.engines[-1]

    def owners(self) -> dict[str, list[Engine]]:
        """By stream, the engines that read it."""
        found: dict[str, list[Engine]] = {}
        for engine in self.engines:
            for each in (engine.status() or {"streams": []})["streams"] if engine not in self.stopped else []:
                found.setdefault(each["stream"], [])
                if each["reading"]:
                    found[each["stream"]].append(engine)
        return found

    def counts(self) -> Counter[int]:
        """How many streams each engine reads, by its place."""
        owners = [engine for each in self.owners().values() for engine in each]
        return Counter({place: owners.count(engine) for place, engine in enumerate(self.engines)})

    def wait_owned(self, within_s: float) -> float:
        """Wait until every stream is read by one engine; how long that took."""
        return self._wait(
            lambda: len(found := self.owners()) == STREAMS and all(len(each) == 1 for each in found.values()),
            within_s,
        )

    def wait_even(self, within_s: float = 120.0, streams: int = STREAMS) -> float:
        """Wait until all streams are read, by engines with even shares."""

        def is_even() -> bool:
            counts = self.counts()
            return counts.total() == streams and max(counts.values()) - min(counts.values()) <= 1

        return self._wait(is_even, within_s)

    def _wait(self, condition: Callable[[], bool], within_s: float) -> float:
        began = time.monotonic()
        while not condition():
            waited = time.monotonic() - began
            for each in self.engines:
                assert each.process.poll() is None, f"ended with {each.process.returncode}: {each.log_tail()}"
            assert waited < within_s, f"{waited:.1f} s: {self.counts()}\n" + "\n".join(
                each.log_tail() for each in self.engines if each not in self.stopped
            )
            time.sleep(0.1)
        return time.monotonic() - began

    # --- what can happen -------------------------------------------------------------------------------------

    def kill(self, rng: random.Random) -> None:
        """SIGKILL an engine with its children, or only the supervisor."""
        engine = rng.choice(self._running())
        self.engines.remove(engine)
        if rng.random() < 0.5:
            engine.kill_tree()
        else:
            engine.kill_supervisor()

    def stop(self, rng: random.Random) -> None:
        """SIGSTOP an engine with its children."""
        engine = rng.choice(self._running())
        os.killpg(engine.process.pid, signal.SIGSTOP)
        self.stopped.append(engine)

    def go_on(self, _: random.Random) -> None:
        """SIGCONT those that are stopped."""
        while self.stopped:
            os.killpg(self.stopped.pop().process.pid, signal.SIGCONT)

    def end(self, rng: random.Random) -> None:
        """SIGTERM an engine; it must end properly."""
        engine = rng.choice(self._running())
        self.engines.remove(engine)
        assert engine.terminate() == 0, engine.log_tail()

    def add(self, _: random.Random) -> None:
        """Start another."""
        self.start()

    def roll(self, rng: random.Random) -> None:
        """Start another, and end one once that is ready, for each that there is."""
        for engine in list(self._running()):
            new = self.start()
            new.wait_for(lambda status: bool(status["streams"]), "status")
            self.engines.remove(engine)
            assert engine.terminate() == 0, engine.log_tail()
        del rng

    def _running(self) -> list[Engine]:
        return [each for each in self.engines if each not in self.stopped]

    def possible(self) -> list[Callable[[random.Random], None]]:
        """What can happen now."""
        found: list[Callable[[random.Random], None]] = []
        if len(self._running()) > 1:
            found += [self.kill, self.stop, self.end]
        if len(self.engines) < 4:
            found.append(self.add)
        if self.stopped:
            found.append(self.go_on)
        if len(self.engines) == 3 and not self.stopped:
            found.append(self.roll)
        return found

    def close(self) -> None:
        """End everything."""
        self.go_on(random.Random())
        for each in self.engines:
            with suppress(ProcessLookupError):
                assert each.terminate() == 0, each.log_tail()


# The sections of the configuration that the engines of a fleet have in common.
SHARED = ("source", "state", "lease", "sink", "sink.s3", "batch", "fleet", "retry", "memory")


def disturbed(
    fleet: Fleet, rng: random.Random, events: int, seconds: float, ttl_s: float
) -> list[tuple[str, float]]:
    """Random events, as many as asked for or until the time is over; how long each left a stream unowned."""
    until = time.monotonic() + seconds
    seen: list[tuple[str, float]] = []
    while len(seen) < events and time.monotonic() < until:
        time.sleep(rng.uniform(1.0, 6.0))
        happens = rng.choice(fleet.possible())
        happens(rng)
        # Streams that one engine gives up to another are drained first.
        took_s = fleet.wait_owned(ttl_s + GRACE_S + LOOKING_S)
        seen.append((happens.__name__, took_s))
        print(f"{happens.__name__:6} owned again after {took_s:4.1f} s", flush=True)
    fleet.go_on(rng)
    while len(fleet.engines) < 3:
        fleet.start()
    while len(fleet.engines) > 3:
        fleet.end(rng)
    return seen


def rest(fleet: Fleet, seconds: float) -> None:
    """Nothing may move while the membership stands still."""
    before = {stream: engines[0].config.directory.name for stream, engines in fleet.owners().items()}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        now = {stream: [each.config.directory.name for each in found] for stream, found in fleet.owners().items()}
        assert now == {stream: [name] for stream, name in before.items()}
        time.sleep(0.5)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", choices=["lake", "redis"], default="lake")
    parser.add_argument("--ttl", type=float, default=10.0)
    options = parser.parse_args()
    collections = [f"c{number}" for number in range(STREAMS)]
    with LocalStack() as stack, tempfile.TemporaryDirectory() as directory:
        assert stack.mongo is not None
        client: MongoClient[dict[str, Any]] = MongoClient(stack.mongo.uri)
        config = EngineConfig(stack, Path(directory), "fleet", {"source": {"collections": collections}})
        config.set("lease", ttl=f"{options.ttl}s")
        config.set("state", url=LAKE if options.state == "lake" else stack.valkey.url)
        lake, plain = Lake(stack, "fleet"), PlainStream(client, "fleet", operation_time(client))
        fleet = Fleet(config)
        with writing(stack.mongo.uri, "fleet", options.seed, collections):
            for _ in range(3):
                fleet.start()
            print(f"three engines: even after {fleet.wait_even():.1f} s", flush=True)
            seen = disturbed(fleet, random.Random(options.seed), 10**6, options.minutes * 60, options.ttl)
            print(f"in the end: even after {fleet.wait_even():.1f} s: {fleet.counts()}", flush=True)
            rest(fleet, 60)
            print("nothing has moved for a minute", flush=True)
        finish(fleet, lake, plain)
        print(f"{len(seen)} events, {Counter(name for name, _ in seen)}", flush=True)
        print(
            f"longest without an owner: {max(took for _, took in seen):.1f} s; lease {options.ttl} s", flush=True
        )


def finish(fleet: Fleet, lake: Lake, plain: PlainStream) -> None:
    """End the engines, land what is left, and compare with the plain driver's stream."""
    expected = plain.stop()
    last = fleet.engines[0].config
    fleet.close()
    catch_up(last)
    found = lake.check_no_token_twice()
    assert found == expected, f"{len(expected - found)} lost, {len(found - expected)} unknown"
    print(f"{len(expected):,} events: lost 0, doubled 0", flush=True)


if __name__ == "__main__":
    main()
