"""Simulated runs with crashes, delays and reordering, by seed. Protocols broken on purpose must be caught.

More seeds: ``python -m tests.sim.test_sim 100000``. A failure prints its seed, which reproduces it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
from msgspec.structs import replace

from engine.core import segments
from engine.core.actions import Acquire
from engine.core.ledger import Effect, Ledger, Phase, PublishSegment, WriteCommit, WriteIntent
from engine.core.messages import Intent, Survey, Surveyed
from engine.core.rebuild import _Evidence
from engine.core.segments import SegmentEnd, Segmenter
from engine.state.lake import LakeStore
from engine.state.seam import Lease
from tests.sim import world
from tests.sim.conditional import ChaoticObjects, Write
from tests.sim.fleet import FleetInLakeWorld, FleetWorld
from tests.sim.rebuilt import RebuiltWorld
from tests.sim.world import ForgetfulWorld, LakeWorld, SplitWorld, World

SEEDS = 2_000
SEEDS_OF_SPLITS = 600
SEEDS_OF_LOSSES = 500
SEEDS_OF_REBUILDS = 200
SEEDS_IN_THE_LAKE = 350
SEEDS_OF_FLEETS = 80
SEEDS_FOR_BROKEN = 2_000


def play(seeds: range, kind: type[World] = World) -> int:
    """Run these seeds; the number of steps."""
    steps = 0
    for seed in seeds:
        played = kind(seed)
        try:
            played.run()
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        steps += played.steps_taken
    return steps


def play_all(count: int, kind: type[World] = World) -> int:
    """Run seeds 0 to ``count`` on all cores; the number of steps."""
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores) as pool:
        return sum(pool.map(play, [range(first, count, cores) for first in range(cores)], [kind] * cores))


def test_no_seed_loses_or_duplicates_an_event() -> None:
    assert play_all(SEEDS) > 100 * SEEDS


def test_no_seed_loses_or_duplicates_a_document() -> None:
    assert play_all(SEEDS_OF_SPLITS, SplitWorld) > 100 * SEEDS_OF_SPLITS


def test_no_seed_continues_from_a_lost_state() -> None:
    assert play_all(SEEDS_OF_LOSSES, ForgetfulWorld) > 100 * SEEDS_OF_LOSSES
    refusals = 0
    for seed in range(100):
        played = ForgetfulWorld(seed)
        played.run()
        refusals += played.refusals
    assert refusals > 10


def test_no_seed_of_a_fleet_loses_or_duplicates_an_event() -> None:
    assert play_all(SEEDS_OF_FLEETS, FleetWorld) > 100 * SEEDS_OF_FLEETS
    given_up = 0
    for seed in range(20):
        played = FleetWorld(seed)
        played.run()
        given_up += played.given_up
    assert given_up > 5
    assert play_all(SEEDS_OF_FLEETS // 2, FleetInLakeWorld) > 100 * SEEDS_OF_FLEETS // 2


def test_no_seed_loses_or_duplicates_an_event_after_a_rebuild() -> None:
    assert play_all(SEEDS_OF_REBUILDS, RebuiltWorld) > 100 * SEEDS_OF_REBUILDS
    played = [RebuiltWorld(seed) for seed in range(20)]
    for each in played:
        each.run()
    assert sum(each.rebuilds for each in played) > 20


def test_taking_a_part_of_a_segment_for_a_whole_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_there(self: _Evidence, seq: int) -> bool:
        return bool(self._footers(seq))

    monkeypatch.setattr(_Evidence, "_is_complete", is_there)
    with pytest.raises(AssertionError, match=r"seed \d+"):
        play(range(SEEDS_FOR_BROKEN), RebuiltWorld)


def test_no_seed_is_led_astray_by_conditional_writes() -> None:
    assert play_all(SEEDS_IN_THE_LAKE, LakeWorld) > 100 * SEEDS_IN_THE_LAKE


def replaces_whatever_is_there(self: ChaoticObjects, write: Write) -> str | None:
    return APPLY(self, (*write[:3], True))


def takes_no_for_yes(self: LakeStore, operation: str, lease: Lease) -> Any:
    return self._read(lease.stream)


APPLY = ChaoticObjects.apply


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [(ChaoticObjects, "apply", replaces_whatever_is_there), (LakeStore, "_ours", takes_no_for_yes)],
)
def test_a_broken_fence_is_caught(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, broken: Callable[..., Any]
) -> None:
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(AssertionError, match=r"seed \d+"):
        play(range(SEEDS_FOR_BROKEN), LakeWorld)


def commits_before_acknowledgement(self: Ledger, seq: int) -> list[Effect]:
    segment = self._in_phase(seq, Phase.RECORDED)
    segment.phase = Phase.PUBLISHING
    assert segment.intent is not None
    return [PublishSegment(segment), WriteCommit(seq, segment.intent.end)]


def forgets_what_was_replaced(self: Ledger, seq: int) -> list[Effect]:
    effects = PUBLISHED(self, seq)
    return [replace(each, replaced=()) if isinstance(each, WriteCommit) else each for each in effects]


def publishes_before_the_intent_is_durable(self: Ledger) -> list[Effect]:
    effects = RECORD_PREFIX(self)
    early = [PublishSegment(self.segments[each.intent.seq]) for each in effects if isinstance(each, WriteIntent)]
    return [*early, *effects]


def tolerates_early_publishing(self: Ledger, seq: int) -> list[Effect]:
    if seq in self.segments and self.segments[seq].phase is Phase.RECORDED:
        self.segments[seq].phase = Phase.PUBLISHING
    return PUBLISHED(self, seq)


def forgets_intents(self: Ledger) -> tuple[Intent, ...]:
    self.segments.clear()
    self.intents.clear()
    return ()


def records_out_of_order(self: Ledger) -> list[Effect]:
    effects: list[Effect] = []
    for seq, segment in self.segments.items():
        if segment.phase is Phase.SEALED and segment.intent is not None:
            segment.phase = Phase.RECORDED
            self.intents[seq] = segment.intent
            effects.append(WriteIntent(segment.intent))
    return effects


def waits_for_an_equal_token(self: Segmenter, events: Any, start: int, stop: int, now: float) -> SegmentEnd | None:
    if stop > start:
        self._add(events, start, stop, now)
    if self._replay:
        return self._cut("replay") if self.end.token == self._replay[0].end.token else None
    full = self._rows >= self._limits.rows
    return self._cut("full") if full else None


RECORD_PREFIX = Ledger._record_prefix
PUBLISHED = Ledger.published
BROKEN: dict[str, list[tuple[type, str, Callable[..., Any]]]] = {
    "forget what was replaced": [(Ledger, "published", forgets_what_was_replaced)],
    "commit before acknowledgement": [(Ledger, "intent_durable", commits_before_acknowledgement)],
    "publish before the intent is durable": [
        (Ledger, "_record_prefix", publishes_before_the_intent_is_durable),
        (Ledger, "intent_durable", lambda self, seq: []),
        (Ledger, "published", tolerates_early_publishing),
    ],
    "intents are forgotten": [(Ledger, "restart", forgets_intents)],
    "intents out of order": [(Ledger, "_record_prefix", records_out_of_order)],
    "a cut waits for an equal token": [(Segmenter, "take", waits_for_an_equal_token)],
}


def compares_tokens_as_strings(one: str, other: str) -> bool:
    return one > other


def test_comparing_tokens_as_strings_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "is_after", compares_tokens_as_strings)
    with pytest.raises(AssertionError, match=r"seed \d+"):
        play(range(SEEDS_FOR_BROKEN))


def test_skipping_the_survey_of_the_lake_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def sees_nothing(self: world.PlayedWriter, asked: Survey) -> None:
        self.outbox.append(Surveyed(asked.spec.stream, asked.generation, None))

    monkeypatch.setattr(world.PlayedWriter, "_survey", sees_nothing)
    with pytest.raises(AssertionError, match=r"seed \d+"):
        play(range(SEEDS_FOR_BROKEN), ForgetfulWorld)


@pytest.mark.parametrize("defect", BROKEN)
def test_a_broken_protocol_is_caught(monkeypatch: pytest.MonkeyPatch, defect: str) -> None:
    for owner, name, replacement in BROKEN[defect]:
        monkeypatch.setattr(owner, name, replacement)
    with pytest.raises(AssertionError, match=r"seed \d+"):
        play(range(SEEDS_FOR_BROKEN))


def test_an_unfenced_store_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    step = world.Engine._store_step

    def unfenced(self: world.Engine) -> None:
        if not isinstance(self.store_queue[0], Acquire):
            self.epochs = {stream: stored.epoch for stream, stored in self.world.records.items()}
        step(self)

    monkeypatch.setattr(world.Engine, "_store_step", unfenced)
    with pytest.raises(AssertionError, match=r"seed \d+"):
        play(range(SEEDS_FOR_BROKEN))


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS
    for kind in (World, SplitWorld, ForgetfulWorld, LakeWorld, RebuiltWorld, FleetWorld, FleetInLakeWorld):
        print(f"{kind.__name__}: {number} seeds, {play_all(number, kind)} steps: exact")
