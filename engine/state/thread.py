"""The thread that talks to the state store, so that the supervisor's loop never waits for it.

State: the store's connection, our leases, the queue of operations, and how the latest attempt is going. Owner: the
thread. Operations are performed one at a time, in the order of the requests, and answered in that order: an intent
is durable before anything requested after it. Nothing is decided here. While the store is away, the queue waits;
that is how the data path pauses. When idle for a while, the thread probes whether the store answers.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial

import msgspec
from msgspec.structs import replace

from engine.config.tree import RetryConfig
from engine.core.actions import (
    Acquire,
    Announce,
    GrowSchema,
    Leave,
    ReadState,
    Release,
    Renew,
    Write,
    WriteKind,
)
from engine.core.records import schema_document
from engine.core.schemas import grown_document
from engine.core.sharing import Member, decode_members
from engine.core.store import (
    FleetSeen,
    FromStore,
    LeaseDenied,
    LeaseLost,
    LeaseTaken,
    RecordLost,
    SchemaRead,
    StateRead,
    StoreFailed,
    StoreSeen,
    Written,
)
from engine.errors import FatalError, HeadraceError, LeaseLostError, StateLostError
from engine.failpoints import Point, failpoint
from engine.owner import is_certainly_dead
from engine.retries import retrying
from engine.state.leases import take
from engine.state.seam import Acquired, HeldElsewhere, Lease, StateStore
from engine.state.shared import amend

log = logging.getLogger("headrace")
PROBE_EVERY_S = 3.0
_PROBE = "probe"  # a document that is never written
_POINTS: dict[WriteKind, tuple[Point, Point]] = {
    "intent": ("before_intent", "after_intent"),
    "commit": ("before_commit", "after_commit"),
}
Operation = Acquire | Renew | Release | Write | GrowSchema | ReadState | Announce | Leave


class StateThread:
    """Performs operations on a state store in a thread of its own.

    Args:
        owner: this engine's name, as other engines see it.
        answer: called from the thread with each answer.
        redact: removes secrets from what other engines are told.

    Attributes:
        error: the error that ended the thread.
    """

    def __init__(
        self,
        store: StateStore,
        owner: str,
        lease_ttl_s: float,
        retry: RetryConfig,
        answer: Callable[[FromStore], None],
        redact: Callable[[str], str] = str,
    ) -> None:
        self._store = store
        self._owner = owner
        self._lease_ttl_s = lease_ttl_s
        self._retry = retry
        self._answer = answer
        self._redact = redact
        self._leases: dict[str, Lease] = {}
        self._epochs: dict[str, int] = {}  # by stream: the highest that another engine has announced
        self._documents: dict[str, str] = {}  # by stream: the shared document read with its record
        self._queue: queue.SimpleQueue[tuple[Operation, float] | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self.error: HeadraceError | None = None
        self._last_error: str | None = None
        self._attempt_started_at: float | None = None
        self._retries = self._renewals = 0
        self._requested_at = 0.0  # of the operation being performed
        self._thread = threading.Thread(target=self._run, name="state", daemon=True)
        self._thread.start()

    def seen(self) -> StoreSeen:
        """How the store is doing; may be called from any thread."""
        started_at = self._attempt_started_at
        unanswered_s = 0.0 if started_at is None else time.monotonic() - started_at
        return StoreSeen(unanswered_s, self._last_error, self._retries, self._renewals)

    def do(self, operation: Operation) -> None:
        """Queue an operation. The protocol bounds how many can wait: a few per segment in flight."""
        self._queue.put((operation, time.monotonic()))

    def close(self, timeout_s: float) -> bool:
        """Perform what is queued, then end; False if that failed or took longer than ``timeout_s``."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        self._stopped.set()
        return not self._thread.is_alive() and self.error is None

    def _run(self) -> None:
        with closing(self._store):
            try:
                while (queued := self._next()) is not None:
                    operation, self._requested_at = queued
                    self._with_retries(operation)
            except HeadraceError as error:
                self._fail(error)
            except Exception as error:
                log.exception("the state thread failed")
                self._fail(FatalError("write the state", f"{type(error).__name__}: {error}"))

    def _next(self) -> tuple[Operation, float] | None:
        """The next operation, and when it was requested; None at the end."""
        while True:
            try:
                return self._queue.get(timeout=PROBE_EVERY_S)
            except queue.Empty:
                self._probe()

    def _probe(self) -> None:
        """Note whether the store answers. Errors end nothing here; the next operation raises its own."""
        with suppress(HeadraceError), self._attempt():
            self._store.read_shared(_PROBE)

    @contextmanager
    def _attempt(self) -> Iterator[None]:
        """Note how an attempt goes, for ``seen``."""
        self._attempt_started_at = time.monotonic()
        try:
            yield
        except HeadraceError as error:
            self._last_error = str(error)
            raise
        finally:
            self._attempt_started_at = None
        self._last_error = None

    def _fail(self, error: HeadraceError) -> None:
        self.error = error
        self._answer(StoreFailed(error.kind, error.operation, error.cause, error.remedy))

    def _with_retries(self, operation: Operation) -> None:
        attempts = 0

        def attempt() -> None:
            nonlocal attempts
            self._retries += attempts > 0
            attempts += 1
            self._perform(operation)

        retrying(self._retry, stopped=self._stopped, what="the state store")(attempt)

    def _perform(self, operation: Operation) -> None:
        with self._attempt():
            match operation:
                case Acquire(stream, document):
                    self._acquire(stream, document)
                case Renew(streams):
                    for stream in streams:
                        renew = partial(self._store.renew, ttl_s=self._lease_ttl_s)
                        self._renewals += self._fenced(stream, renew)
                case Release(streams):
                    for stream in streams:
                        self._fenced(stream, self._store.release)
                        self._leases.pop(stream, None)
                        self._documents.pop(stream, None)
                case Write():
                    self._write(operation)
                case GrowSchema():
                    self._grow_schema(operation)
                case ReadState(about, document):
                    self._answer(StateRead(about, self._store.read_all(), self._read(document)))
                case Announce(member, document):
                    self._announce(member, document)
                case Leave():
                    self._store.announce(self._owner, "", self._lease_ttl_s)

    def _announce(self, member: Member, document: str) -> None:
        reasons = {stream: self._redact(reason) for stream, reason in member.cannot.items()}
        epochs = {stream: lease.epoch for stream, lease in self._leases.items() if stream in member.holds}
        text = msgspec.json.encode(replace(member, cannot=reasons, epochs=epochs)).decode()
        self._store.announce(self._owner, text, self._lease_ttl_s)
        # A dead process of this machine is announced until its lease expires, which its successors need not await.
        found = {owner: text for owner, text in self._store.announced().items() if not is_certainly_dead(owner)}
        for each in decode_members(found).values():
            for stream, epoch in each.epochs.items():
                self._epochs[stream] = max(epoch, self._epochs.get(stream, 0))
        self._answer(FleetSeen(self._owner, found, self._read(document)))

    def _acquire(self, stream: str, document: str | None) -> None:
        if document is not None:
            self._documents[stream] = document
        try:
            found = take(self._store, stream, self._owner, self._lease_ttl_s, self._epochs.get(stream, 0))
        except StateLostError as error:
            self._record_lost(stream, error)
            return
        match found:
            case Acquired(lease, fields):
                text = self._read(document)
                self._leases[stream] = lease
                self._answer(LeaseTaken(stream, fields, text, lease.epoch))
            case HeldElsewhere(holder, expires_in_s):
                self._answer(LeaseDenied(stream, holder, expires_in_s))

    def _write(self, write: Write) -> None:
        before, after = _POINTS.get(write.kind, (None, None))
        if before:
            failpoint(before)
        put = write.change.put | {"updated": f"{time.time():.3f}"}
        if self._fenced(write.stream, lambda lease: self._store.write(lease, put, write.change.remove)):
            if after:
                failpoint(after)
            times = self._requested_at, time.monotonic()
            self._answer(Written(write.stream, write.generation, write.kind, write.seq, *times))

    def _fenced(self, stream: str, act: Callable[[Lease], None]) -> bool:
        """Call ``act`` with the stream's lease; False if it is lost, which is answered once."""
        lease = self._leases.get(stream)
        if lease is None:
            return False
        try:
            act(lease)
        except LeaseLostError:
            del self._leases[stream]
            self._answer(LeaseLost(stream))
            return False
        except StateLostError as error:
            self._record_lost(stream, error)
            del self._leases[stream]
            return False
        return True

    def _record_lost(self, stream: str, error: StateLostError) -> None:
        text = self._read(self._documents.get(stream))
        self._answer(RecordLost(stream, error.operation, error.cause, error.remedy, text))

    def _grow_schema(self, asked: GrowSchema) -> None:
        name = schema_document(asked.database, asked.collection)
        _, text = amend(self._store, name, partial(grown_document, asked))
        self._answer(SchemaRead(asked.reader, asked.database, asked.collection, text or None))

    def _read(self, document: str | None) -> str | None:
        """A shared document's text; None if there is none, or no name is given."""
        return None if document is None else self._store.read_shared(document)[1] or None
