"""The connection to MongoDB."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo import MongoClient, ReadPreference, uri_parser
from pymongo.errors import OperationFailure, PyMongoError

from engine.core.messages import ReaderReady
from engine.core.position import Position, make_time
from engine.errors import ConfigError, TransientError
from engine.source.failures import UNAUTHORIZED, summary, translated
from engine.source.reply import Reply, cursor_of

Client = MongoClient[dict[str, Any]]
log = logging.getLogger("headrace")

SERVER_SELECTION_TIMEOUT_MS = 10_000
SOCKET_TIMEOUT_MS = 60_000
SAMPLE_MS = 10_000
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)

_PREFERENCES = {
    "primary": ReadPreference.PRIMARY,
    "secondary": ReadPreference.SECONDARY,
    "secondary_preferred": ReadPreference.SECONDARY_PREFERRED,
}
# Options that mean nothing, or something else, for a connection to one member.
_OF_THE_SET = {"replicaset", "directconnection", "loadbalanced", "readpreference", "readpreferencetags", "appname"}


def connect(
    uri: str,
    *,
    socket_timeout_ms: int = SOCKET_TIMEOUT_MS,
    selection_timeout_ms: int = SERVER_SELECTION_TIMEOUT_MS,
) -> Client:
    """A client for one process; it connects on first use.

    Args:
        selection_timeout_ms: how long to look for a server that can be used.

    Raises:
        ConfigError: the connection string is invalid, or a file that it names cannot be read.
        TransientError: the name of a ``mongodb+srv://`` cannot be resolved at present.
    """
    operation = "read source.uri"
    with translated(operation):
        try:
            return MongoClient(uri, **_defaults(uri, socket_timeout_ms, selection_timeout_ms))
        except (ValueError, OSError) as error:  # of a port that is none, or a certificate that is not there
            raise ConfigError(operation, str(error), "Check source.uri.") from error


def _defaults(
    uri: str,
    socket_timeout_ms: int = SOCKET_TIMEOUT_MS,
    selection_timeout_ms: int = SERVER_SELECTION_TIMEOUT_MS,
) -> dict[str, Any]:
    """A client's options: the timeouts that the connection string does not set, and our own."""
    timeouts = {
        "serverSelectionTimeoutMS": selection_timeout_ms,
        "connectTimeoutMS": selection_timeout_ms,
        "socketTimeoutMS": socket_timeout_ms,
    }
    unset = {name: value for name, value in timeouts.items() if name.lower() not in uri.lower()}
    return {"appname": "headrace", "maxPoolSize": 4} | unset


class Members:
    """Clients of single members, because a cursor exists on one member only.

    State: a client for each member chosen so far. ``preference`` is sent with every command, and ``cluster_time``
    with the first, because a member must know of a cluster time before it can be asked to wait for it.

    Args:
        preference: ``primary``, ``secondary`` or ``secondary_preferred``.
    """

    def __init__(self, client: Client, uri: str, preference: str) -> None:
        self._client = client
        self._uri = uri
        self.preference = _PREFERENCES[preference]
        self.cluster_time: Mapping[str, Any] | None = None
        self._members: dict[tuple[str, int | None], Client] = {}

    @property
    def addresses(self) -> list[tuple[str, int | None]]:
        """The members chosen so far."""
        return list(self._members)

    def choose(self) -> Client:
        """A client of a member that matches the preference, not necessarily the same as the last time.

        Raises:
            PyMongoError: no such member is available.
        """
        with self._client.start_session() as session:
            self._client.admin.command("ping", read_preference=self.preference, session=session)
            self.cluster_time = session.cluster_time
        if self._client.is_mongos:  # it applies the preference itself, but a cursor exists on one mongos only
            candidates = sorted(self._client.nodes) if len(self._client.nodes) > 1 else []
        else:
            candidates = sorted(self._client.secondaries) if self.preference is not ReadPreference.PRIMARY else []
        if not candidates:
            return self._client
        address = random.choice(candidates)
        if address not in self._members:
            self._members[address] = self._connect(*address)
        return self._members[address]

    def close(self) -> None:
        """Close the clients created here."""
        while self._members:
            self._members.popitem()[1].close()

    def _connect(self, host: str, port: int | None) -> Client:
        parts = uri_parser.parse_uri(self._uri, validate=False)  # as it is written: milliseconds stay milliseconds
        options = {name: value for name, value in parts["options"].items() if name.lower() not in _OF_THE_SET}
        if parts["username"]:
            login = {"username": parts["username"], "password": parts["password"]}
            options = {"authSource": parts["database"] or "admin"} | options | login
        return MongoClient(host, port, directConnection=True, **{**_defaults(self._uri), **options})


