"""Users with exactly the rights that configs/OPERATIONS.md gives for each command, and users who lack one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from pymongo import MongoClient

from bench.local import Mongo, S3Server
from bench.local.servers import Valkey
from tests.integration.harness import EngineConfig, catch_up, run_engine

Client = MongoClient[dict[str, Any]]
FIND, STREAM = ["find"], ["find", "changeStream"]


OPERATIONS = Path(__file__).parents[2] / "configs" / "OPERATIONS.md"


def rights_of_redis(user: str) -> list[str]:
    """The rules of a user in the document, after the password."""
    (found,) = re.findall(rf"^ACL SETUSER {user} on >password (.*)$", OPERATIONS.read_text(), re.MULTILINE)
    return str(found).split()


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("acl"))
    server.start()
    yield server
    server.process.kill()


class LimitedS3(S3Server):
    """A server with a key for each set of actions."""

    keys = {  # noqa: RUF012
        "writer": ["Write:lake", "List:lake"],
        "reader": ["Read:lake", "List:lake"],
        "lister": ["List:lake"],
        "keeper": ["Read:lake", "Write:lake", "List:lake"],
    }

    def renew_secret(self) -> None:
        super().renew_secret()
        found = json.loads(self._config.read_text())
        for name, actions in self.keys.items():
            credentials = [{"accessKey": name, "secretKey": f"secret-{name}"}]
            found["identities"].append({"name": name, "credentials": credentials, "actions": actions})
        self._config.write_text(json.dumps(found))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = LimitedS3(tmp_path_factory.mktemp("limited"))
    server.start()
    server.make_bucket("lake")
    yield server
    server.stop()


class Rights:
    """A configuration with users of its own everywhere."""

    def __init__(self, config: EngineConfig, mongo: Mongo, valkey: Valkey, s3: S3Server) -> None:
        self.config = config
        self._mongo = mongo
        self._valkey = valkey
        config.set("source", start="now")
        config.set("sink", url=f"s3://lake/{config.name}")
        config.set("sink.s3", endpoint_url=s3.endpoint_url)
        self.give_s3("writer")
        self.give_redis("writer")

    def give_mongo(self, *privileges: tuple[str, list[str]]) -> None:
        """A user with these actions on these collections; on the whole database if the name is empty."""
        name = self.config.name
        with Client(self._mongo.uri) as client:
            found = [{"resource": {"db": name, "collection": each}, "actions": do} for each, do in privileges]
            for drop, what in (("dropUser", name), ("dropRole", name)):
                if client.admin.command(f"{drop[4:].lower()}sInfo", what)[f"{drop[4:].lower()}s"]:
                    client.admin.command(drop, what)
            client.admin.command("createRole", name, privileges=found, roles=[])
            client.admin.command("createUser", name, pwd="some-word", roles=[name])
        uri = self._mongo.uri.replace(f"root:{self._mongo.password}@", f"{name}:some-word@")
        self.config.set("source", uri=f"{uri}&authSource=admin")

    def give_s3(self, key: str) -> None:
        self.config.set("sink.s3", access_key=key, secret_key=f"secret-{key}")

    def give_redis(self, user: str, without: str = "") -> None:
        """A user with the rights of the document, but one."""
        rules = [rule.replace("headrace", self.config.name) for rule in rights_of_redis(user) if rule != without]
        with closing(redis.Redis(port=self._valkey.port)) as client:
            client.execute_command("ACL", "SETUSER", self.config.name, "reset", "on", ">some-word", *rules)
        self.config.set("state", url=f"redis://{self.config.name}:some-word@127.0.0.1:{self._valkey.port}/0")

    def refused(self, command: str) -> dict[str, str]:
        """What ``check`` refuses, by the server."""
        done = run_engine(self.config, "check", "--for", command)
        assert done.returncode == 2, done.stdout + done.stderr
        lines = [each for each in done.stdout.splitlines() if each.startswith("failed")]
        found = {line[8:21].strip(): line for line in lines}
        assert len(found) == len(lines)
        return found

    def works(self, *arguments: str) -> None:
        done = run_engine(self.config, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def rights(config: EngineConfig, guarded: Mongo, valkey: Valkey, s3: S3Server) -> Rights:
    with Client(guarded.uri) as client:
        client[config.name].orders.insert_many([{"n": n} for n in range(10)])
    return Rights(config, guarded, valkey, s3)


def test_the_documented_rights_suffice_for_each_command(rights: Rights, tmp_path: Path) -> None:
    rights.give_mongo(("orders", STREAM))
    rights.works("check")
    catch_up(rights.config)
    rights.give_mongo(("orders", ["find", "collStats"]))
    rights.works("check", "--for", "backfill")
    rights.works("backfill")
    rights.give_redis("reader")
    rights.works("check", "--for", "status")
    rights.works("status")
    rights.give_s3("reader")
    rights.give_mongo(("orders", FIND))
    for command in ("verify", "restore"):
        rights.works("check", "--for", command)
    rights.works("verify")
    repair(rights, tmp_path, lambda: rights.give_redis("writer"))


def test_the_documented_rights_suffice_with_the_state_in_the_lake(rights: Rights, tmp_path: Path) -> None:
    rights.config.set("state", url="lake")
    rights.give_s3("keeper")
    rights.give_mongo(("orders", STREAM))
    rights.works("check")
    catch_up(rights.config)
    rights.give_mongo(("orders", ["find", "collStats"]))
    rights.works("backfill")
    rights.give_s3("reader")
    rights.give_mongo(("orders", FIND))
    rights.works("check", "--for", "status")
    rights.works("status")
    rights.works("verify")
    repair(rights, tmp_path, lambda: rights.give_s3("keeper"))


def repair(rights: Rights, directory: Path, may_write: Callable[[], None]) -> None:
    """The commands that need no right on the source; those that change the state come last."""
    rights.give_mongo()
    rights.works("restore", "--to", str(directory / "orders.bson.zst"))
    exported = str(directory / "state.jsonl")
    rights.works("state", "export", exported)
    rights.works("state", "rebuild")
    before = datetime.now(UTC) - timedelta(seconds=30)
    rewind = ("state", "rewind", "--to", before.isoformat(timespec="seconds"))
    rights.works(*rewind)
    may_write()
    rights.works("state", "import", exported, "--yes")
    rights.works(*rewind, "--yes")
    rights.works("state", "rebuild", "--yes")


@pytest.mark.parametrize(
    ("command", "granted", "lacking", "key", "operation", "without"),
    [
        ("run", FIND, "changeStream", "reader", "upload", "+eval"),
        ("run", ["changeStream"], "find", "lister", "upload", "+hset"),
        ("backfill", FIND, "collStats", "lister", "upload", "+sadd"),
        ("verify", ["changeStream"], "find", "lister", "read an object of the sink", "+smembers"),
        ("restore", FIND, "", "writer", "read an object of the sink", "+smembers"),
    ],
)
def test_a_missing_right_is_named_on_each_server(
    rights: Rights, command: str, granted: list[str], lacking: str, key: str, operation: str, without: str
) -> None:
    rights.give_mongo(("orders", granted), ("other", [*STREAM, "collStats"]))
    rights.give_s3(key)
    rights.give_redis("writer" if command in ("run", "backfill") else "reader", without)
    found = rights.refused(command)
    assert without.lstrip("+") in found["state store"]
    assert "the user's rights" in found["state store"]
    assert operation in found["sink"]
    assert "lack a right" in found["sink"]
    if lacking:
        name = rights.config.name
        wanted = f"the user {name}@admin lacks {lacking} on {name}.orders. Grant it the role read on {name}, or"
        assert wanted in found["MongoDB"]
        assert f'{{db: "{name}", collection: "orders"}}' in found["MongoDB"]
    assert len(found) == 2 + bool(lacking)


def test_a_stream_of_a_database_needs_more(rights: Rights) -> None:
    rights.config.set("source", watch="database", collections=[])
    rights.give_mongo(("orders", STREAM))
    lacking = f"lacks find and changeStream on the database {rights.config.name}"
    assert lacking in rights.refused("run")["MongoDB"]
    rights.give_mongo(("", STREAM))
    rights.works("check")
