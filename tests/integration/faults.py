"""Faults, brought about on real servers and processes: each is a context manager that takes the rig."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from bench.local.servers import Process, Valkey, wait_until
from tests.conditions import client_of
from tests.integration.harness import Engine, kill_all
from tests.integration.proxy import Gate
from tests.integration.rig import Rig
from tests.integration.s3_proxy import PASS, Answer, Rule

# The driver specification's list of resumable codes of getMore, and CursorNotFound, which it treats likewise:
# https://github.com/mongodb/specifications/blob/master/source/change-streams/change-streams.md#resumable-error
RESUMABLE = (
    6, 7, 43, 63, 89, 91, 133, 150, 189, 234, 262, 9001, 10107, 11600, 11602, 13388, 13435, 13436,
)  # fmt: skip
_ALONE = WriteConcern(w=1)
LABEL = "ResumableChangeStreamError"
Bring = Callable[[Rig], AbstractContextManager[None]]


# --- MongoDB ---


@contextmanager
def stepped_down(rig: Rig) -> Iterator[None]:
    servers = rig.servers
    with servers.member(servers.mongo.ports[servers.primary()]) as client, suppress(PyMongoError):
        client.admin.command("replSetStepDown", 5, secondaryCatchUpPeriodSecs=2, force=True)
    yield
    servers.wait_whole()


@contextmanager
def primary_killed(rig: Rig) -> Iterator[None]:
    member = rig.servers.mongo.members[rig.servers.primary()]
    member.kill()
    yield
    member.start()
    rig.servers.wait_whole()


@contextmanager
def partitioned(rig: Rig) -> Iterator[None]:
    """The primary and the other members do not reach each other; the engine still reaches all of them."""
    servers = rig.servers
    cut = servers.primary()
    pids = [member.pid for member in servers.mongo.members]
    with ExitStack() as stack:
        for number, gate in enumerate(servers.gates):
            theirs = set(pids) if number == cut else {pids[cut]}
            stack.enter_context(gate.closed(theirs.__contains__))
        yield
    servers.wait_whole()


@contextmanager
def rolled_back(rig: Rig) -> Iterator[None]:
    """As above, and the old primary accepts a write that the others never see, before it steps down."""
    servers = rig.servers
    port = servers.mongo.ports[servers.primary()]
    with partitioned(rig), servers.member(port) as old:
        orders = old.get_database(rig.name, write_concern=_ALONE).orders
        orders.insert_many([{"_id": f"rolled back {n}"} for n in range(10)])
        wait_until(lambda: not old.admin.command("hello")["isWritablePrimary"], "the end of the old primary")
        wait_until(servers.has_primary, "another primary")
        assert orders.count_documents({"_id": {"$regex": "^rolled"}}) == 10
        yield
    assert rig.database.orders.count_documents({"_id": {"$regex": "^rolled"}}) == 0


@contextmanager
def half_open(rig: Rig) -> Iterator[None]:
    """Connections stay open and swallow everything, and go on to do so after new ones work again."""
    with ExitStack() as stack:
        for gate in rig.servers.gates:
            stack.enter_context(gate.silent(rig.is_engines))
        yield


@contextmanager
def slow(rig: Rig) -> Iterator[None]:
    with ExitStack() as stack:
        for gate in rig.servers.gates:
            stack.enter_context(gate.slow(rig.is_engines, 0.5))
        yield


def resumable_codes(*labels: str) -> Bring:
    """Every code of the list in turn; without EXPLORE, some."""

    @contextmanager
    def bring(rig: Rig) -> Iterator[None]:
        servers = rig.servers
        codes = RESUMABLE if "EXPLORE" in os.environ else RESUMABLE[::9]
        with servers.member(servers.mongo.ports[servers.primary()]) as client:
            for code in codes:
                fail(client.admin, {"errorCode": code, "errorLabels": list(labels)})
        yield

    def fail(admin: Any, error: dict[str, Any]) -> None:
        data = {"failCommands": ["getMore"], "appName": "headrace"} | error
        met = admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=data)["count"]
        admin.command("waitForFailPoint", "failCommand", timesEntered=met + 1, maxTimeMS=60_000)

    return bring


def server_away(which: str, how: str) -> Bring:
    """A server is killed, or stopped (connections stay open and are not answered)."""

    @contextmanager
    def bring(rig: Rig) -> Iterator[None]:
        servers = rig.servers
        all_: dict[str, Sequence[Process]] = {
            "MongoDB": servers.mongo.members,
            "S3": [servers.stack.s3.process],
            "state": [servers.valkey.process],
        }
        for each in all_[which]:
            (each.pause if how == "stopped" else each.kill)()
        yield
        for each in all_[which]:
            (each.resume if how == "stopped" else each.start)()
        if which == "MongoDB":
            servers.wait_whole()

    return bring


# --- S3 ---


def answering(rule: Rule, *, at_least: int = 1) -> Bring:
    """Requests are answered by a rule."""

    @contextmanager
    def bring(rig: Rig) -> Iterator[None]:
        proxy = rig.servers.s3
        before = proxy.changed
        with proxy.following(rule):
            yield
        assert proxy.changed >= before + at_least, "nothing was asked"

    return bring


def at_random(share: float, answer: Answer, seed: int = 1) -> Rule:
    """This share of the requests gets this answer."""
    rng = random.Random(seed)
    return lambda *_: answer if rng.random() < share else PASS


def of_state(answer: Answer, *, share: float = 1.0, method: str = "PUT") -> Rule:
    """Requests for what the engine keeps in the lake get this answer; everything else passes."""
    rng = random.Random(1)
    return lambda asked, path: (
        answer if "/_headrace/" in path and asked == method and rng.random() < share else PASS
    )


@contextmanager
def uploads_vanish(rig: Rig) -> Iterator[None]:
    """Multipart uploads are aborted behind the engine's back."""
    files, bucket = rig.servers.stack.s3.filesystem(), rig.servers.stack.bucket
    aborted = 0
    deadline = time.monotonic() + 60
    while aborted < 2:
        assert time.monotonic() < deadline, "no upload was met"
        # More than the largest part, so that one object is a multipart upload.
        rig.database.orders.insert_many([{"data": os.urandom(2_000_000)} for _ in range(16)])
        until = time.monotonic() + 3
        while time.monotonic() < until:
            found = files.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{rig.name}/")
            for each in found.get("Uploads", []):
                with suppress(OSError):
                    files.call_s3(
                        "abort_multipart_upload", Bucket=bucket, Key=each["Key"], UploadId=each["UploadId"]
                    )
                    aborted += 1
    yield


