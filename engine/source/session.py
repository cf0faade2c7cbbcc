"""The connection to MongoDB, and the one place where the driver's errors become ours."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo import MongoClient, ReadPreference, uri_parser
from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    ConnectionFailure,
    InvalidURI,
    OperationFailure,
    PyMongoError,
)

from engine.core.messages import ReaderReady
from engine.core.position import Position, make_time
from engine.errors import ConfigError, FatalError, HeadraceError, StreamLostError, TransientError
from engine.source.reply import Reply, cursor_of

Client = MongoClient[dict[str, Any]]
log = logging.getLogger("headrace")

SERVER_SELECTION_TIMEOUT_MS = 10_000
SOCKET_TIMEOUT_MS = 60_000
SAMPLE_MS = 10_000
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)

_UNAUTHENTICATED = {18, 8000, 11}  # AuthenticationFailed, AtlasError, UserNotFound
_UNAUTHORIZED = 13
_HISTORY_LOST = {280, 286}  # ChangeStreamFatalError, ChangeStreamHistoryLost
# What no server will ever do: CommandNotFound, CommandNotSupported, InternalErrorNotSupported, NotImplemented,
# BSONObjectTooLarge.
_NEVER = {59, 115, 235, 238, 10334}
# BadValue, FailedToParse, TypeMismatch, IllegalOperation, IndexNotFound (of $text), InvalidOptions,
# InvalidNamespace, JSInterpreterFailure, CommandNotSupportedOnView, InvalidPipelineOperator, ConversionFailure,
# NoQueryExecutionPlans (of $near).
_BAD_QUERY = {2, 9, 14, 20, 27, 72, 73, 139, 166, 168, 241, 291}
_FIRST_LOCATION = 10_000
_NO_NAME_SERVER = {"LifetimeTimeout", "NoNameservers"}  # of dnspython, for mongodb+srv://
_PREFERENCES = {
    "primary": ReadPreference.PRIMARY,
    "secondary": ReadPreference.SECONDARY,
    "secondary_preferred": ReadPreference.SECONDARY_PREFERRED,
}
# Options that mean nothing, or something else, to a connection to one member.
_OF_THE_SET = {"replicaset", "directconnection", "loadbalanced", "readpreference", "readpreferencetags", "appname"}


def connect(uri: str, *, socket_timeout_ms: int = SOCKET_TIMEOUT_MS) -> Client:
    """A client for one process; nothing is sent before its first use.

    Raises:
        ConfigError: the connection string cannot be read.
    """
    with translated("read source.uri"):
        return MongoClient(uri, **_defaults(uri, socket_timeout_ms))


def _defaults(uri: str, socket_timeout_ms: int = SOCKET_TIMEOUT_MS) -> dict[str, Any]:
    """Options of a client; the timeouts that the connection string leaves open."""
    timeouts = {
        "serverSelectionTimeoutMS": SERVER_SELECTION_TIMEOUT_MS,
        "connectTimeoutMS": SERVER_SELECTION_TIMEOUT_MS,
        "socketTimeoutMS": socket_timeout_ms,
    }
    left_open = {name: value for name, value in timeouts.items() if name.lower() not in uri.lower()}
    return {"appname": "headrace", "maxPoolSize": 4} | left_open


class Members:
    """Clients of single members, for cursors, which are known to one member only.

    State: a client for each member that was chosen so far; ``preference`` goes with every command, and
    ``cluster_time`` with the first: a member must know of the time that it is asked to have reached.

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
        """The members that were chosen so far."""
        return list(self._members)

    def choose(self) -> Client:
        """A client of a member that is as preferred; another one perhaps than the last time.

        Raises:
            PyMongoError: there is none.
        """
        with self._client.start_session() as session:
            self._client.admin.command("ping", read_preference=self.preference, session=session)
            self.cluster_time = session.cluster_time
        if self._client.is_mongos:  # it goes by the preference itself; but a cursor is known to one mongos only
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
        """Close the clients that were made here."""
        while self._members:
            self._members.popitem()[1].close()

    def _connect(self, host: str, port: int | None) -> Client:
        parts = uri_parser.parse_uri(self._uri)
        options = {name: value for name, value in parts["options"].items() if name.lower() not in _OF_THE_SET}
        if parts["username"]:
            login = {"username": parts["username"], "password": parts["password"]}
            options = {"authSource": parts["database"] or "admin"} | options | login
        return MongoClient(host, port, directConnection=True, **{**_defaults(self._uri), **options})


def survey(client: Client) -> ReaderReady:
    """What the deployment is, and what time it is there.

    Raises:
        ConfigError: not a replica set or a sharded cluster, or the login failed.
        TransientError: no server answered.
    """
    with translated("connect to MongoDB"):
        hello = client.admin.command("hello")
        version = client.admin.command("buildInfo")["version"]
    deployment = "mongos" if hello.get("msg") == "isdbgrid" else hello.get("setName", "")
    if not deployment:
        cause = "the server is a standalone mongod, which has no change streams"
        remedy = "Start it with --replSet and run rs.initiate(); one member is enough."
        raise ConfigError("connect to MongoDB", cause, remedy)
    return ReaderReady(deployment, version, operation_time(hello))


