"""TLS with certificates of our own, and secrets and protected values that appear nowhere."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import psutil
import pytest
import redis
import trustme
from bson.int64 import Int64
from pymongo import MongoClient

from bench.local import LocalStack, Mongo
from bench.local.servers import Valkey
from tests.aws import secrets_manager
from tests.integration.harness import Engine, EngineConfig, Lake
from tests.tls import tls_in_front_of, written_ca, written_certificate

Client = MongoClient[dict[str, Any]]
PASSWORD = "m0ngo/pl4nted p@ss"
SECRETS = {
    "password of MongoDB": PASSWORD,
    "key of the certificate for MongoDB": "k3y-of-mongo-pl4nted",
    "password of Redis": "r3dis/pl4nted+p@ss",
    "key of the certificate for Redis": "k3y-of-redis-pl4nted",
    "session token": "t0ken/pl4nted==",
    "key of the hashes": "h4sh-key-pl4nted",
}
CARD, NUMBER = "4111-pl4nted-1111", 7_304_918_273_645_546_372
# What must not land of protected values, in any byte.
VALUES = [CARD, str(NUMBER), "pl4nted-in-a-list", "pl4nted-nested"]


WRONG = {name: f"wr0ng-{value}" for name, value in SECRETS.items()}


def given(wrong: str) -> dict[str, str]:
    return SECRETS | {name: value for name, value in WRONG.items() if name == wrong}


@dataclass
class Fortress:
    """Servers with TLS, passwords and client certificates, and where clients find them."""

    authority: trustme.CA
    mongo: Mongo
    valkey: Valkey
    directory: Path
    ports: dict[str, int]
    certificates: dict[str, tuple[Path, Path]] = field(default_factory=dict)

    def mongo_uri(self, host: str = "localhost", ca: str = "ca.pem", wrong: str = "") -> str:
        """The address; ``wrong`` names a secret in it that is wrong."""
        secrets = given(wrong)
        both, _ = self.certificates["mongo"]
        options = f"tls=true&tlsCAFile={self.directory / ca}&tlsCertificateKeyFile={both}"
        options += f"&tlsCertificateKeyFilePassword={secrets['key of the certificate for MongoDB']}"
        options += "&directConnection=true&serverSelectionTimeoutMS=2000&authSource=admin"
        password = quote(secrets["password of MongoDB"], safe="")
        return f"mongodb://root:{password}@{host}:{self.ports['mongo']}/?{options}"

    def redis_url(self, host: str = "localhost", ca: str = "ca.pem", wrong: str = "") -> str:
        """The same for Redis."""
        secrets = given(wrong)
        both, key = self.certificates["redis"]
        options = f"ssl_ca_certs={self.directory / ca}&ssl_certfile={both}&ssl_keyfile={key}"
        options += f"&ssl_password={secrets['key of the certificate for Redis']}"
        password = quote(secrets["password of Redis"], safe="")
        return f"rediss://:{password}@{host}:{self.ports['redis']}/0?{options}"

    def s3_url(self, host: str = "localhost") -> str:
        return f"https://{host}:{self.ports['s3']}"


@pytest.fixture(scope="module")
def fortress(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fortress]:
    directory = tmp_path_factory.mktemp("fortress")
    authority = trustme.CA()
    ca = written_ca(authority, directory)
    written_ca(trustme.CA(), directory, "other.pem")
    server_file, _ = written_certificate(authority, directory, "server", ("localhost",))
    certificates = {
        name: written_certificate(authority, directory, name, password=SECRETS[key])
        for name, key in (
            ("mongo", "key of the certificate for MongoDB"),
            ("redis", "key of the certificate for Redis"),
        )
    }
    options = ["--tlsMode", "preferTLS", "--tlsCertificateKeyFile", str(server_file), "--tlsCAFile", str(ca)]
    mongo = Mongo(directory, password=PASSWORD, options=options, cache_gib=0.25)
    valkey = Valkey(directory)
    mongo.start()
    valkey.start()
    with redis.Redis(port=valkey.port) as client:
        client.config_set("requirepass", SECRETS["password of Redis"])
    with (
        tls_in_front_of(valkey.port, authority, ("localhost",), clients=authority) as redis_port,
        tls_in_front_of(stack.s3.port, authority, ("localhost",)) as s3_port,
    ):
        ports = {"mongo": mongo.ports[0], "redis": redis_port, "s3": s3_port}
        yield Fortress(authority, mongo, valkey, directory, ports, certificates)
    mongo.members[0].kill()
    valkey.process.kill()


@pytest.fixture
def secured(config: EngineConfig, fortress: Fortress, tmp_path: Path) -> EngineConfig:
    """A configuration whose secrets come from a file, from the environment, and from AWS."""
    (tmp_path / "mongo-uri").write_text(fortress.mongo_uri() + "\n")
    config.set("source", uri=f"${{file:{tmp_path}/mongo-uri}}", full_document_before_change="when_available")
    config.set("state", url="${STATE_URL}")
    config.set(
        "sink.s3",
        endpoint_url=fortress.s3_url(),
        ca_file=str(fortress.directory / "ca.pem"),
        secret_key="${aws:s3#secret}",
    )
    paths = ("card", "lines.number", "nested")
    config.set(
        "schema", protect={f"orders.{path}": "hash" for path in paths}, protect_key="${aws:hashes}", raw=True
    )
    return config


@pytest.fixture
def environment(fortress: Fortress, stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    secrets = {"s3": json.dumps({"secret": stack.s3.secret_key}), "hashes": SECRETS["key of the hashes"]}
    with secrets_manager(secrets) as found:
        for name, value in (found | {"STATE_URL": fortress.redis_url(), "AWS_MAX_ATTEMPTS": "1"}).items():
            monkeypatch.setenv(name, value)
        yield


def forms(secret: str) -> set[bytes]:
    """A secret as it may be written."""
    texts = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), repr(secret)[1:-1]}
    texts.add(base64.b64encode(secret.encode()).decode())
    return {each.encode() for each in texts} | {secret.encode().hex().encode()}


def assert_nowhere(secrets: dict[str, str], places: dict[str, bytes]) -> None:
    found = [
        f"{name} in {place}"
        for name, secret in secrets.items()
        for place, content in places.items()
        if any(form in content for form in forms(secret))
    ]
    assert found == []


def lake_of(config: EngineConfig) -> dict[str, bytes]:
    lake = Lake(config.stack, config.name)
    return {key: lake.content(key) for key in lake.object_keys()}


def state_of(fortress: Fortress) -> bytes:
    """Everything in the state store."""
    with redis.Redis(port=fortress.valkey.port, password=SECRETS["password of Redis"]) as client:
        kinds = {b"string": client.get, b"hash": client.hgetall, b"set": client.smembers}
        return repr({key: kinds[client.type(key)](key) for key in client.scan_iter()}).encode()  # type: ignore[operator]


def command_lines(engine: Engine) -> bytes:
    pids = [engine.process.pid, *engine.children()]
    return "\n".join(" ".join(psutil.Process(pid).cmdline()) for pid in pids).encode()


def committed(status: dict[str, Any]) -> int:
    return sum(each["events_committed"] for each in status["streams"])


def is_loaded(status: dict[str, Any]) -> bool:
    return bool(status["backfills"]) and all(each["documents"] == 20 for each in status["backfills"])


def run(config: EngineConfig, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "engine", *arguments, "--config", str(config.path)]
    return subprocess.run(command, capture_output=True, timeout=120, check=False)


@pytest.mark.usefixtures("environment")
def test_secrets_and_protected_values_appear_nowhere(
    fortress: Fortress, secured: EngineConfig, stack: LocalStack
) -> None:
    """Through inserts, updates, a backfill, a crash and a drain, with all connections through TLS."""
    config = secured
    config.set("source", start="snapshot")
    with Client(fortress.mongo_uri()) as client:
        orders = client[config.name].create_collection("orders", changeStreamPreAndPostImages={"enabled": True})
        nested = {"x": "pl4nted-nested"}
        orders.insert_many([{"_id": n, "card": CARD, "lines": [{"number": NUMBER}], "n": n} for n in range(20)])
        with Engine(config) as engine:
            engine.wait_reading()
            engine.wait_for(is_loaded, "the backfill")
            orders.insert_one({"_id": 50, "card": CARD, "nested": nested, "lines": [{"number": Int64(NUMBER)}]})
            orders.update_one(
                {"_id": 1}, {"$set": {"card": CARD + "x", "lines.0.number": NUMBER, "nested": nested}}
            )
            orders.update_one({"_id": 2}, {"$set": {"nested": ["pl4nted-in-a-list", nested], "n": 7}})
            orders.delete_one({"_id": 3})
            engine.wait_for(
                lambda status: sum(s["events_committed"] for s in status["streams"]) >= 4, "the events"
            )
            places = {"command lines": command_lines(engine)}
            for path in ("/status", "/metrics", "/health", "/ready"):
                places[path] = engine.get(path)[1].encode()
            engine.kill_tree()
        with Engine(config) as engine:
            engine.wait_reading()
            orders.insert_one({"_id": 60, "card": CARD})
            engine.wait_for(lambda status: committed(status) >= 1, "an event")
            assert engine.terminate() == 0
    for command in ("status", "check", "state show"):
        done = run(config, *command.split())
        assert done.returncode == 0, done.stderr
        places[command] = done.stdout + done.stderr
    places |= {"log": engine.log_path.read_bytes(), "state": state_of(fortress)}
    lake = lake_of(config)
    secrets = SECRETS | {"secret key of S3": stack.s3.secret_key, "chain": "ch4in-secret"}
    assert_nowhere(secrets, places | lake)
    assert_nowhere(dict(zip(VALUES, VALUES, strict=True)), places | lake)
    rows = [row for row in Lake(stack, config.name).rows() if row["_cdc_op"] in ("read", "insert", "update")]
    hashes = {row["card"] for row in rows if row["_cdc_op"] != "update"}
    assert len(hashes) == 1, "documents that were read and events have the same hash for the same value"
    for row in rows:
        text = json.dumps({name: value for name, value in row.items() if name != "_cdc_raw"}, default=str)
        assert not any(value in text for value in VALUES)
        assert not any(value.encode() in (row["_cdc_raw"] or b"") for value in VALUES)
        assert NUMBER.to_bytes(8, "little") not in (row["_cdc_raw"] or b"")


@pytest.mark.usefixtures("environment")
def test_secrets_appear_nowhere_after_failures(
    fortress: Fortress, secured: EngineConfig, monkeypatch: pytest.MonkeyPatch, stack: LocalStack
) -> None:
    """Servers that refuse what they are given, that are away, and a configuration that cannot be read."""
    config = secured
    config.set("retry", max_attempts=2)
    config.set("sink.s3", secret_key="wr0ng-s3-pl4nted", session_token=SECRETS["session token"])
    places: dict[str, bytes] = {}

    def note(name: str, *arguments: str, code: set[int]) -> None:
        done = run(config, *arguments)
        assert done.returncode in code, done.stderr.decode()
        places[name] = done.stdout + done.stderr

    def give(wrong_mongo: str = "", wrong_redis: str = "", host: str = "localhost") -> None:
        config.set("source", uri=fortress.mongo_uri(host, wrong=wrong_mongo))
        monkeypatch.setenv("STATE_URL", fortress.redis_url(host, wrong=wrong_redis))

    give("key of the certificate for MongoDB", "key of the certificate for Redis")
    note("keys that cannot be read", "check", code={2})
    give("password of MongoDB", "password of Redis")
    note("refused", "check", code={2})
    give(host="nowhere.invalid")
    config.set("sink.s3", endpoint_url="https://nowhere.invalid")
    note("away", "check", code={1, 2})
    note("away at the start", "run", code={1})
    config.set("batch", rows="${aws:hashes}")
    note("unreadable", "run", code={2})
    others = {"secret key of S3": "wr0ng-s3-pl4nted", "chain": "ch4in-secret"}
    assert_nowhere(SECRETS | others, places)  # the wrong ones contain the right ones


REMEDIES = {"MongoDB": "tlsCAFile", "Redis": "ssl_ca_certs", "S3": "sink.s3.ca_file"}


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("server", REMEDIES)
def test_a_certificate_that_is_not_trusted_ends_the_engine_at_its_start(
    fortress: Fortress, secured: EngineConfig, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    if server == "MongoDB":
        secured.set("source", uri=fortress.mongo_uri(ca="other.pem"))
    elif server == "Redis":
        monkeypatch.setenv("STATE_URL", fortress.redis_url(ca="other.pem"))
    else:
        secured.set("sink.s3", ca_file=str(fortress.directory / "other.pem"))
    done = run(secured, "run")
    last = done.stderr.decode().splitlines()[-1]
    assert done.returncode == 2, last
    assert "certificate is not trusted" in last
    assert REMEDIES[server] in last


@pytest.mark.usefixtures("environment")
def test_a_certificate_for_another_name(
    fortress: Fortress, secured: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    secured.set("source", uri=fortress.mongo_uri("127.0.0.1"))
    secured.set("sink.s3", endpoint_url=fortress.s3_url("127.0.0.1"))
    monkeypatch.setenv("STATE_URL", fortress.redis_url("127.0.0.1"))
    done = run(secured, "check")
    assert done.returncode == 2
    failed = [line for line in done.stdout.decode().splitlines() if line.startswith("failed")]
    assert len(failed) == 3
    for line, remedy in zip(sorted(failed), ("tlsCAFile", "sink.s3.ca_file", "ssl_ca_certs"), strict=True):
        assert "certificate is not trusted" in line
        assert remedy in line
