"""The quickstart: local servers, existing documents, a live workload, the engine, and a look at what landed."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
from pymongo import MongoClient
from rich.console import Console
from rich.table import Table

from bench.local.servers import LocalServerError, LocalStack, free_ports
from engine.errors import url_without_password

DATABASE = "headrace_demo"
COLLECTIONS = ("orders", "customers")
PREFIX = "demo"
STATUS_EVERY_S = 1.0
# Orders that exist before the engine starts.
HISTORY = 20_000

console = Console(highlight=False)


def main() -> int:
    """Run the demo; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/quickstart",
        description="A live demo: servers, a workload, the engine, and what landed. "
        "With MONGODB_URI set, that server is used (its database headrace_demo is dropped at the end).",
    )
    parser.add_argument("--keep", action="store_true", help="leave everything running, and print how to reach it")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long the workload runs (default: 15)")
    options = parser.parse_args()
    try:
        run(keep=options.keep, seconds=options.seconds)
    except (LocalServerError, DemoFailed) as error:
        console.print(f"[red]quickstart: {error}[/]")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


class DemoFailed(Exception):
    """The engine did not work as it should."""


def run(*, keep: bool, seconds: float) -> None:
    """Start everything, write, capture, show; clean up unless ``keep``."""
    given_uri = os.environ.get("MONGODB_URI", "")
    try:
        directory = Path(tempfile.mkdtemp(prefix="headrace-quickstart-"))
    except OSError as error:
        raise DemoFailed(f"no directory for the servers' data ({error.strerror}): set TMPDIR to one") from error
    stack = LocalStack(directory / "servers", detached=keep, with_mongo=not given_uri)
    with console.status("starting the servers ..."):
        stack.start()
    uri = given_uri or (stack.mongo.uri if stack.mongo else "")
    console.print(f"MongoDB      {url_without_password(uri)}{'' if given_uri else '  (started here)'}")
    console.print(f"S3           {stack.s3.endpoint_url}  (started here)")
    console.print(f"Valkey       {stack.valkey.url}  (started here)\n")
    engine: subprocess.Popen[bytes] | None = None
    client: MongoClient[dict[str, Any]] = MongoClient(uri)
    kept = False
    try:
        write_history(client)
        config, port = write_config(stack, uri, directory)
        engine = start_engine(config, directory, detached=keep)
        wait_until_reading(engine, port, directory)
        with workload(client, seconds) as written:
            follow(engine, port, written, directory)
        settle(port, written, engine, directory)
        if not keep:
            engine.send_signal(signal.SIGTERM)
            if engine.wait(60) != 0:
                raise DemoFailed(f"the engine ended with {engine.returncode}:\n{log_tail(directory)}")
        show(stack, written)
        if keep:
            tell_how_to_reach(stack, uri, config, port, engine, directory)
            kept = True
    finally:
        if not kept:
            if engine is not None and engine.poll() is None:
                engine.kill()
            client.drop_database(DATABASE)
        client.close()
        if not kept:
            stack.stop()
            shutil.rmtree(directory, ignore_errors=True)


def write_history(client: MongoClient[dict[str, Any]]) -> None:
    """Write the orders for which there will be no events."""
    rng = random.Random(1)
    with console.status("writing some history ..."):
        client[DATABASE].orders.insert_many([_order(rng) | {"imported": True} for _ in range(HISTORY)])
    console.print(f"{HISTORY:,} orders exist before the engine starts.\n")


def write_config(stack: LocalStack, uri: str, directory: Path) -> tuple[Path, int]:
    """The engine's configuration, and the port of its HTTP endpoints."""
    (port,) = free_ports(1)
    path = directory / "quickstart.toml"
    s3 = stack.s3
    path.write_text(f"""\
[source]
uri = {json.dumps(uri)}
database = "{DATABASE}"
collections = {json.dumps(COLLECTIONS)}
start = "snapshot"

[batch]
interval = "2s"

[sink]
url = "s3://{stack.bucket}/{PREFIX}"
[sink.s3]
endpoint_url = "{s3.endpoint_url}"
access_key = "{s3.access_key}"
secret_key = "{s3.secret_key}"
region = "us-east-1"

[state]
url = "{stack.valkey.url}"

[telemetry]
listen = "127.0.0.1:{port}"
""")
    return path, port


