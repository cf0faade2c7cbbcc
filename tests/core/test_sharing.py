"""Engines that decide for themselves, on stale views, end up with even shares, and then nothing moves."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from engine.core.sharing import Member, share

TTL = 30.0


@dataclass
class Engine:
    """One engine; ``said`` is what it last announced, which may no longer be true."""

    name: str
    period: float
    cannot: frozenset[str] = frozenset()
    capacity: int = 10**6
    holds: set[str] = field(default_factory=set)
    draining: dict[str, float] = field(default_factory=dict)  # by stream: when it will have been drained
    said: Member = Member()  # noqa: RUF009 (immutable)
    next_look: float = 0.0
    alive: bool = True
    died_at: float = 0.0
    free_since: dict[str, float] = field(default_factory=dict)

    def member(self) -> Member:
        return Member(
            holds=dict.fromkeys(sorted(self.holds), True),
            cannot=dict.fromkeys(self.cannot, "it may not"),
            room=max(0, self.capacity - len(self.holds)),
            ready=True,
        )


class Fleet:
    """A store that fences, engines that look every few seconds, and time. Ground truth: who owns each stream."""

    def __init__(self, seed: int, streams: int, engines: int) -> None:
        self.rng = random.Random(seed)
        self.streams = [f"shop.c{number}" for number in range(streams)]
        self.owner: dict[str, Engine] = {}
        self.now = 0.0
        self.moves: list[float] = []
        self.engines: list[Engine] = []
        for _ in range(engines):
            self.join()

    def join(self, **traits: object) -> Engine:
        engine = Engine(f"e{self.rng.random()}", self.rng.uniform(1.0, 2.2), **traits)  # type: ignore[arg-type]
        engine.next_look = self.now + self.rng.random()
        self.engines.append(engine)
        return engine

    def kill(self, engine: Engine) -> None:
        engine.alive, engine.died_at = False, self.now

    def leave(self, engine: Engine) -> None:
        engine.alive = False
        engine.died_at = -TTL
        for stream in engine.holds:
            del self.owner[stream]
        engine.holds.clear()

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.2
            for engine in self.engines:
                if not engine.alive:
                    continue
                for stream, done in list(engine.draining.items()):
                    if self.now >= done:
                        del engine.draining[stream]
                        engine.holds.discard(stream)
                        if self.owner.get(stream) is engine:
                            del self.owner[stream]
                if self.now >= engine.next_look:
                    self.look(engine)

    def look(self, engine: Engine) -> None:
        engine.next_look = self.now + engine.period
        seen = {
            each.name: each.said
            for each in self.engines
            if each is engine or each.alive or self.now - each.died_at < TTL
        }
        seen[engine.name] = engine.said = engine.member()
        held = {stream for member in seen.values() for stream in member.holds}
        free = [stream for stream in self.streams if stream not in held]
        engine.free_since = {stream: engine.free_since.get(stream, self.now) for stream in free}
        late = [stream for stream, since in engine.free_since.items() if self.now - since > TTL]
        todo = share(self.streams, seen, engine.name, late)
        assert not (todo.take and todo.give)
        for stream in todo.take:
            owner = self.owner.get(stream)
            if owner is None or (not owner.alive and self.now - owner.died_at >= TTL):
                self.owner[stream] = engine
                engine.holds.add(stream)
                self.moves.append(self.now)
            else:  # denied: it looks again at once
                engine.next_look = self.now + 0.2
        for stream in todo.give:
            assert stream in engine.holds
            engine.draining.setdefault(stream, self.now + self.rng.uniform(0.1, 4.0))

    def counts(self) -> list[int]:
        return sorted(len(each.holds) for each in self.engines if each.alive)

    def unowned(self) -> list[str]:
        return [stream for stream in self.streams if stream not in self.owner or not self.owner[stream].alive]

    def assert_settled(self) -> None:
        assert not self.unowned()
        assert self.counts()[-1] - self.counts()[0] <= 1, self.counts()
        moves = len(self.moves)
        self.run(300)
        assert len(self.moves) == moves, "something moves although the membership stands still"


@pytest.mark.parametrize("seed", range(8))
def test_ten_engines_share_two_hundred_streams(seed: int) -> None:
    fleet = Fleet(seed, 200, 10)
    fleet.run(60)
    fleet.assert_settled()


@pytest.mark.parametrize("seed", range(25))
def test_engines_that_come_go_and_die(seed: int) -> None:
    rng = random.Random(-seed - 1)
    fleet = Fleet(seed, rng.randrange(1, 201), rng.randrange(1, 11))
    for _ in range(rng.randrange(1, 8)):
        fleet.run(rng.uniform(0, 60))
        alive = [each for each in fleet.engines if each.alive]
        match rng.choice(("join", "kill", "leave", "roll")):
            case "join" if len(alive) < 12:
                fleet.join()
            case "kill" if len(alive) > 1:
                fleet.kill(rng.choice(alive))
            case "leave" if len(alive) > 1:
                fleet.leave(rng.choice(alive))
            case "roll":
                fleet.leave(rng.choice(alive))
                fleet.join()
    fleet.run(TTL + 5.0)
    assert not fleet.unowned()
    fleet.run(400)
    fleet.assert_settled()


@pytest.mark.parametrize("seed", range(10))
def test_a_dead_engines_streams_are_owned_within_the_ttl_and_five_seconds(seed: int) -> None:
    fleet = Fleet(seed, 40, 5)
    fleet.run(60)
    fleet.kill(fleet.engines[seed % 5])
    fleet.run(TTL + 5.0)
    assert not fleet.unowned()


def test_a_newcomer_gets_its_part_and_nothing_else_moves() -> None:
    fleet = Fleet(1, 200, 9)
    fleet.run(120)
    fleet.join()
    moved = len(fleet.moves)
    fleet.run(60)
    assert fleet.counts() == [20] * 10
    assert len(fleet.moves) - moved == 20


@pytest.mark.parametrize("seed", range(10))
def test_a_stream_that_few_can_read_goes_to_one_who_can(seed: int) -> None:
    fleet = Fleet(seed, 30, 2)
    cannot = frozenset(fleet.streams[:10])
    fleet.join(cannot=cannot)
    fleet.join(capacity=3)
    fleet.run(200)
    assert not fleet.unowned()
    assert not cannot & fleet.engines[2].holds
    assert len(fleet.engines[3].holds) <= 3
    moves = len(fleet.moves)
    fleet.run(300)
    assert len(fleet.moves) == moves
    able = [len(each.holds) for each in fleet.engines[:3]]
    assert max(able) - min(able) <= 1


def test_what_nobody_can_take_stays_free_and_nothing_moves_for_it() -> None:
    fleet = Fleet(3, 12, 0)
    for _ in range(3):
        fleet.join(cannot=frozenset({"shop.c0"}), capacity=4)
    fleet.run(200)
    assert fleet.unowned() == ["shop.c0"]
    moves = len(fleet.moves)
    fleet.run(200)
    assert len(fleet.moves) == moves
    assert fleet.counts() == [3, 4, 4]


def test_nothing_is_given_up_for_an_engine_that_cannot_land_anything() -> None:
    streams = ["a", "b", "c", "d"]
    full = Member(holds=dict.fromkeys(streams, True), ready=True)
    assert share(streams, {"me": full, "new": Member(room=4)}, "me").give == ()
    assert len(share(streams, {"me": full, "new": Member(room=4, ready=True)}, "me").give) == 2


def test_an_engine_that_leaves_takes_nothing_and_is_not_counted() -> None:
    streams = ["a", "b", "c", "d"]
    leaving = Member(holds={"a": True, "b": True}, leaving=True)
    assert share(streams, {"me": leaving, "other": Member(room=4)}, "me") == share([], {"me": Member()}, "me")
    todo = share(streams, {"me": Member(room=4), "other": leaving}, "me")
    assert set(todo.take) == {"c", "d"}
