"""The rows of the matrix of faults in configs/OPERATIONS.md, and the test that shows each."""

from __future__ import annotations

from dataclasses import dataclass

from tests.conditions import CONDITIONS, as_a_replica, out_of_memory
from tests.integration.faults import (
    LABEL,
    Bring,
    answering,
    at_random,
    clock_stepped,
    condition,
    failed_over,
    half_open,
    killed,
    no_descriptors,
    of_state,
    partitioned,
    primary_killed,
    restarted_empty,
    resumable_codes,
    rolled_back,
    server_away,
    slow,
    stepped_down,
    stopped,
    uploads_vanish,
)
from tests.integration.rig import LEASE_S
from tests.integration.s3_proxy import Answer


@dataclass(frozen=True)
class Fault:
    """A row of the matrix.

    Attributes:
        of: what it befalls.
        name: unique.
        rig: the kind of rig that it is tried on.
        bring: brings it about, and ends it; None if another test does.
        lasts_s: for how long after it was brought about.
        says: what the log must contain.
        stops: the engine ends by it; when the fault is over, it is started again (by another test, it may not be).
        is_quick: also tried without EXPLORE.
        test: another test that shows this.
    """

    of: str
    name: str
    rig: str = "redis"
    bring: Bring | None = None
    lasts_s: float = 0.0
    says: str = ""
    stops: bool = False
    is_quick: bool = False
    test: str = ""


_QUICK = (out_of_memory, as_a_replica)
_REDIS_IS = {"as_a_replica": "read-only: it has become a replica", "busy": "busy with a script"}
_DROPPED = Answer(is_lost=True)
_BUSY = Answer(done=False, code="SlowDown")
_EXPIRED = Answer(done=False, code="ExpiredToken")
_HUNG = Answer(wait_s=600)

