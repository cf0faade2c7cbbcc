"""The IAM policies: each allows what its command asks of S3, and nothing that it does not ask."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import botocore.session
import pytest
from botocore.validate import validate_parameters
from pymongo import MongoClient

from bench.local import LocalStack
from tests.integration.harness import EngineConfig, Lake, run_engine
from tests.integration.s3_proxy import PASS, Answer, S3Proxy

POLICIES = Path(__file__).parents[2] / "configs" / "deploy" / "iam"
OPERATIONS = POLICIES.parents[1] / "OPERATIONS.md"
COMMANDS = ("run", "backfill", "verify", "restore", "status", "state")
BUCKET, PREFIX = "prod-data-lake", "mongodb-cdc"


class Asked(NamedTuple):
    """What IAM is asked for one request: the action, the resource, and the prefix of a listing."""

    action: str
    resource: str
    prefix: str


def asked_by(method: str, path: str) -> Asked:
    """By https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    resource = f"arn:aws:s3:::{bucket}" + (f"/{key}" if key else "")
    if not key:
        action = "s3:ListBucket" if method == "GET" and "list-type" in query else f"{method} of the bucket"
    elif method in ("GET", "HEAD"):
        action = "s3:GetObject" if not query.keys() - {"x-id"} else f"{method} {parts.query}"
    elif method == "DELETE":
        action = "s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject"
    else:  # an object, a part of one, the start and the completion of an upload
        action = "s3:PutObject"
    return Asked(action, resource, query.get("prefix", [""])[0])


def read(command: str, bucket: str = BUCKET, prefix: str = PREFIX) -> list[dict[str, Any]]:
    """The statements of a policy, for a bucket and a prefix of ours."""
    text = (POLICIES / f"{command}.json").read_text()
    statements: list[dict[str, Any]] = json.loads(text.replace(BUCKET, bucket).replace(PREFIX, prefix))[
        "Statement"
    ]
    return statements


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allowing(statements: list[dict[str, Any]], asked: Asked) -> str | None:
    """The statement that allows it; None if none does."""
    for each in statements:
        prefixes = each.get("Condition", {}).get("StringLike", {}).get("s3:prefix", ["*"])
        if (
            asked.action in listed(each["Action"])
            and any(fnmatchcase(asked.resource, pattern) for pattern in listed(each["Resource"]))
            and any(fnmatchcase(asked.prefix, pattern) for pattern in prefixes)
        ):
            return str(each["Sid"])
    return None


class Gate:
    """Refuses what a policy does not allow, and notes what was refused, and by which statement the rest went."""

    def __init__(self, statements: list[dict[str, Any]]) -> None:
        self._statements = statements
        self.refused: set[Asked] = set()
        self.used: set[tuple[str, str]] = set()

    def __call__(self, method: str, path: str) -> Answer:
        asked = asked_by(method, path)
        by = allowing(self._statements, asked)
        if by is None:
            self.refused.add(asked)
            return Answer(done=False, code="AccessDenied")
        self.used.add((by, asked.action))
        return PASS


@pytest.fixture
def proxy(stack: LocalStack) -> Iterator[S3Proxy]:
    made = S3Proxy(stack.s3.port)
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def config(stack: LocalStack, tmp_path: Path, unique: str, proxy: S3Proxy) -> EngineConfig:
    made = EngineConfig(stack, tmp_path, unique)
    made.set("sink.s3", endpoint_url=proxy.url)
    made.set("state", url="lake")
    return made


def test_each_command_needs_its_policy_and_no_more(
    mongo: MongoClient[dict[str, Any]], stack: LocalStack, config: EngineConfig, proxy: S3Proxy
) -> None:
    mongo[config.name].orders.insert_many([{"n": n} for n in range(20)])
    lake = Lake(stack, config.name)

    def lose_state() -> None:
        lake.filesystem.rm(f"{lake.root}/_headrace", recursive=True)

    def goes(command: str, *arguments: str) -> None:
        statements = read(command, stack.bucket, config.name)
        gate = Gate(statements)
        with proxy.following(gate):
            done = run_engine(config, *arguments)
        assert gate.refused == set(), arguments
        assert done.returncode == 0, done.stdout + done.stderr
        allowed = {(each["Sid"], action) for each in statements for action in listed(each["Action"])}
        assert allowed == gate.used, command

    goes("run", "run", "--until-caught-up")
    goes("backfill", "backfill")
    goes("status", "status")
    goes("verify", "verify")
    goes("restore", "restore", "--to", str(config.directory / "orders.bson.zst"))
    lose_state()
    goes("state", "state", "rebuild", "--yes")


