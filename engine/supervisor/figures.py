"""Counts and times of what the processes report, from the messages that pass the supervisor.

State: the counters and histograms. Owner: the supervisor's loop, which adds to them; the server's thread reads
them. They are the supervisor's, so that no count is lost with a process that dies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import get_args

from prometheus_client import Counter, Histogram, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

from engine.core import messages as msg
from engine.core.actions import Child
from engine.core.servers import Server
from engine.core.store import FromStore, LeaseLost, LeaseTaken, StoreFailed, StoreSeen, Written
from engine.errors import FailureKind
from engine.supervisor.traces import SegmentTrace

# How many collections have label values of their own; the others share one.
MAX_COLLECTIONS = 1000
OTHER = "(other)"
# What MongoDB calls the operations that it documents, and a backfilled document; others share a label value.
OPERATIONS = frozenset(
    {
        *("insert", "update", "replace", "delete", "read", "drop", "rename", "dropDatabase", "invalidate"),
        *("create", "createIndexes", "dropIndexes", "modify", "shardCollection", "reshardCollection"),
        *("refineCollectionShardKey",),
    }
)
STAGES = ("decode", "encode", "upload", "publish", "intent", "commit")
_STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_AGE_BUCKETS = (0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300, 900, 3600)
_ROWS_BUCKETS = (1, 10, 100, 1_000, 10_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
_SIZE_BUCKETS = tuple(4.0**power * 1024 for power in range(10))


class Collections:
    """The collections that have label values of their own: the first ones. They keep them."""

    def __init__(self, limit: int = MAX_COLLECTIONS) -> None:
        self._limit = limit
        self._known: set[tuple[str, str]] = set()

    def labels(self, database: str, collection: str) -> tuple[str, str]:
        """The label values of a collection."""
        namespace = database, collection
        if namespace not in self._known:
            if len(self._known) >= self._limit:
                return OTHER, OTHER
            self._known.add(namespace)
        return namespace


class Figures:
    """What is counted from messages.

    Attributes:
        commits: when a position of each stream was last committed, by the monotonic clock.
    """

    def __init__(self, collections: Collections) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the age of a counter is that of the engine
        self._collections = collections
        self.commits: dict[str, float] = {}
        self._seen = StoreSeen(0.0)
        self._events = Counter(
            "headrace_collection_events",
            f"Events read, by collection and operation; beyond {MAX_COLLECTIONS} collections, the labels of "
            f"further ones are `{OTHER}`. What is read again after a failure counts again.",
            ["database", "collection", "operation"],
            registry=None,
        )
        self._stages = Histogram(
            "headrace_stage_duration_seconds",
            "Time that a stage of a committed segment took: `decode`, `encode`, `upload` of its parts, `publish`; "
            "and, retries included, to write its `intent` and its `commit` to the state store.",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=None,
        )
        self._events_of = Histogram(
            "headrace_segment_events", "Events of a segment.", buckets=_ROWS_BUCKETS, registry=None
        )
        self._bytes_of = Histogram(
            "headrace_segment_bytes", "Bytes of a segment's objects.", buckets=_SIZE_BUCKETS, registry=None
        )
        self._age = Histogram(
            "headrace_segment_age_seconds",
            "Time from a segment's first batch to its cut.",
            buckets=_AGE_BUCKETS,
            registry=None,
        )
        self._duration = Histogram(
            "headrace_segment_duration_seconds",
            "Time from a segment's first batch to its commit.",
            buckets=_AGE_BUCKETS,
            registry=None,
        )
        self._errors = Counter(
            "headrace_errors",
            "Errors that a process or the state store's thread could not handle itself, by class.",
            ["role", "kind"],
            registry=None,
        )
        self._retries = Counter(
            "headrace_retries",
            "Requests that failed and were tried again; those of the sink are repeated by its client library, "
            "which does not count them.",
            ["server"],
            registry=None,
        )
        self._tables = {
            "commits": Counter("headrace_table_commits", "Commits to tables.", registry=None),
            "files": Counter("headrace_table_files", "Files added to tables.", registry=None),
            "rows": Counter("headrace_table_rows", "Rows added to tables.", registry=None),
        }
        self._pass = Histogram(
            "headrace_table_pass_duration_seconds",
            "Time to bring all tables up to date.",
            buckets=_STAGE_BUCKETS,
            registry=None,
        )
        self._renewals = Counter("headrace_lease_renewals", "Renewals of leases.", registry=None)
        self._taken = Counter("headrace_leases_taken", "Leases taken.", registry=None)
        self._lost = Counter("headrace_leases_lost", "Leases lost to another engine.", registry=None)
        # An increase is only seen from a value that was there before.
        for stage in STAGES:
            self._stages.labels(stage)
        for role in ("reader", "writer", "committer", "state"):
            for kind in get_args(FailureKind):
                self._errors.labels(role, kind)
        servers: tuple[Server, ...] = ("mongodb", "state")
        for server in servers:
            self._retries.labels(server)

    def collectors(self) -> Iterator[MetricWrapperBase]:
        """All of them."""
        yield from (self._events, self._stages, self._events_of, self._bytes_of, self._age, self._duration)
        yield from (*self._tables.values(), self._pass)
        yield from (self._errors, self._retries, self._taken, self._renewals, self._lost)

    def heard(self, child: Child, message: msg.FromChild) -> None:
        """A message from a child."""
        match message:
            case msg.Heartbeat(retries=retries) if retries:
                self._retries.labels("mongodb").inc(retries)
            case msg.BatchReady(counted=counted):
                for each in counted:
                    labels = self._collections.labels(each.database, each.collection)
                    operation = each.operation if each.operation in OPERATIONS else OTHER
                    self._events.labels(*labels, operation).inc(each.events)
            case msg.TablesSeen(tables=tables):
                self._pass.observe(message.pass_s)
                for name, counter in self._tables.items():
                    counter.inc(sum(getattr(each, name) for each in tables.values()))
            case msg.Failed(kind=kind):
                self._errors.labels(child.role, kind).inc()

    def committed(self, segment: SegmentTrace) -> None:
        """A segment's commit is durable."""
        for stage in STAGES:
            if (work := segment.work.get(stage)) is not None:
                self._stages.labels(stage).observe(work.busy_s)
        self._events_of.observe(segment.events)
        self._bytes_of.observe(segment.size)
        if (read := segment.work.get("read")) is not None:
            self._age.observe(read.busy_s)
        self._duration.observe(segment.ended - segment.began)

    def answered(self, answer: FromStore) -> None:
        """An answer of the state store."""
        match answer:
            case Written(stream=stream, kind="commit"):
                self.commits[stream] = answer.written_at
            case LeaseTaken():
                self._taken.inc()
            case LeaseLost():
                self._lost.inc()
            case StoreFailed(kind=kind):
                self._errors.labels("state", kind).inc()
            case StoreSeen():
                self._retries.labels("state").inc(answer.retries - self._seen.retries)
                self._renewals.inc(answer.renewals - self._seen.renewals)
                self._seen = answer

    def forget(self, streams: Iterable[str]) -> None:
        """These streams' leases are released: a finished split never comes back."""
        for stream in streams:
            self.commits.pop(stream, None)
