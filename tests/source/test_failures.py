"""Errors of the source: a sentence without contents of documents, and a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from bench.local import LocalStack
from engine.core.position import Position
from engine.core.specs import StreamSpec
from engine.errors import ConfigError, FatalError, HeadraceError, StreamLostError, TransientError
from engine.source.change_stream import ChangeStream
from engine.source.failures import translate
from engine.source.session import connect, server_time, survey
from tests.tls import tls_in_front_of, written_ca

Client = MongoClient[dict[str, Any]]
QUICK = "serverSelectionTimeoutMS=500&connectTimeoutMS=500"


def failure(code: int, name: str, message: str, *labels: str) -> OperationFailure:
    """The error as the driver raises it, with the whole reply in its text."""
    details = {"ok": 0.0, "errmsg": message, "code": code, "codeName": name, "errorLabels": [*labels]}
    return OperationFailure(message, code, details)


LONG = '{ aggregate: "orders", pipeline: [ { $match: { card: "4111", x: { y: 1 } } } ], lsid: { id: UUID("a") }, '
LOST = (
    "PlanExecutor error during aggregation :: caused by :: "
    "Resume of change stream was not possible, as the resume point may no longer be in the oplog."
)


@pytest.mark.parametrize(
    ("error", "kind", "cause", "remedy"),
    [
        (
            failure(18, "AuthenticationFailed", "Authentication failed."),
            ConfigError,
            "Authentication failed. (AuthenticationFailed, code 18)",
            "authSource",
        ),
        (
            failure(13, "Unauthorized", f'not authorized on shop to execute command {LONG}$db: "shop" }}'),
            ConfigError,
            "not authorized on shop to execute aggregate (Unauthorized, code 13)",
            "find and changeStream on the database shop",
        ),
        (
            failure(13, "Unauthorized", f"not authorized on admin to execute command {LONG}"),
            ConfigError,
            "not authorized on admin to execute aggregate (Unauthorized, code 13)",
            "readAnyDatabase",
        ),
        (
            failure(13, "Unauthorized", 'not authorized on local to execute command { find: "oplog.rs" }'),
            ConfigError,
            "not authorized on local to execute find (Unauthorized, code 13)",
            "read on the database local",
        ),
        (
            failure(286, "ChangeStreamHistoryLost", LOST, "NonResumableChangeStreamError"),
            StreamLostError,
            "Resume of change stream was not possible, as the resume point may no longer be in the oplog. "
            "(ChangeStreamHistoryLost, code 286)",
            'Set source.on_history_lost = "snapshot"',
        ),
        (
            failure(40415, "Location40415", "BSON field '$changeStream.showExpandedEvents' is an unknown field."),
            ConfigError,
            "BSON field '$changeStream.showExpandedEvents' is an unknown field. (code 40415)",
            "source.expanded_events and document images",
        ),
        (
            failure(40573, "Location40573", "The $changeStream stage is only supported on replica sets"),
            ConfigError,
            "The $changeStream stage is only supported on replica sets (code 40573)",
            "Headrace needs change streams",
        ),
        (
            failure(20, "IllegalOperation", "$lookup is not permitted in a $changeStream pipeline"),
            ConfigError,
            "$lookup is not permitted in a $changeStream pipeline (IllegalOperation, code 20)",
            "Check source.pipeline",
        ),
        (
            failure(115, "CommandNotSupported", "aggregate is not supported"),
            FatalError,
            "aggregate is not supported (CommandNotSupported, code 115)",
            "MongoDB-compatible",
        ),
        (
            failure(11601, "InterruptedX", "value { a: { b: [ 1, 2 ] } } of " + "word " * 200),
            TransientError,
            "value (...) of word",
            "",
        ),
    ],
)
def test_each_error_is_a_sentence_with_a_remedy(
    error: OperationFailure, kind: type[HeadraceError], cause: str, remedy: str
) -> None:
    found = translate("read the change stream shop.orders", error)
    assert type(found) is kind
    assert found.operation == "read the change stream shop.orders"
    assert found.cause.startswith(cause)
    assert remedy in found.remedy
    assert len(found.cause) < 350
    assert "full error" not in str(found)
    assert "4111" not in str(found)


@pytest.mark.parametrize(
    "stages", ['[{"$match": {"$nope": {"card": "4111"}}}]', '[{"$nope": 1}]', '[{"$lookup": {"card": "4111"}}]']
)
def test_a_real_servers_errors_about_a_pipeline(client: Client, unique: str, stages: str) -> None:
    client[unique].orders.insert_one({"n": 1})
    spec = StreamSpec("s", "collection", unique, ("orders",), pipeline=stages)
    stream = ChangeStream(client, spec, Position(time=server_time(client)))
    with pytest.raises(ConfigError, match=r"Check source\.pipeline") as caught:
        stream.next()
    stream.close()
    assert "{" not in caught.value.cause
    assert "4111" not in caught.value.cause


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        (f"mongodb://127.0.0.1:1/?{QUICK}", "Is MongoDB up, and are host and port"),
        (f"mongodb://nowhere.invalid/?{QUICK}", "The name cannot be resolved"),
        (f"mongodb+srv://nowhere.invalid/?{QUICK}", "The name cannot be resolved"),
        (f"mongodb://127.0.0.1:{{port}}/?replicaSet=another&{QUICK}", "the set's own name"),
        (f"mongodb://127.0.0.1:{{port}}/?tls=true&{QUICK}", "Does the server use TLS"),
        (f"mongodb://127.0.0.1:{{tls}}/?directConnection=true&{QUICK}", "does it require TLS"),
    ],
)
def test_a_server_that_cannot_be_reached(stack: LocalStack, uri: str, remedy: str) -> None:
    assert stack.mongo is not None
    (port,) = stack.mongo.ports
    with tls_in_front_of(port, trustme.CA()) as tls:
        where = uri.replace("{port}", str(port)).replace("{tls}", str(tls))
        with pytest.raises(TransientError) as caught, connect(where) as client:
            survey(client)
    assert remedy in caught.value.remedy, caught.value
    assert "configured timeouts" not in caught.value.cause
    assert "Topology" not in caught.value.cause
    assert len(caught.value.cause) < 350


@pytest.mark.parametrize("fault", ["another authority", "another name"])
def test_a_certificate_that_is_not_trusted(stack: LocalStack, tmp_path: Path, fault: str) -> None:
    """It is a mistake in the configuration, and not retried."""
    assert stack.mongo is not None
    authority = trustme.CA()
    names = ("elsewhere.example",) if fault == "another name" else ("localhost",)
    ca = written_ca(authority if fault == "another name" else trustme.CA(), tmp_path)
    with tls_in_front_of(stack.mongo.ports[0], authority, names) as port:
        where = f"mongodb://localhost:{port}/?directConnection=true&tls=true&tlsCAFile={ca}&{QUICK}"
        with pytest.raises(ConfigError, match="set its CA by tlsCAFile"), connect(where) as client:
            survey(client)


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://h:99999/",
        "mongodb://h:port/",
        "mongodb://[::1/",
        "mongodb://h/?tls=true&tlsCAFile=/nowhere",
        f"mongodb://a..b/?{QUICK}",
        f"mongodb+srv://{'x' * 80}.example.com/?{QUICK}",
    ],
)
def test_an_invalid_address(uri: str) -> None:
    """An invalid address is not retried."""
    with pytest.raises(ConfigError, match=r"source\.uri"), connect(uri) as client:
        survey(client)
