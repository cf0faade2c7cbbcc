"""The thread that talks to the state store, so that the supervisor's loop never waits for it.

State: the store's connection, our leases, and the queue of operations. Owner: the thread. Operations are
performed one after the other, in the order in which they were asked for: an intent is durable before what was
asked for after it. While the store is away, the queue stands; that is how the data path pauses.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import closing

import msgspec

from engine.config.tree import RetryConfig
from engine.core.actions import Acquire, Action, GrowSchema, Release, Renew, Write
from engine.core.backfill import END, Plan, plan_document
from engine.core.coordinator import Coordinator
from engine.core.naming import plan_of_split
from engine.core.position import Position
from engine.core.schema import CollectionSchema, grow
from engine.errors import FatalError, HeadraceError, LeaseLostError
from engine.failpoints import failpoint
from engine.retries import retrying
from engine.state import Acquired, HeldElsewhere, Lease, StateStore
from engine.state.owner import is_certainly_dead

log = logging.getLogger("headrace")
Answer = Callable[[Coordinator, float], list[Action]]
Operation = Acquire | Renew | Release | Write | GrowSchema


class StateWorker:
    """Performs operations on a state store in a thread of its own.

    Args:
        owner: who we are to other engines.
        max_fields: columns that a collection's schema may grow to.
        answer: is called from the thread with what to tell the coordinator.
    """

    def __init__(
        self,
        store: StateStore,
        owner: str,
        lease_ttl_s: float,
        retry: RetryConfig,
        max_fields: int,
        answer: Callable[[Answer], None],
    ) -> None:
        self._store = store
        self._owner = owner
        self._lease_ttl_s = lease_ttl_s
        self._retry = retry
        self._max_fields = max_fields
        self._answer = answer
        self._leases: dict[str, Lease] = {}
        self._queue: queue.SimpleQueue[Operation | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="state", daemon=True)
        self._thread.start()

    def do(self, operation: Operation) -> None:
        """Queue an operation. The protocol bounds how many can wait: some per segment in flight."""
        self._queue.put(operation)

    def close(self, timeout_s: float) -> bool:
        """Perform what is queued, then end; False when that failed, or takes longer than ``timeout_s``."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        self._stopped.set()
        return not self._thread.is_alive() and not self._failed

    def _run(self) -> None:
        with closing(self._store):
            while (operation := self._queue.get()) is not None:
                try:
                    self._with_retries(operation)
                except HeadraceError as error:
                    self._fail(error)
                    return
                except Exception as error:
                    log.exception("the state thread failed")
                    self._fail(FatalError("write the state", f"{type(error).__name__}: {error}"))
                    return

    def _fail(self, error: HeadraceError) -> None:
        self._failed = True
        self._answer(lambda coordinator, _: coordinator.store_failed(error))

    def _with_retries(self, operation: Operation) -> None:
        retrying(self._retry, stopped=self._stopped, what="the state store")(self._perform, operation)

    def _perform(self, operation: Operation) -> None:
        match operation:
            case Acquire(stream, namespace):
                self._acquire(stream, namespace)
            case Renew(streams):
                for stream in streams:
                    self._fenced(stream, lambda lease: self._store.renew(lease, self._lease_ttl_s))
            case Release(streams):
                for stream in streams:
                    if (lease := self._leases.pop(stream, None)) is not None:
                        self._store.release(lease)
            case Write():
                self._write(operation)
            case GrowSchema():
                self._grow_schema(operation)

    def _acquire(self, stream: str, namespace: str) -> None:
        found = self._store.acquire(stream, self._owner, self._lease_ttl_s)
        if isinstance(found, HeldElsewhere) and is_certainly_dead(found.holder):
            log.info("took over from a dead engine", extra={"fields": {"stream": stream, "holder": found.holder}})
            found = self._store.acquire(stream, self._owner, self._lease_ttl_s, replacing=found.holder)
        match found:
            case Acquired(lease, fields):
                self._leases[stream] = lease
                if namespace and "position" not in fields and self._is_over(stream, namespace):
                    fields = {"position": msgspec.json.encode(Position(END)).decode()}
                self._answer(lambda coordinator, now: coordinator.acquired(stream, fields, now))
            case HeldElsewhere(holder, expires_in_s):
                self._answer(lambda c, now: c.held_elsewhere(stream, holder, expires_in_s, now))

    def _is_over(self, stream: str, namespace: str) -> bool:
        """Whether a split without a record is one of a backfill that was finished, or replaced, meanwhile."""
        text = self._store.read_shared(plan_document(namespace))[1]
        plan = msgspec.json.decode(text, type=Plan) if text else None
        return plan is None or bool(plan.finished) or plan.id != plan_of_split(stream)

    def _write(self, write: Write) -> None:
        is_commit = "seq" in write.change.put and not write.seq
        if write.seq:
            failpoint("before_intent")
        elif is_commit:
            failpoint("before_commit")
        put = write.change.put | {"updated": f"{time.time():.3f}"}
        done = self._fenced(write.stream, lambda lease: self._store.write(lease, put, write.change.remove))
        if write.seq and done:
            failpoint("after_intent")
            self._answer(lambda c, now: c.stored(write.stream, write.generation, write.seq, now))
        elif is_commit:
            failpoint("after_commit")

    def _fenced(self, stream: str, act: Callable[[Lease], None]) -> bool:
        """Do something under the stream's lease; False when it is lost."""
        lease = self._leases.get(stream)
        if lease is None:
            return False
        try:
            act(lease)
        except LeaseLostError:
            del self._leases[stream]
            self._answer(lambda coordinator, now: coordinator.lease_lost(stream, now))
            return False
        return True

    def _grow_schema(self, asked: GrowSchema) -> None:
        name = f"schema:{asked.database}.{asked.collection}"
        while True:
            version, text = self._store.read_shared(name)
            known = msgspec.json.decode(text, type=CollectionSchema) if version else CollectionSchema()
            grown = grow(known, asked.fields, self._max_fields)
            if grown is known or self._store.write_shared(
                name, grown.version, msgspec.json.encode(grown).decode()
            ):
                break
        self._answer(lambda c, _: c.schema_stored(asked.reader, asked.database, asked.collection, grown))
