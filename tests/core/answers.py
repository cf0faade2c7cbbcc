"""Answers of the state store, for the tests of the coordinator."""

from __future__ import annotations

from collections.abc import Mapping

from engine.core.actions import Action, Write
from engine.core.backfill import Plan, Selection, encode_plan
from engine.core.coordinator import Coordinator
from engine.core.lifecycle import Lease
from engine.core.naming import plan_of_split
from engine.core.store import LeaseDenied, LeaseLost, LeaseTaken, StoreSeen, Written


def taken(made: Coordinator, name: str, fields: Mapping[str, str], now: float) -> list[Action]:
    """Acquire the stream's lease, requesting it first if that has not been done."""
    stream = made.streams[name]
    actions = made.tick(now) if stream.is_open and stream.life.lease is Lease.FREE else []
    plan = Plan(plan_of_split(name), "shop", "a", Selection(), None, None, (), 0, 0, 0.0)
    return actions + made.from_store(LeaseTaken(name, dict(fields), encode_plan(plan)), now)


def denied(made: Coordinator, name: str, holder: str, expires_in_s: float, now: float) -> list[Action]:
    """Another engine has the lease."""
    return made.from_store(LeaseDenied(name, holder, expires_in_s), now)


def lease_lost(made: Coordinator, name: str, now: float) -> list[Action]:
    """Another engine has taken the stream over."""
    return made.from_store(LeaseLost(name), now)


def written(made: Coordinator, actions: list[Action], now: float) -> list[Action]:
    """The writes among these actions are durable."""
    writes = [each for each in actions if isinstance(each, Write)]
    answers = [Written(each.stream, each.generation, each.kind, each.seq) for each in writes]
    return [action for answer in answers for action in made.from_store(answer, now)]


def store_seen(made: Coordinator, unanswered_s: float, error: str, now: float) -> list[Action]:
    """The state of the store itself."""
    return made.from_store(StoreSeen(unanswered_s, error or None), now)