@pytest.mark.parametrize(
    ("request_", "action"),
    [
        (("HEAD", "/b"), "HEAD of the bucket"),
        (("GET", "/b?uploads"), "GET of the bucket"),
        (("GET", "/b/k?tagging"), "GET tagging"),
        (("GET", "/b/k"), "s3:GetObject"),
        (("POST", "/b/k?uploads"), "s3:PutObject"),
        (("DELETE", "/b/k?uploadId=1"), "s3:AbortMultipartUpload"),
    ],
)
def test_the_gate_knows_requests(request_: tuple[str, str], action: str) -> None:
    assert asked_by(*request_).action == action


def test_the_gate_refuses_other_places() -> None:
    run = read("run")
    place = f"arn:aws:s3:::{BUCKET}"
    assert allowing(run, Asked("s3:ListBucket", place, f"{PREFIX}/_headrace/")) == "ListTheLake"
    assert allowing(run, Asked("s3:GetObject", f"{place}/{PREFIX}/_headrace/x", "")) == "KeepTheState"
    for refused in (
        Asked("s3:ListBucket", place, ""),
        Asked("s3:ListBucket", place, f"{PREFIX}-other/"),
        Asked("s3:GetObject", f"{place}/{PREFIX}/x.parquet", ""),
        Asked("s3:DeleteObject", f"{place}/{PREFIX}/x.parquet", ""),
        Asked("s3:PutObject", f"{place}/other/x.parquet", ""),
    ):
        assert allowing(run, refused) is None


def test_the_policies_are_the_table_of_rights() -> None:
    section = OPERATIONS.read_text().partition("\n### Rights\n")[2].partition("\n- **MongoDB**")[0]
    rows = re.findall(r"^\| (`.*)\|$", section, re.MULTILINE)
    table = {re.findall(r"`(\w+)", row)[0]: row.split(" | ") for row in rows}
    for command in COMMANDS:
        at = {"bucket": 2, "data": 3, "state": 4}
        documented = {place: set(re.findall(r"s3:\w+", table[command][column])) for place, column in at.items()}
        root = f"arn:aws:s3:::{BUCKET}"
        places = {"bucket": root, "data": f"{root}/{PREFIX}/x", "state": f"{root}/{PREFIX}/_headrace/x"}
        actions = {action for each in read(command) for action in listed(each["Action"])}
        granted = {
            place: {action for action in actions if allowing(read(command), Asked(action, resource, PREFIX))}
            for place, resource in places.items()
        }
        granted["state"] -= {"s3:AbortMultipartUpload"}  # which comes with the right to the data around it
        assert granted == documented, command


def test_the_lifecycle_is_one_that_s3_takes() -> None:
    given = json.loads((POLICIES / "lifecycle.json").read_text())
    service = botocore.session.get_session().get_service_model("s3")
    operation = service.operation_model("PutBucketLifecycleConfiguration")
    validate_parameters({"Bucket": BUCKET, "LifecycleConfiguration": given}, operation.input_shape)
    assert [rule["Status"] for rule in given["Rules"]] == ["Enabled", "Enabled"]
    for rule in given["Rules"]:  # only what is not an object, or no longer one, is ever removed
        assert rule.keys() <= {
            "ID",
            "Status",
            "Filter",
            "AbortIncompleteMultipartUpload",
            "NoncurrentVersionExpiration",
            "Expiration",
        }
        assert rule.get("Expiration", {}).keys() <= {"ExpiredObjectDeleteMarker"}