# --- the state ---


def condition(of_server: Callable[[Valkey], AbstractContextManager[None]]) -> Bring:
    """A condition in which Redis refuses."""
    return lambda rig: of_server(rig.servers.valkey)


@contextmanager
def restarted_empty(rig: Rig) -> Iterator[None]:
    """Redis comes back without its data; the remedy is to put the newest back."""
    valkey = rig.servers.valkey
    kept = rig.directory / "kept"
    valkey.process.kill()
    shutil.move(valkey.data, kept)
    valkey.data.mkdir()
    valkey.start()
    yield
    valkey.process.kill()
    shutil.rmtree(valkey.data)
    shutil.move(kept, valkey.data)
    valkey.start()


@contextmanager
def failed_over(rig: Rig) -> Iterator[None]:
    """Redis fails over to a replica that was behind: acknowledged writes are lost."""
    servers = rig.servers
    old = servers.valkey
    with _replica(rig, old) as (replica, gate):
        with gate.silent(lambda _: True):
            time.sleep(1.5)
            old.process.kill()
            with client_of(replica) as client:
                client.replicaof("NO", "ONE")
            servers.valkey, servers.state.target = replica, replica.port
            servers.state.drop(lambda _: True)
        yield


@contextmanager
def _replica(rig: Rig, old: Valkey) -> Iterator[tuple[Valkey, Gate]]:
    gate = Gate(old.port)
    replica = Valkey(rig.directory, name="replica")
    replica.start()
    with client_of(replica) as client:
        client.replicaof("127.0.0.1", str(gate.port))
        wait_until(lambda: client.info()["master_link_status"] == "up", "the replica")  # type: ignore[index]
    yield replica, gate
    gate.close()


# --- the machine ---


@contextmanager
def no_descriptors(rig: Rig) -> Iterator[None]:
    """No process of the engine can open anything, and the connections to the servers are closed.

    Each has more open than it is allowed now. ``poll`` refuses more descriptors than the limit, which no shortage
    makes it do; the supervisor waits for two of each child.
    """
    supervisor, children = rig.engine.process.pid, rig.engine.children()
    pids = [supervisor, *children]
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
    for pid, (_, hard) in limits.items():
        allowed = 16 + 2 * len(children) if pid == supervisor else 16
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (allowed, hard))
    for gate in (*rig.servers.gates, rig.servers.state):
        gate.drop(pids.__contains__)
    yield
    for pid, limit in limits.items():
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)


def stopped(who: str) -> Bring:
    """SIGSTOP, and later SIGCONT, if it is still there."""

    @contextmanager
    def bring(rig: Rig) -> Iterator[None]:
        engine = rig.engine
        if who == "supervisor":
            pids = [engine.process.pid]
        elif who == "engine":
            pids = [engine.process.pid, *engine.children()]
        elif who == "template":
            pids = engine.template()
        else:
            pids = engine.pids(who)[:1]
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    return bring


def killed(who: str) -> Bring:
    """SIGKILL to one child, to the supervisor, or to all; what has lost its supervisor is started again."""

    @contextmanager
    def bring(rig: Rig) -> Iterator[None]:
        if who in ("supervisor", "engine"):
            rig.lose(Engine.kill_supervisor if who == "supervisor" else Engine.kill_tree)
            yield
            return
        pids = rig.engine.template() if who == "template" else rig.engine.pids(who)[:1]
        assert pids
        kill_all(pids)
        yield

    return bring


def clock_stepped(offset_s: int) -> Bring:
    """The clock of the engine is wrong by so many seconds meanwhile."""

    @contextmanager
    def bring(rig: Rig) -> Iterator[None]:
        assert rig.clock is not None
        rig.clock.step(offset_s)
        yield
        rig.clock.step(0)

    return bring
