"""The configuration as one tree of structs that declares every key once.

Types, bounds, defaults and descriptions are here and nowhere else: the messages of ``load``,
``configs/reference.toml`` and the table in ``configs/README.md`` are generated from them.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

from msgspec import Meta, Struct, field

from engine.errors import Redactor, url_password, url_without_password
from engine.quantities import Duration, Secret, Size

# What can happen to a protected field.
PROTECTIONS = ("hash", "mask", "drop")


class SourceConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What is captured."""

    uri: Annotated[Secret, Meta(description="MongoDB connection string; a replica set or a sharded cluster.")]
    database: Annotated[str, Meta(description='The database; needed unless `watch = "deployment"`.')] = ""
    watch: Annotated[
        Literal["collections", "database", "deployment"],
        Meta(description="What a change stream covers."),
    ] = "collections"
    collections: Annotated[
        list[str],
        Meta(
            description='The collections to follow, for `watch = "collections"`: names, and patterns with `*` '
            "(any characters, also none) and `?` (one). A collection that is created later is captured from its "
            'first event. For `watch = "deployment"`, patterns `<database>.<collection>`, such as `"shop_*.*"`; '
            "empty for all. A backslash makes `*`, `?` or a backslash after it literal: `'a\\*b'` in TOML is the "
            "collection `a*b`."
        ),
    ] = field(default_factory=list)
    exclude: Annotated[
        list[str],
        Meta(
            description='Names and patterns, in the same form, of what the patterns (or `watch = "database"`, or '
            '`"deployment"`) would include, but are not to.'
        ),
    ] = field(default_factory=list)
    start: Annotated[
        str,
        Meta(
            description='Where a stream without a committed token starts: "now", "snapshot" (now, while the '
            'collections are loaded, see [backfill]), "earliest" (the oldest event still in the oplog), or an '
            "RFC 3339 time. A committed token always wins."
        ),
    ] = "now"
    full_document: Annotated[
        Literal["default", "update_lookup", "when_available", "required"],
        Meta(description="What an update event carries as its document; see MongoDB's `fullDocument`."),
    ] = "update_lookup"
    full_document_before_change: Annotated[
        Literal["off", "when_available", "required"],
        Meta(description="Whether events carry the document before the change (`_cdc_before`)."),
    ] = "off"
    expanded_events: Annotated[
        bool,
        Meta(description="Also capture DDL events (MongoDB 6.0 and later): create, createIndexes, modify, ..."),
    ] = False
    pipeline: Annotated[
        list[dict[str, Any]],
        Meta(description="Aggregation stages after `$changeStream`, as tables. They must leave `_id` alone."),
    ] = field(default_factory=list)
    split: Annotated[
        dict[str, int],
        Meta(description="Collection = N: read a hot collection through N change streams, by a hash of `_id`."),
    ] = field(default_factory=dict)
    on_replaced: Annotated[
        Literal["reload", "warn", "fail"],
        Meta(
            description="What to do when another collection is renamed to a captured one's name, as `$out` does, "
            "which brings in documents without events: load the collection again while the streams go on; only "
            "warn; or stop the stream until the command `backfill --restart` has loaded it."
        ),
    ] = "reload"
    on_history_lost: Annotated[
        Literal["fail", "snapshot", "now"],
        Meta(
            description="What to do when the oplog no longer reaches back to the committed token: stop; start "
            "from now while loading the collections again; or just start from now."
        ),
    ] = "fail"
    max_readers: Annotated[
        int, Meta(ge=1, le=256, description="Reader processes; more collections than this share streams.")
    ] = 8


class BackfillConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Loading existing documents: `backfill`, and `source.start = "snapshot"`."""

    readers: Annotated[
        int, Meta(ge=1, le=256, description="Processes that read splits, in addition to those of the streams.")
    ] = 2
    split_size: Annotated[
        Size,
        Meta(
            description="Approximate size of a split, in bytes of BSON: what one process reads, with a record of "
            "its own. Small collections have smaller splits, so that all readers have work.",
            extra={"min": 2**16},
        ),
    ] = Size(256 * 2**20)
    read_preference: Annotated[
        Literal["primary", "secondary", "secondary_preferred"],
        Meta(
            description="Which member to read from. A read from a secondary waits until that has caught up with "
            "the time at which the split was started."
        ),
    ] = "primary"
    max_documents_per_s: Annotated[
        int, Meta(ge=0, description="Documents per second, all readers together; 0 for no limit.")
    ] = 0
    max_bytes_per_s: Annotated[
        Size, Meta(description="Bytes of BSON per second, all readers together; 0 for no limit.")
    ] = Size(0)
    max_lag: Annotated[
        Duration,
        Meta(
            description="Pause while a secondary is further behind than this (needs the role clusterMonitor); 0 "
            "for never."
        ),
    ] = Duration(0)
    executor: Annotated[
        Literal["local", "ray"],
        Meta(
            description="`local`: processes here; `ray`: tasks on a Ray cluster, each with a `memory.limit` of "
            "its own (needs the extra `headrace[ray]`, and a state store and a sink that all of its machines "
            "reach)."
        ),
    ] = "local"
    ray_address: Annotated[
        str,
        Meta(description="`host:port` of the cluster's head, `ray://host:port`, or `auto` for the one here."),
    ] = "auto"


class SchemaConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How documents become columns. A column keeps its type: no two files disagree on it."""

    overrides: Annotated[
        dict[str, str],
        Meta(
            description="Types of fields, by `<collection>.<dotted path>`: an Arrow type (`decimal128(38, 2)`, "
            "`double`, `list<string>`, ...), `json`, or `drop` for a field that gets no column. A dropped field "
            "remains in `_cdc_update`, in JSON and in raw events; to keep it out of the lake altogether, use "
            "`schema.protect`. An override takes effect only before a field's first file."
        ),
    ] = field(default_factory=dict)
    protect: Annotated[
        dict[str, str],
        Meta(
            description="Fields whose values must not land in the lake, by `<collection>.<dotted path>` "
            "(the collection can be a pattern, such as `*`): `drop`, `mask` (`***` in place of the value) or "
            "`hash` (HMAC-SHA-256 with `schema.protect_key`; equal values have equal hashes). `_id` and shard "
            "keys cannot be protected."
        ),
    ] = field(default_factory=dict)
    protect_key: Annotated[
        Secret,
        Meta(
            description="The key of `hash` in `schema.protect`, of at least 16 characters. With another key, "
            "equal values have other hashes than before."
        ),
    ] = Secret("")
    sample: Annotated[
        int,
        Meta(
            ge=0,
            le=100_000,
            description="Documents of a new collection that are sampled to settle its types before its first "
            "file; 0 for none. Not done when `source.pipeline` changes the shape of documents.",
        ),
    ] = 1000
    max_depth: Annotated[
        int,
        Meta(
            ge=1,
            le=32,
            description="Levels of nested documents (and arrays) that get columns; below these, they are JSON.",
        ),
    ] = 4
    max_fields: Annotated[
        int,
        Meta(
            ge=1,
            le=20_000,
            description="Columns that a collection may get. Beyond that, a new sub-document becomes one JSON "
            "column, and a field that would need a column of its own goes to `_cdc_rescued`; `_id` always has a "
            "column.",
        ),
    ] = 1000
    integers: Annotated[
        Literal["widen", "exact"],
        Meta(description="`widen`: int32 becomes int64, so that a column can take both; `exact` keeps int32."),
    ] = "widen"
    object_id: Annotated[
        Literal["string", "binary"], Meta(description="ObjectIds as 24 hexadecimal digits, or as 12 bytes.")
    ] = "string"
    on_mismatch: Annotated[
        Literal["rescue", "fail"],
        Meta(
            description="What to do with a value that its column cannot hold exactly: put it into `_cdc_rescued`, "
            "or stop the stream."
        ),
    ] = "rescue"
    raw: Annotated[
        bool, Meta(description="Also keep each whole event (of a backfill: document) as BSON, in `_cdc_raw`.")
    ] = False


class BatchConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """When a segment is cut, and becomes objects: at whichever of these comes first."""

    rows: Annotated[int, Meta(ge=1, description="Events in a segment, at most.")] = 200_000
    bytes: Annotated[Size, Meta(description="Bytes of raw BSON in a segment.", extra={"min": 2**10})] = Size(
        128 * 2**20
    )
    interval: Annotated[
        Duration, Meta(description="Age of a segment, from when its first event was read.", extra={"min": 0.05})
    ] = Duration(30)


class MemoryConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The memory of the whole process tree."""

    limit: Annotated[
        Size,
        Meta(description="Upper bound on the proportional set size of all processes together."),
    ] = Size(2**30)


class WritersConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The pool that compresses and uploads."""

    processes: Annotated[int, Meta(ge=1, le=64, description="Writer processes.")] = 2


