"""The thread that talks to the state store, so that the supervisor's loop never waits for it.

State: the store's connection, our leases, the queue of operations, and what keeps the thread waiting. Owner: the
thread. Operations are performed one after the other, in the order in which they were asked for: an intent is
durable before what was asked for after it. While the store is away, the queue stands; that is how the data path
pauses. When there has been nothing to do for a while, the store is asked something, to know whether it answers.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import msgspec

from engine.config.tree import RetryConfig
from engine.core.actions import Acquire, Action, GrowSchema, Release, Renew, Write
from engine.core.backfill import END, Plan, plan_document
from engine.core.coordinator import Coordinator
from engine.core.handover import overlap
from engine.core.messages import StreamSpec
from engine.core.naming import plan_of_split
from engine.core.position import Position
from engine.core.records import read_record, schema_document
from engine.core.schema import CollectionSchema, grow
from engine.errors import ConfigError, FatalError, HeadraceError, LeaseLostError, StateLostError
from engine.failpoints import failpoint
from engine.owner import is_certainly_dead
from engine.retries import retrying
from engine.state.seam import Acquired, HeldElsewhere, Lease, StateStore

log = logging.getLogger("headrace")
Answer = Callable[[Coordinator, float], list[Action]]
PROBE_EVERY_S = 3.0
_PROBE = "probe"  # a document that nobody writes
Operation = Acquire | Renew | Release | Write | GrowSchema

# The record of a split of which nothing is left to do.
_OVER = {"position": msgspec.json.encode(Position(END)).decode()}


class StateWorker:
    """Performs operations on a state store in a thread of its own.

    Args:
        owner: who we are to other engines.
        max_fields: columns that a collection's schema may grow to.
        answer: is called from the thread with what to tell the coordinator.

    Attributes:
        error: what has ended it.
        last_error: why the latest attempt failed; empty once one has succeeded.
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
        self._namespaces: dict[str, str] = {}  # of splits: the collection; of streams: nothing
        self._new: set[str] = set()  # change streams that have had no record
        self._queue: queue.SimpleQueue[Operation | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self.error: HeadraceError | None = None
        self.last_error = ""
        self._begun_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="state", daemon=True)
        self._thread.start()

    @property
    def unanswered_s(self) -> float:
        """How long the store has owed an answer; 0 when it owes none. For any thread."""
        begun_at = self._begun_at
        return 0.0 if begun_at is None else time.monotonic() - begun_at

    def do(self, operation: Operation) -> None:
        """Queue an operation. The protocol bounds how many can wait: some per segment in flight."""
        self._queue.put(operation)

    def close(self, timeout_s: float) -> bool:
        """Perform what is queued, then end; False when that failed, or takes longer than ``timeout_s``."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        self._stopped.set()
        return not self._thread.is_alive() and self.error is None

    def _run(self) -> None:
        with closing(self._store):
            while (operation := self._next()) is not None:
                try:
                    self._with_retries(operation)
                except HeadraceError as error:
                    self._fail(error)
                    return
                except Exception as error:
                    log.exception("the state thread failed")
                    self._fail(FatalError("write the state", f"{type(error).__name__}: {error}"))
                    return

    def _next(self) -> Operation | None:
        """The next operation; None at the end."""
        while True:
            try:
                return self._queue.get(timeout=PROBE_EVERY_S)
            except queue.Empty:
                self._probe()

    def _probe(self) -> None:
        """Find out whether the store answers; what it does not let us do is for an operation to find out."""
        with suppress(HeadraceError), self._attempt():
            self._store.read_shared(_PROBE)

    @contextmanager
    def _attempt(self) -> Iterator[None]:
        """Keep note of how one attempt goes."""
        self._begun_at = time.monotonic()
        try:
            yield
        except HeadraceError as error:
            self.last_error = str(error)
            raise
        finally:
            self._begun_at = None
        self.last_error = ""

    def _fail(self, error: HeadraceError) -> None:
        self.error = error
        self._answer(lambda coordinator, _: coordinator.store_failed(error))

    def _with_retries(self, operation: Operation) -> None:
        retrying(self._retry, stopped=self._stopped, what="the state store")(self._perform, operation)

    def _perform(self, operation: Operation) -> None:
        with self._attempt():
            self._do(operation)

    def _do(self, operation: Operation) -> None:
        match operation:
            case Acquire(stream, namespace):
                self._acquire(stream, namespace)
            case Renew(streams):
                for stream in streams:
                    self._fenced(stream, lambda lease: self._store.renew(lease, self._lease_ttl_s))
            case Release(streams):
                for stream in streams:
                    self._fenced(stream, self._store.release)
                    self._leases.pop(stream, None)
            case Write():
                self._write(operation)
            case GrowSchema():
                self._grow_schema(operation)

    def _acquire(self, stream: str, namespace: str) -> None:
        self._namespaces[stream] = namespace
        try:
            found = self._store.acquire(stream, self._owner, self._lease_ttl_s)
        except StateLostError:
            if not self._is_over(stream):
                raise
            self._answer(lambda coordinator, now: coordinator.acquired(stream, _OVER, now))
            return
        if isinstance(found, HeldElsewhere) and is_certainly_dead(found.holder):
            log.info("took over from a dead engine", extra={"fields": {"stream": stream, "holder": found.holder}})
            found = self._store.acquire(stream, self._owner, self._lease_ttl_s, replacing=found.holder)
        match found:
            case Acquired(lease, fields):
                self._leases[stream] = lease
                if "position" not in fields:
                    self._new |= set() if namespace else {stream}
                    fields = _OVER if self._is_over(stream) else fields
                self._answer(lambda coordinator, now: coordinator.acquired(stream, fields, now))
            case HeldElsewhere(holder, expires_in_s):
                self._answer(lambda c, now: c.held_elsewhere(stream, holder, expires_in_s, now))

    def _is_over(self, stream: str) -> bool:
        """Whether a stream without a record is a split of a backfill that was finished, or replaced, meanwhile.

        Raises:
            StateLostError: it is a split of a plan that is not there: plans are never removed.
        """
        if not (namespace := self._namespaces[stream]):
            return False
        if (plan := self._plan(namespace)) is None:
            cause = f"the state store has lost the plan of the backfill of {namespace}"
            raise StateLostError(f"read {stream}", cause)
        return bool(plan.finished) or plan.id != plan_of_split(stream)

    def _write(self, write: Write) -> None:
        is_commit = "seq" in write.change.put and not write.seq
        if write.seq:
            failpoint("before_intent")
        elif is_commit:
            failpoint("before_commit")
        put = write.change.put | {"updated": f"{time.time():.3f}"}
        done = self._fenced(write.stream, lambda lease: self._store.write(lease, put, write.change.remove))
        if done and write.stream in self._new and "spec" in put:
            self._refuse_overlap(write.stream, put["spec"])
            self._new.discard(write.stream)
        if write.seq and done:
            failpoint("after_intent")
            self._answer(lambda c, now: c.stored(write.stream, write.generation, write.seq, now))
        elif is_commit:
            failpoint("after_commit")

    def _refuse_overlap(self, name: str, spec: str) -> None:
        """Of two engines that begin at once, neither finds the other's streams when it starts: but one does here.

        Raises:
            ConfigError: a stream of another engine captures some of what this one does.
        """
        mine = msgspec.json.decode(spec, type=StreamSpec)
        for other, (fields, holder) in self._store.read_all().items():
            record = read_record(fields)
            if other in self._leases or record.spec is None or record.spec.is_split or record.closed:
                continue
            if overlap(record.spec, mine):
                where = holder.partition("/")[0] or "another engine"
                cause = f"the stream {other} of {where} captures some of it, too"
                remedy = (
                    "Give both engines one configuration, or collections of their own; or this one another "
                    "state.prefix and another sink.url."
                )
                raise ConfigError(f"begin the stream {name}", cause, remedy)

    def _fenced(self, stream: str, act: Callable[[Lease], None]) -> bool:
        """Do something under the stream's lease; False when it is lost."""
        lease = self._leases.get(stream)
        if lease is None:
            return False
        try:
            act(lease)
        except (LeaseLostError, StateLostError) as error:
            if isinstance(error, StateLostError) and not self._is_over(stream):
                raise
            del self._leases[stream]
            self._answer(lambda coordinator, now: coordinator.lease_lost(stream, now))
            return False
        return True

    def _grow_schema(self, asked: GrowSchema) -> None:
        name = schema_document(asked.database, asked.collection)
        while True:
            version, text = self._store.read_shared(name)
            if version < (least := asked.least if version else max(asked.least, self._recorded(asked))):
                cause = f"the state store has lost the schema of {asked.database}.{asked.collection}"
                found = f"it is at version {version}, and objects were written under version {least}"
                raise StateLostError("settle the types of new fields", f"{cause}: {found}")
            known = msgspec.json.decode(text, type=CollectionSchema) if version else CollectionSchema()
            grown = grow(known, asked.fields, self._max_fields)
            if grown is known or self._store.write_shared(
                name, grown.version, msgspec.json.encode(grown).decode()
            ):
                break
        self._answer(lambda c, _: c.schema_stored(asked.reader, asked.database, asked.collection, grown))

    def _recorded(self, asked: GrowSchema) -> int:
        """The latest version of a schema that the records of any streams tell of, or the collection's plan."""
        name = schema_document(asked.database, asked.collection)
        versions = [read_record(fields).schemas.get(name, 0) for fields, _ in self._store.read_all().values()]
        plan = self._plan(f"{asked.database}.{asked.collection}")
        return max([*versions, plan.schema if plan else 0])

    def _plan(self, namespace: str) -> Plan | None:
        text = self._store.read_shared(plan_document(namespace))[1]
        return msgspec.json.decode(text, type=Plan) if text else None
