"""The plans of backfills as the state store keeps them: shared documents, one per collection.

See ``core.backfill`` for what a plan is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from msgspec.structs import replace

from engine.config import Config
from engine.core.backfill import (
    Plan,
    Progress,
    Selection,
    decode_index,
    decode_plan,
    encode_index,
    encode_plan,
    latest_schema,
    plan_document,
    progress_of,
)
from engine.core.naming import is_split
from engine.core.records import StreamRecord, read_record
from engine.core.specs import StreamSpec
from engine.errors import ConfigError, StateLostError
from engine.owner import is_certainly_dead, this_owner
from engine.state.opening import open_retrying
from engine.state.seam import StateStore
from engine.state.shared import amend

_INDEX = "backfills"


class Plans:
    """The plans in a state store."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._is_new = False  # there was no list, and no splits that it should have listed

    def read(self, namespace: str) -> Plan | None:
        """A collection's plan; None if there is none."""
        return self._plan(namespace, self._store.read_shared(plan_document(namespace))[1])

    def _plan(self, namespace: str, text: str) -> Plan | None:
        """The plan in a collection's document; plans are replaced, never removed."""
        if not text and namespace in self._listed():
            cause = f"the state store has lost the plan of the backfill of {namespace}"
            raise StateLostError("read the plans of backfills", cause)
        return decode_plan(text) if text else None

    def read_all(self) -> list[Plan]:
        """All plans."""
        return [plan for name in self._listed() if (plan := self.read(name)) is not None]

    def _listed(self) -> list[str]:
        """The collections that have a plan."""
        return self._names(*self._store.read_shared(_INDEX))

    def _names(self, version: int, text: str) -> list[str]:
        """The collections in the list of backfills."""
        if not version and not self._is_new:
            if any(map(is_split, self._store.read_all())):
                cause = "the state store has lost the list of backfills, but has some of their splits"
                raise StateLostError("read the plans of backfills", cause)
            self._is_new = True
        return decode_index(text) if text else []

    def read_of(self, specs: Sequence[StreamSpec]) -> list[Plan]:
        """The plans of whole collections that these change streams cover."""

        def is_covered(plan: Plan) -> bool:
            return any(spec.covers(plan.database, plan.collection) for spec in specs)

        return [plan for plan in self.read_all() if plan.selection == Selection() and is_covered(plan)]

    def save(self, plan: Plan, previous: Plan | None) -> Plan:
        """Save a plan in place of the previous one; returns the stored plan, another engine's if it was faster."""

        def replaced(_: int, text: str) -> str | None:
            current = decode_plan(text) if text else None
            return encode_plan(plan) if current == previous else None

        kept = self._plan(plan.namespace, amend(self._store, plan_document(plan.namespace), replaced)[1])
        assert kept is not None
        if kept == plan:
            self.enlist(plan.namespace)
        return kept

    def records(self) -> dict[str, StreamRecord]:
        """The records of all streams and splits."""
        return {name: read_record(fields) for name, (fields, _) in self._store.read_all().items()}

    def progress(self) -> list[Progress]:
        """How far every backfill has got."""
        plans = self.read_all()
        known = self.records() if any(not plan.finished for plan in plans) else {}
        return [progress_of(plan, known) for plan in plans]

    def finish(self, plans: Sequence[Plan]) -> list[Progress]:
        """Mark the plans that are done, and forget their splits; returns the progress of all."""
        known = self.records()
        return [self._close(plan, progress_of(plan, known), latest_schema(plan, known)) for plan in plans]

    def _close(self, plan: Plan, progress: Progress, schema: int | None) -> Progress:
        if progress.splits < progress.splits_total:
            return progress
        closed = replace(plan, finished=time.time(), read=progress.documents, schema=schema)
        self.save(closed, plan)
        self.forget(plan)  # after saving: an engine late for a split finds its record or a finished plan
        return replace(progress, finished=closed.finished)

    def refuse_if_held(self, plan: Plan) -> None:
        """Refuse to replace a plan that another engine is working on.

        Raises:
            ConfigError: another engine is reading its splits.
        """
        known = self._store.read_all()
        holders = {known[spec.stream][1] for spec in plan.specs() if spec.stream in known} - {"", this_owner()}
        if alive := [holder for holder in sorted(holders) if not is_certainly_dead(holder)]:
            cause = f"{', '.join(alive)} is working on it"
            raise ConfigError(f"restart the backfill of {plan.namespace}", cause, "Stop the other engine first.")

    def forget(self, plan: Plan) -> None:
        """Forget the records of a plan's splits."""
        self._store.forget([spec.stream for spec in plan.specs()])

    def enlist(self, namespace: str) -> None:
        """Make sure that a plan is listed: the engine that saved it may have been killed before listing it."""

        def extended(version: int, text: str) -> str | None:
            names = self._names(version, text)
            return None if namespace in names else encode_index([*names, namespace])

        amend(self._store, _INDEX, extended)


@contextmanager
def plans_of(config: Config) -> Iterator[Plans]:
    """The plans of the configured state store."""
    store = open_retrying(config.state, config.sink, config.retry)
    try:
        yield Plans(store)
    finally:
        store.close()