FAULTS = [
    Fault("MongoDB", "all members killed", bring=server_away("MongoDB", "killed"), lasts_s=4),
    Fault("MongoDB", "all members stopped", bring=server_away("MongoDB", "stopped"), lasts_s=4),
    Fault("MongoDB", "primary stepped down", bring=stepped_down, is_quick=True),
    Fault("MongoDB", "primary killed", bring=primary_killed, lasts_s=8),
    Fault("MongoDB", "primary cut off from the others", bring=partitioned, lasts_s=8),
    Fault("MongoDB", "minority write rolled back", bring=rolled_back, lasts_s=2),
    Fault("MongoDB", "connections half-open", bring=half_open, lasts_s=8),
    Fault("MongoDB", "slow: 0.5 s each way", bring=slow, lasts_s=10),
    Fault("MongoDB", "every resumable code, with its label", bring=resumable_codes(LABEL), is_quick=True),
    Fault("MongoDB", "every resumable code, without a label", bring=resumable_codes()),
    Fault(
        "MongoDB",
        "cursors, operations and sessions killed",
        test="test_passing.py::test_operations_killed_by_an_administrator_are_resumed",
    ),
    Fault("S3", "killed", bring=server_away("S3", "killed"), lasts_s=4),
    Fault("S3", "stopped", bring=server_away("S3", "stopped"), lasts_s=4),
    Fault("S3", "503 for longer than the client retries", bring=answering(lambda *_: _BUSY), lasts_s=30),
    Fault("S3", "503 to 30 % at random", bring=answering(at_random(0.3, _BUSY)), lasts_s=15),
    Fault("S3", "hung", bring=answering(lambda *_: _HUNG), lasts_s=20),
    Fault(
        "S3",
        "half of the connections reset before the answer",
        bring=answering(at_random(0.5, _DROPPED), at_least=5),
        lasts_s=5,
        is_quick=True,
    ),
    Fault("S3", "credentials expired", bring=answering(lambda *_: _EXPIRED), lasts_s=8, says="have expired"),
    Fault("S3", "key changed", test="test_credentials.py::test_the_engine_continues_with_the_new_key"),
    Fault("S3", "multipart uploads vanished", bring=uploads_vanish),
    Fault("Redis", "killed", bring=server_away("state", "killed"), lasts_s=4, is_quick=True),
    Fault("Redis", "stopped", bring=server_away("state", "stopped"), lasts_s=4),
    Fault("Redis", "answers lost", test="test_failing_store.py::test_answers_of_redis_are_lost"),
    *(
        Fault(
            "Redis",
            _REDIS_IS.get(each.__name__, each.__name__.replace("_", " ")),
            bring=condition(each),
            lasts_s=3,
            says=remedy,
            is_quick=each in _QUICK,
        )
        for each, remedy in CONDITIONS
    ),
    Fault("Redis", "failed over, with lost writes", bring=failed_over),
    Fault(
        "Redis",
        "restarted empty",
        bring=restarted_empty,
        stops=True,
        says="the state store has lost its record",
        is_quick=True,
    ),
    Fault(
        "state in the lake",
        "412 for a write that was made",
        "lake",
        answering(of_state(Answer(code="PreconditionFailed"))),
        5,
        is_quick=True,
    ),
    Fault(
        "state in the lake",
        "409 to half of the writes",
        "lake",
        answering(of_state(Answer(done=False, code="ConditionalRequestConflict"), share=0.5)),
        5,
    ),
    Fault("state in the lake", "503 to every write", "lake", answering(of_state(_BUSY)), 15),
    Fault("state in the lake", "hung", "lake", answering(of_state(_HUNG)), 20),
    Fault(
        "state in the lake",
        "half of the answers lost",
        "lake",
        answering(of_state(_DROPPED, share=0.5)),
        5,
        is_quick=True,
    ),
    Fault("state in the lake", "S3 killed", "lake", server_away("S3", "killed"), 4),
    Fault("state in the lake", "primary killed", "lake", primary_killed, 8),
    Fault("state in the lake", "engine stopped for longer than its lease", "lake", stopped("engine"), LEASE_S + 3),
    Fault(
        "state in the lake",
        "lost, or older",
        stops=True,
        test="test_state_in_lake.py::test_lost_while_running",
    ),
    Fault("file:// sink", "disk full", test="test_disk.py::test_a_full_disk_is_waited_for"),
    Fault("SQLite", "disk full", test="test_failing_store.py::test_a_full_disk_under_sqlite"),
    Fault(
        "SQLite", "removed or replaced", stops=True, test="test_failing_store.py::test_the_sqlite_file_is_removed"
    ),
    Fault(
        "the machine",
        "shared memory exhausted",
        test="test_memory.py::test_a_child_killed_for_lack_of_memory_is_reported_as_such",
    ),
    Fault("the machine", "file descriptors exhausted", bring=no_descriptors, lasts_s=8),
    Fault("the machine", "clock 5 minutes ahead", "clock", clock_stepped(300), 5),
    Fault("the machine", "clock 5 minutes behind", "clock", clock_stepped(-300), 5),
    Fault("the machine", "clock 2 hours ahead", "clock", clock_stepped(7200), 8),
    Fault("the machine", "clock 2 hours behind", "clock", clock_stepped(-7200), 8),
    *(
        Fault(
            "the machine", f"{who} stopped and continued", bring=stopped(who), lasts_s=6, is_quick=who == "reader"
        )
        for who in ("reader", "writer", "template", "supervisor")
    ),
    Fault("the machine", "engine stopped for longer than its lease", bring=stopped("engine"), lasts_s=LEASE_S + 3),
    *(
        Fault("the machine", f"{who} killed", bring=killed(who))
        for who in ("reader", "writer", "template", "supervisor", "engine")
    ),
    Fault("the machine", "everything killed at random", test="test_kill.py::test_killed_at_random"),
    Fault(
        "the machine",
        "two engines, one stopped past its lease",
        test="test_takeover.py::test_an_engine_paused_past_its_lease_is_taken_over",
    ),
]