def start_engine(config: Path, directory: Path, *, detached: bool) -> subprocess.Popen[bytes]:
    """Start ``python -m engine --config ...``, with its log in a file."""
    console.print(f"[bold]$ python -m engine --config {config}[/]")
    with (directory / "engine.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "engine", "--config", str(config)],
            stdout=log,
            stderr=log,
            start_new_session=detached,
        )


@contextmanager
def workload(client: MongoClient[dict[str, Any]], seconds: float) -> Iterator[dict[str, int]]:
    """Insert, update and delete for the given time, in a thread; yields the running counts."""
    counts = {"insert": 0, "update": 0, "delete": 0, "running": 1}
    thread = threading.Thread(target=_write, args=(client, seconds, counts))
    thread.start()
    try:
        yield counts
    finally:
        thread.join()


def _write(client: MongoClient[dict[str, Any]], seconds: float, counts: dict[str, int]) -> None:
    rng = random.Random(7)
    database = client[DATABASE]
    keys: list[Any] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        batch = [_order(rng) for _ in range(50)]
        keys += database.orders.insert_many(batch).inserted_ids
        database.customers.insert_one({"name": f"customer {rng.randrange(1000)}", "vip": rng.random() < 0.1})
        counts["insert"] += 51
        for key in rng.sample(keys, 10):
            status = rng.choice(["paid", "shipped", "returned"])
            changed = database.orders.update_one({"_id": key}, {"$set": {"status": status}})
            counts["update"] += changed.modified_count  # an update that changes nothing makes no event
        counts["delete"] += database.orders.delete_one({"_id": keys.pop(rng.randrange(len(keys)))}).deleted_count
        time.sleep(0.05)
    counts["running"] = 0


def _order(rng: random.Random) -> dict[str, Any]:
    cities = ["Berlin", "Lyon", "Porto", "Gent"]
    return {
        "customer": f"customer {rng.randrange(1000)}",
        "status": "new",
        "total": round(rng.random() * 200, 2),
        "address": {"city": rng.choice(cities), "zip": f"{rng.randrange(100_000):05}"},
        "items": [
            {"sku": f"sku-{rng.randrange(500)}", "n": rng.randrange(1, 4)} for _ in range(rng.randrange(1, 4))
        ],
    }


def expected_events(counts: Mapping[str, int]) -> int:
    """The number of events that the workload has made."""
    return sum(counts[kind] for kind in ("insert", "update", "delete"))


def wait_until_reading(engine: subprocess.Popen[bytes], port: int, directory: Path) -> None:
    """Wait for the engine, so that the workload is captured live."""
    with console.status("the engine starts ..."):
        while not (streams := engine_status(port)["streams"]) or not all(each["reading"] for each in streams):
            if engine.poll() is not None:
                raise DemoFailed(f"the engine ended with {engine.returncode}:\n{log_tail(directory)}")
            time.sleep(0.1)


def follow(engine: subprocess.Popen[bytes], port: int, counts: Mapping[str, int], directory: Path) -> None:
    """Show the engine's progress until the workload is done."""
    with console.status("writing ...") as status:
        while counts["running"]:
            time.sleep(STATUS_EVERY_S)
            if engine.poll() is not None:
                raise DemoFailed(f"the engine ended with {engine.returncode}:\n{log_tail(directory)}")
            landed = committed_events(port)
            status.update(f"written {expected_events(counts):,} events, committed {landed:,}")


def settle(port: int, counts: Mapping[str, int], engine: subprocess.Popen[bytes], directory: Path) -> None:
    """Wait until everything is committed."""
    deadline = time.monotonic() + 30
    while committed_events(port) < expected_events(counts) or not history_is_loaded(port):
        if time.monotonic() > deadline or engine.poll() is not None:
            raise DemoFailed(f"the engine has not caught up:\n{log_tail(directory)}")
        time.sleep(0.2)