class S3Config(Struct, frozen=True, forbid_unknown_fields=True):
    """All optional: the AWS chain (roles, IRSA, environment, profile) is the default."""

    region: Annotated[str, Meta(description="AWS region.")] = ""
    endpoint_url: Annotated[str, Meta(description="URL of an S3 server other than AWS.")] = ""
    access_key: Annotated[Secret, Meta(description="Access key id.")] = Secret("")
    secret_key: Annotated[Secret, Meta(description="Secret access key.")] = Secret("")
    session_token: Annotated[
        Secret, Meta(description="Session token of temporary credentials, with `access_key` and `secret_key`.")
    ] = Secret("")
    ca_file: Annotated[
        str,
        Meta(
            description="PEM file of the certificate authorities that the store's certificate may be from, "
            "instead of the usual ones (or `AWS_CA_BUNDLE`)."
        ),
    ] = ""
    encryption: Annotated[
        Literal["default", "sse-s3", "sse-kms"],
        Meta(description="Server-side encryption of every object: the bucket's own default, SSE-S3 or SSE-KMS."),
    ] = "default"
    kms_key_id: Annotated[
        str,
        Meta(description='Id or ARN of the KMS key, for `encryption = "sse-kms"`; empty for the AWS managed key.'),
    ] = ""
    addressing: Annotated[
        Literal["auto", "path", "virtual"],
        Meta(
            description="Whether the bucket is part of the path or of the host name; `auto` is what the client "
            "library takes to be right for the endpoint."
        ),
    ] = "auto"
    accelerate: Annotated[
        bool, Meta(description="Use S3 Transfer Acceleration, which the bucket must have enabled; AWS only.")
    ] = False
    requester_pays: Annotated[
        bool, Meta(description="Pay for requests to a bucket of another account that asks for it.")
    ] = False
    storage_class: Annotated[
        str,
        Meta(description="Storage class of data objects, such as `STANDARD_IA`; empty for the bucket's default."),
    ] = ""
    tags: Annotated[
        dict[str, str], Meta(description="Tags of every object (at most 10); needs the right s3:PutObjectTagging.")
    ] = field(default_factory=dict)


class SinkConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Where objects go, and their format."""

    url: Annotated[str, Meta(description="`s3://bucket/prefix`, `file:///directory`, or another fsspec URL.")]
    format: Annotated[
        Literal["parquet", "json", "csv", "avro", "bson"],
        Meta(
            description="`json`: one object per line; `csv`: structs and lists as JSON; `avro` needs the extra "
            "`headrace[avro]`; `bson`: the events as the server sent them, for `bsondump` (backfilled documents, "
            "for `mongorestore`)."
        ),
    ] = "parquet"
    compression: Annotated[
        Literal["zstd", "snappy", "gzip", "lz4", "none"],
        Meta(
            description="Applies to Parquet's pages and Avro's blocks, otherwise to the whole file. snappy and "
            "lz4 are for Parquet only."
        ),
    ] = "zstd"
    compression_level: Annotated[
        int, Meta(ge=1, le=22, description="For zstd (1-22) and gzip (1-9); not used by the others.")
    ] = 3
    partition_by: Annotated[
        Literal["hour", "day", "collection", "none", "table"],
        Meta(
            description="The finest partition in a key; by the event's cluster time in UTC. With tables it is "
            "`table`: below each table's root, by day."
        ),
    ] = "hour"
    prefix_shards: Annotated[
        int,
        Meta(ge=0, le=4096, description="Put one of this many hash prefixes in front of each key; 0 for none."),
    ] = 0
    s3: S3Config = field(default_factory=S3Config)

    @property
    def identity(self) -> str:
        """Where objects go and how their keys are formed, which must be the same for a replay."""
        url = url_without_password(self.url).rstrip("/")
        return f"{url} partition_by={self.partition_by} prefix_shards={self.prefix_shards}"

    @property
    def is_s3(self) -> bool:
        """Whether the URL names a bucket of S3, or of a store with its API."""
        return self.url.startswith(("s3://", "s3a://"))

    @property
    def library(self) -> str | None:
        """The module of the URL's file system, if it takes long to load: S3's."""
        return "s3fs" if self.is_s3 else None


# Properties of a catalog whose values are never shown.
_SECRET_PROPERTY = re.compile("password|token|secret|credential|key", re.I)
# The value of ``state.url`` for a state beside the data.
LAKE = "lake"


class StateConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Where tokens, intents and leases are kept."""

    url: Annotated[
        Secret,
        Meta(
            description="`lake`: beside the data, in `_headrace/` below `sink.url`; an S3 store must honour "
            "conditional writes, and a `file://` sink has a SQLite file there. Or `redis://`, `rediss://`, "
            "`redis+sentinel://host:port,host:port/service/db`, or `sqlite:///path` for a single machine."
        ),
    ] = Secret(LAKE)
    prefix: Annotated[
        str,
        Meta(
            min_length=1,
            description="First part of every key. Independent engines that share a state store need different "
            "ones.",
        ),
    ] = "headrace"
    ttl: Annotated[
        Duration,
        Meta(description="How long Redis keeps the record of a stream that no engine runs.", extra={"min": 60}),
    ] = Duration(14 * 86400)
    replicas: Annotated[
        int,
        Meta(
            ge=0,
            description="Redis replicas that must acknowledge a write before it counts (`WAIT`); reduces what a "
            "failover can lose.",
        ),
    ] = 0


class LeaseConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Which engine owns a stream."""

    ttl: Annotated[
        Duration,
        Meta(description="A stream whose owner has been silent this long may be taken over.", extra={"min": 1}),
    ] = Duration(30)


class FleetConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How several engines with one configuration share its streams."""

    streams: Annotated[
        int,
        Meta(
            ge=0,
            description="Change streams that this engine holds at most, among which it divides `memory.limit`; "
            "0 for all of them, so that the last engine that is left can hold them all.",
        ),
    ] = 0
    generation: Annotated[
        int,
        Meta(
            ge=0,
            description="A number that grows with each change of `[source]`: engines with an older one make way, "
            "and do not come back. 0: an engine with a new selection replaces those that run.",
        ),
    ] = 0

    def held(self, streams: int) -> int:
        """How many of a configuration's streams one engine holds at most."""
        return min(streams, self.streams or streams)


class RetryConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Retries of requests to MongoDB, S3 and the state store, and restarts of processes."""

    max_attempts: Annotated[int, Meta(ge=1, description="Attempts before the engine gives up.")] = 10
    initial_delay: Annotated[
        Duration, Meta(description="First delay; it doubles with each attempt, with jitter.", extra={"min": 0.01})
    ] = Duration(1)
    max_delay: Annotated[Duration, Meta(description="Longest delay.", extra={"min": 0.01})] = Duration(60)


class TelemetryConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Logs, metrics, health."""

    listen: Annotated[
        str,
        Meta(
            description="`host:port` for the page at / and for /health, /ready, /metrics, /status; empty for none."
        ),
    ] = "127.0.0.1:8080"
    certificate_file: Annotated[
        str,
        Meta(
            description="PEM file of the endpoints' certificate, with its chain, for TLS; read again when it "
            "changes. Empty: no TLS."
        ),
    ] = ""
    key_file: Annotated[
        str, Meta(description="PEM file of its key, without a password; empty if the key is in the same file.")
    ] = ""
    username: Annotated[
        str, Meta(description="User name that clients of the endpoints give with the password.")
    ] = "headrace"
    password: Annotated[
        Secret,
        Meta(
            description="What clients of the endpoints must present: with the user name (HTTP Basic) or alone, as "
            "a bearer token; at least 16 characters. Without it, /health and /ready tell only their verdict. "
            "Empty: nothing is asked for."
        ),
    ] = Secret("")
    log_format: Annotated[
        Literal["auto", "json", "text"], Meta(description="`auto`: text on a terminal, JSON elsewhere.")
    ] = "auto"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="The lowest level that is logged. SIGUSR1 lowers it at runtime, SIGUSR2 raises it."),
    ] = "info"
    otlp_metrics: Annotated[
        bool,
        Meta(
            description="Also send the metrics over OTLP (HTTP), as `OTEL_EXPORTER_OTLP_ENDPOINT` and the other "
            "variables of the OpenTelemetry SDK say; takes `headrace[otel]`."
        ),
    ] = False
    otlp_traces: Annotated[
        bool, Meta(description="Also send a trace for each segment, as `otlp_metrics` does for metrics.")
    ] = False


class ShutdownConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The drain at SIGTERM, SIGINT or SIGHUP."""

    timeout: Annotated[
        Duration,
        Meta(description="Time to publish and commit what has been read; the rest is replayed at the next start."),
    ] = Duration(25)


class TableConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Tables of what lands: `<collection>_changes`, with every event."""

    format: Annotated[
        Literal["none", "iceberg", "delta"],
        Meta(
            description="The format of the tables; needs the extra `headrace[iceberg]` or `headrace[delta]`, "
            "Parquet, and a sink on S3 with conditional writes."
        ),
    ] = "none"
    interval: Annotated[
        Duration,
        Meta(description="How often what has landed is committed to the tables.", extra={"min": 0.1}),
    ] = Duration(60)
    catalog: Annotated[
        dict[str, str],
        Meta(
            description="Properties of the Iceberg catalog, as pyiceberg has them: `type` (`rest`, `sql`, `glue`, "
            "`hive`), `uri`, ...; `name` is the catalog's name, by default `headrace`. Where the objects are is "
            "taken from [sink]. Delta has no catalog."
        ),
    ] = field(default_factory=dict)


class MirrorConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Tables of the collections as they stand: one row for each document."""

    enabled: Annotated[
        bool,
        Meta(
            description="Keep a table of each collection as it stands, merged from its changelog table; needs "
            "`table.format`."
        ),
    ] = False
    interval: Annotated[
        Duration,
        Meta(description="How often what has changed is merged into them.", extra={"min": 0.1}),
    ] = Duration(300)


class MaintenanceConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What keeps tables small: files are compacted, old snapshots expire, and what no table names is removed."""

    interval: Annotated[
        Duration,
        Meta(description="How often; 0s for never.", extra={"min": 0}),
    ] = Duration(3600)
    keep_snapshots: Annotated[
        Duration,
        Meta(
            description="How long a table's earlier versions can be read, and how long a query may take.",
            extra={"min": 3600},
        ),
    ] = Duration(86400)
    file_size: Annotated[
        Size,
        Meta(description="Files of a changelog table are compacted to about this size.", extra={"min": 2**20}),
    ] = Size(128 * 2**20)


class SupervisionConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Supervision of the processes."""

    hang_timeout: Annotated[
        Duration,
        Meta(
            description="A process that has work and makes no progress for this long is killed and replaced.",
            extra={"min": 1},
        ),
    ] = Duration(120)


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration."""

    source: SourceConfig
    sink: SinkConfig
    table: TableConfig = field(default_factory=TableConfig)
    mirror: MirrorConfig = field(default_factory=MirrorConfig)
    maintenance: MaintenanceConfig = field(default_factory=MaintenanceConfig)
    schema: SchemaConfig = field(default_factory=SchemaConfig)
    backfill: BackfillConfig = field(default_factory=BackfillConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    writers: WritersConfig = field(default_factory=WritersConfig)
    state: StateConfig = field(default_factory=StateConfig)
    lease: LeaseConfig = field(default_factory=LeaseConfig)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    shutdown: ShutdownConfig = field(default_factory=ShutdownConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    # No key: what ``${file:...}`` and ``${aws:...}`` gave, in whichever keys.
    fetched: Annotated[tuple[Secret, ...], Meta(extra={"internal": True})] = ()

    def redactor(self) -> Redactor:
        """Removes this configuration's secrets from any text."""
        urls: tuple[str, ...] = (self.source.uri, self.state.url, self.sink.url)
        urls += tuple(value for name, value in self.table.catalog.items() if "://" in value)
        secrets = [url_password(url) for url in urls] + [*self.fetched]
        secrets += [value for name, value in self.table.catalog.items() if _SECRET_PROPERTY.search(name)]
        secrets += [
            self.telemetry.password,
            self.sink.s3.secret_key,
            self.sink.s3.session_token,
            self.schema.protect_key,
        ]
        for url in urls:
            options = parse_qsl(url.partition("?")[2])
            secrets += [value for key, value in options if re.search("password|token|secret", key, re.I)]
            for key, value in options:
                if key.lower() == "authmechanismproperties":
                    secrets += [part.partition(":")[2] for part in value.split(",")]
        return Redactor(secrets)


def parse_start(text: str) -> datetime | Literal["now", "snapshot", "earliest"]:
    """``source.start`` as a word or an aware time in UTC.

    Raises:
        ValueError: neither a known word nor an RFC 3339 time with an offset.
    """
    if text in ("now", "snapshot", "earliest"):
        return text  # type: ignore[return-value]
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text} has no offset")
    return time.astimezone(UTC)