def survey(client: Client) -> ReaderReady:
    """The kind of deployment, its version and its current cluster time.

    Raises:
        ConfigError: not a replica set or a sharded cluster, or authentication failed.
        TransientError: no server answered, or one that cannot serve yet.
    """
    operation = "connect to MongoDB"
    with translated(operation):
        hello = client.admin.command("hello")
        version = client.admin.command("buildInfo")["version"]
    deployment = "mongos" if hello.get("msg") == "isdbgrid" else hello.get("setName", "")
    serves = any(hello.get(role) for role in ("isWritablePrimary", "ismaster", "secondary"))
    if hello.get("isreplicaset") or (deployment and not serves):
        cause = "the member of the replica set is neither its primary nor a secondary at present"
        remedy = "One that has just been started is in a moment; a new set needs rs.initiate(). See rs.status()."
        raise TransientError(operation, cause, remedy)
    if not deployment:
        cause = "the server is a standalone mongod, which has no change streams"
        remedy = "Start it with --replSet and run rs.initiate(); one member is enough."
        raise ConfigError(operation, cause, remedy)
    return ReaderReady(deployment, version, operation_time(hello))


def operation_time(reply: dict[str, Any]) -> int:
    """The latest cluster time in a reply."""
    stamp = reply.get("operationTime") or reply.get("lastWrite", {}).get("opTime", {}).get("ts")
    if stamp is None:
        cause = "the server reports no operation time"
        raise ConfigError("connect to MongoDB", cause, "Headrace needs MongoDB 4.4 or later.")
    return make_time(stamp.time, stamp.inc)


def server_time(client: Client) -> int:
    """The latest cluster time that the server knows."""
    with translated("get the time of MongoDB"):
        return operation_time(client.admin.command("hello"))


def starting_position(client: Client, start_at: str) -> Position:
    """Where a stream without a position starts.

    Args:
        start_at: ``now``, ``snapshot``, ``earliest``, an RFC 3339 time, or a cluster time in digits, after which
            to start.
    """
    if start_at in ("now", "snapshot"):
        return Position(time=server_time(client) + 1)
    if start_at.isdigit():
        return Position(time=int(start_at) + 1)
    if start_at == "earliest":
        return Position(time=_oldest_time(client))
    return Position(time=make_time(int(datetime.fromisoformat(start_at).timestamp()), 0))


def _oldest_time(client: Client) -> int:
    """The cluster time of the oplog's oldest entry."""
    operation = 'find the oldest event for source.start = "earliest"'
    try:
        return oplog_window(client, operation)[0]
    except ConfigError as error:
        raise ConfigError(operation, error.cause, f"{error.remedy} Or give a time instead.".lstrip()) from error


def oplog_window(client: Client, operation: str) -> tuple[int, int]:
    """The cluster times of the oplog's first and last entries.

    Raises:
        ConfigError: it cannot be read with these rights, or not through a mongos.
        TransientError: no server answered.
    """
    with translated(operation):
        if client.is_mongos:
            raise ConfigError(operation, "a mongos does not show the oplogs of its shards")
        try:
            ends = [_end_of_oplog(client, direction) for direction in (1, -1)]
        except OperationFailure as unread:
            try:
                found = client.admin.command("serverStatus", oplog=1).get("oplog", {})
            except OperationFailure as unknown:
                if failures := [each for each in (unread, unknown) if each.code != UNAUTHORIZED]:
                    raise failures[0] from unknown
                found = {}
            ends = [found.get("earliestOptime"), found.get("latestOptime")]
    first, last = ends
    if first is None or last is None:
        remedy = "Grant the user read on the database local, or the role clusterMonitor."
        raise ConfigError(operation, "the oplog cannot be read with these rights", remedy)
    return make_time(first.time, first.inc), make_time(last.time, last.inc)


def _end_of_oplog(client: Client, direction: int) -> Timestamp | None:
    oplog = client.local.get_collection("oplog.rs", read_preference=ReadPreference.PRIMARY)
    entry = oplog.find_one({}, {"ts": 1}, sort=[("$natural", direction)])
    return entry["ts"] if entry else None


def sample(client: Client, database: str, collection: str, size: int) -> Reply | None:
    """Up to ``size`` random documents, as many as fit one reply; None if that fails.

    A sample only helps to settle types well, so a failure is not worth stopping for.
    """
    stages = [{"$sample": {"size": size}}]
    command = {"aggregate": collection, "pipeline": stages, "cursor": {"batchSize": size}, "maxTimeMS": SAMPLE_MS}
    try:
        raw = bytes(client[database].command(command, codec_options=_RAW).raw)
        if (cursor := cursor_of(raw)[0]) != 0:
            client[database].command("killCursors", collection, cursors=[cursor])
        return Reply.parse(raw)
    except PyMongoError as error:
        fields = {"collection": f"{database}.{collection}", "cause": summary(error)}
        log.warning("no sample; the first events settle the types", extra={"fields": fields})
        return None