def operation_time(reply: dict[str, Any]) -> int:
    """The latest cluster time that a reply tells of."""
    stamp = reply.get("operationTime") or reply.get("lastWrite", {}).get("opTime", {}).get("ts")
    if stamp is None:
        cause = "the server reports no operation time"
        raise ConfigError("connect to MongoDB", cause, "Headrace needs MongoDB 4.4 or later.")
    return make_time(stamp.time, stamp.inc)


def server_time(client: Client) -> int:
    """The latest cluster time that the server knows."""
    with translated("ask MongoDB for its time"):
        return operation_time(client.admin.command("hello"))


def starting_position(client: Client, start_at: str) -> Position:
    """Where a stream without a position starts.

    Args:
        start_at: ``now``, ``snapshot``, ``earliest``, an RFC 3339 time, or a cluster time in digits, to start
            behind.
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
    with translated(operation):
        try:
            entry = client.local["oplog.rs"].find_one({}, {"ts": 1}, sort=[("$natural", 1)])
            oldest: Timestamp | None = entry["ts"] if entry else None
        except OperationFailure as unread:
            try:
                oldest = client.admin.command("serverStatus", oplog=1).get("oplog", {}).get("earliestOptime")
            except OperationFailure as unknown:
                if failures := [each for each in (unread, unknown) if each.code != _UNAUTHORIZED]:
                    raise failures[0] from unknown
                oldest = None
    if oldest is None:
        remedy = "Grant read on the database local, or clusterMonitor; or give a time instead."
        raise ConfigError(operation, "the oplog cannot be read with these rights", remedy)
    return make_time(oldest.time, oldest.inc)


def sample(client: Client, database: str, collection: str, size: int) -> Reply | None:
    """So many documents at random, or as many as there are or make one reply; None when that fails.

    A sample only helps to settle types well, so nothing is worth stopping for.
    """
    stages = [{"$sample": {"size": size}}]
    command = {"aggregate": collection, "pipeline": stages, "cursor": {"batchSize": size}, "maxTimeMS": SAMPLE_MS}
    try:
        raw = bytes(client[database].command(command, codec_options=_RAW).raw)
        if (cursor := cursor_of(raw)[0]) != 0:
            client[database].command("killCursors", collection, cursors=[cursor])
        return Reply.parse(raw)
    except PyMongoError as error:
        fields = {"collection": f"{database}.{collection}", "cause": _first_line(error)}
        log.warning("no sample; types are settled by the first events", extra={"fields": fields})
        return None


@contextmanager
def translated(operation: str) -> Iterator[None]:
    """Raise the driver's errors as ours."""
    try:
        yield
    except PyMongoError as error:
        raise translate(operation, error) from error


def translate(operation: str, error: PyMongoError) -> HeadraceError:
    """The driver's error as one of ours."""
    if isinstance(error, OperationFailure):
        return _translate_failure(operation, error)
    if isinstance(error, ConfigurationError) and type(error.__cause__).__name__ in _NO_NAME_SERVER:
        return TransientError(operation, _first_line(error), "Can this machine resolve the name in source.uri?")
    if isinstance(error, ConfigurationError | InvalidURI):
        return ConfigError(operation, str(error), "Check source.uri.")
    if isinstance(error, AutoReconnect | ConnectionFailure):
        cause = _first_line(error)
        return TransientError(operation, cause, "Is MongoDB up, and source.uri right?")
    return FatalError(operation, f"{type(error).__name__}: {error}")


def _translate_failure(operation: str, error: OperationFailure) -> HeadraceError:
    """Whatever is not known to last may pass: servers have hundreds of codes, and get new ones."""
    message = (error.details or {}).get("errmsg", str(error))
    cause = f"{message} (code {error.code})"
    if error.code in _UNAUTHENTICATED:
        return ConfigError(operation, cause, "Check the user, the password and authSource in source.uri.")
    if error.code == _UNAUTHORIZED:
        remedy = "Grant the user find and changeStream on what is watched (the role read has both)."
        return ConfigError(operation, cause, remedy)
    if error.code in _HISTORY_LOST or error.has_error_label("NonResumableChangeStreamError"):
        remedy = (
            'Set source.on_history_lost = "now" to go on without the events between, '
            "and give the oplog more time (replSetResizeOplog, minRetentionHours)."
        )
        return StreamLostError(operation, cause, remedy)
    if is_bad_query(error) and not error.has_error_label("ResumableChangeStreamError"):
        return ConfigError(operation, cause, "Check source.pipeline and the other keys of [source].")
    if error.code in _NEVER:
        return FatalError(operation, cause)
    return TransientError(operation, cause)


def is_bad_query(error: OperationFailure) -> bool:
    """Whether the server complains of what it was asked: a pipeline, a filter, an option, a view.

    Most of its checks of a query have a number of their own and no name, beside which it says "Location".
    """
    name = str((error.details or {}).get("codeName", ""))
    is_check = (error.code or 0) >= _FIRST_LOCATION and name.startswith("Location")
    return error.code in _BAD_QUERY or is_check


def _first_line(error: Exception) -> str:
    """Without the driver's description of the whole topology."""
    return str(error).partition(", Timeout:")[0].partition(", Topology Description:")[0]