def committed_events(port: int) -> int:
    """The number of events in committed objects."""
    return sum(stream["events_committed"] for stream in engine_status(port)["streams"])


def history_is_loaded(port: int) -> bool:
    """Whether the documents from before are in the lake."""
    backfills = engine_status(port).get("backfills", [])
    return bool(backfills) and all(each["splits"] == each["splits_total"] for each in backfills)


def engine_status(port: int) -> dict[str, Any]:
    """The contents of the engine's /status; without streams if it does not answer."""
    nothing: dict[str, Any] = {"streams": []}
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=2) as answer:
            return json.load(answer) or nothing
    except OSError:
        return nothing


def log_tail(directory: Path) -> str:
    """The end of the engine's log."""
    return (directory / "engine.log").read_text(errors="replace")[-3000:]


def show(stack: LocalStack, counts: Mapping[str, int]) -> None:
    """Show what landed, read by DuckDB from the Parquet objects on S3."""
    filesystem = stack.s3.filesystem()
    database = duckdb.connect()
    database.register_filesystem(filesystem)
    source = f"read_parquet('s3://{stack.bucket}/{PREFIX}/**/*.parquet', union_by_name = true, filename = true)"
    rows = database.execute(f"""
        select _cdc_collection, _cdc_op, count(*), count(distinct coalesce(_cdc_token, _cdc_key)),
            count(distinct filename), count(*) filter (_cdc_op = 'read' and imported)
        from {source} group by all order by all
    """).fetchall()
    table = Table("collection", "operation", "rows", "distinct", "objects", title="what landed")
    for collection, operation, found, different, objects, _ in rows:
        table.add_row(collection, operation, f"{found:,}", f"{different:,}", str(objects))
    console.print(table)
    sample = database.execute(f"""
        select _cdc_op as op, strftime(_cdc_cluster_time, '%H:%M:%S') as time, right(_id, 6) as id,
            customer, status, total, address.city, len(items) as items
        from {source} where _cdc_collection = 'orders' order by _cdc_token desc limit 5
    """)
    table = Table(*(column[0] for column in sample.description or ()), title="the latest orders")
    for row in sample.fetchall():
        table.add_row(*("" if value is None else str(value) for value in row))
    console.print(table)
    objects = filesystem.find(f"{stack.bucket}/{PREFIX}", detail=True)
    size = sum(info["size"] for info in objects.values())
    console.print(f"{len(objects)} objects, {size / 1024:,.0f} KiB, for example")
    for key in sorted(objects)[:3]:
        console.print(f"  s3://{key}", soft_wrap=True)
    events = [row for row in rows if row[1] != "read"]
    landed, expected = sum(row[3] for row in events), expected_events(counts)
    if landed != expected or any(row[2] != row[3] for row in rows):
        raise DemoFailed(f"{expected:,} events were written, but {landed:,} landed")
    if (loaded := sum(row[5] for row in rows)) != HISTORY:
        raise DemoFailed(f"{HISTORY:,} orders existed before, but {loaded:,} were loaded")
    console.print(
        f"[green]{expected:,} events were written and {HISTORY:,} orders existed before: "
        "each landed exactly once.[/]"
    )


def tell_how_to_reach(
    stack: LocalStack, uri: str, config: Path, port: int, engine: subprocess.Popen[bytes], directory: Path
) -> None:
    """For ``--keep``: print where everything is, and how to end it."""
    s3 = stack.s3
    servers = " ".join(map(str, stack.pids))
    console.print(
        f"""
everything keeps running:
  MongoDB   {uri}   (database {DATABASE})
  engine    http://127.0.0.1:{port}/status   /metrics   /health   /ready
            configuration {config}
            log           {directory}/engine.log
  S3        {s3.endpoint_url}   s3://{stack.bucket}/{PREFIX}
            AWS_ACCESS_KEY_ID={s3.access_key} AWS_SECRET_ACCESS_KEY={s3.secret_key}
  Valkey    {stack.valkey.url}
to end it:
  kill {engine.pid}; sleep 3; kill -9 {servers}; rm -r {directory}""",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
