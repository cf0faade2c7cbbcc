"""Which child processes are alive, when a dead one is restarted, and when a silent one counts as hung.

State: one entry per child. Owner: the coordinator.

A child with work must make progress: its heartbeats are sent from its work loop, with a count. A loop that is
stuck sends none, and one that runs without getting anywhere sends the same count.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator

from msgspec import Struct

from engine.core.actions import Action, Child, Kill, Log, Send, Spawn
from engine.core.messages import Heartbeat, Stop
from engine.core.problems import SILENT_S, UNANSWERED_S, Problem
from engine.core.restarts import Failures, RetryPolicy
from engine.errors import FatalError, HeadraceError

OUT_OF_MEMORY = "killed by the kernel: out of memory"
SERVERS = {"reader": "MongoDB", "writer": "the sink", "committer": "the catalog or the sink"}
MORE_MEMORY = "Give the container (or the machine) more memory than memory.limit, or lower memory.limit."


class Life(Struct):
    """What is known about one child; it is started once it is ``wanted``.

    Attributes:
        resting: it has been told to exit because it is not needed for now.
        error: why it could not start this time, as it reported.
        died_by, starved: how it last died, and whether that was for lack of memory.
        heard_at: when it was last heard from.
        unanswered_s: how long it had been waiting for its server by then.
        trouble: what it is failing at, or died of, until that is over.
    """

    failures: Failures
    wanted: bool = False
    resting: bool = False
    alive: bool = False
    ready: bool = False
    progress: int = -1
    progress_at: float = 0.0
    doing: str = ""
    cpu_s: float = 0.0
    cpu_s_before: float = 0.0
    deaths: int = 0
    kill_sent: bool = False
    ended: bool = False
    error: HeadraceError | None = None
    died_by: str = ""
    starved: bool = False
    heard_at: float = 0.0
    unanswered_s: float = 0.0
    trouble: Problem | None = None


class Children:
    """All children of one engine."""

    def __init__(
        self, children: Iterable[Child], policy: RetryPolicy, hang_timeout_s: float, rng: random.Random
    ) -> None:
        self._lives = {child: Life(Failures(policy, rng)) for child in children}
        self._hang_timeout_s = hang_timeout_s

    def __getitem__(self, child: Child) -> Life:
        return self._lives[child]

    def __iter__(self) -> Iterator[Child]:
        return iter(self._lives)

    def ready(self, role: str) -> list[Child]:
        """The children of a role that have reported that they are ready."""
        return [child for child, life in self._lives.items() if child.role == role and life.ready]

    def want(self, child: Child) -> None:
        """The child is needed from now on; ``start_due`` starts it."""
        self._lives[child].wanted = True

    def rest(self, child: Child) -> Action:
        """The child, which is ready, is not needed for now: it exits, and is started again once it is wanted."""
        life = self._lives[child]
        life.wanted, life.ready, life.resting = False, False, True
        return Send(child, Stop())

    def wanted(self, role: str) -> list[Child]:
        """The children of a role that are needed."""
        return [child for child, life in self._lives.items() if child.role == role and life.wanted]

    def start_due(self, now: float) -> list[Action]:
        """Start every child that is wanted, not alive, and past its restart delay."""
        due = [
            child
            for child, life in self._lives.items()
            if life.wanted and not life.alive and not life.ended and now >= life.failures.retry_at
        ]
        for child in due:
            life = self._lives[child]
            life.alive, life.ready, life.kill_sent, life.error = True, False, False, None
            life.progress_at = life.heard_at = now
            life.unanswered_s = 0.0
            life.progress = -1
        return [Spawn(child) for child in due]

    def became_ready(self, child: Child, now: float) -> None:
        """The child is up."""
        life = self._lives[child]
        life.ready, life.progress_at, life.heard_at, life.error, life.trouble = True, now, now, None, None

    def beat(self, child: Child, beat: Heartbeat, now: float) -> None:
        """A heartbeat has arrived."""
        life, before = self._lives[child], self.problem(child, now)
        if beat.progress != life.progress:
            life.progress, life.progress_at = beat.progress, now
        life.doing, life.cpu_s = beat.doing, beat.cpu_s
        life.heard_at, life.unanswered_s = now, beat.unanswered_s
        if life.ready:  # until then, it stays what its predecessor died of
            life.trouble = Problem.after(before, beat.error, now)  # a silence may end with an error

    def problem(self, child: Child, now: float) -> Problem | None:
        """What keeps the child from its work, as far as is known."""
        life = self._lives[child]
        if not life.wanted or life.ended or life.trouble is not None:
            return life.trouble
        if life.alive and now - life.heard_at >= SILENT_S:
            at = f", at {life.doing!r}" if life.doing else ""
            return Problem(f"{child} has not been heard from{at}", life.heard_at, lasts=True)
        if life.unanswered_s >= UNANSWERED_S:
            since = life.heard_at - life.unanswered_s
            return Problem(f"{SERVERS[child.role]} has not answered", since, lasts=True)
        return None

    def unanswered(self, child: Child) -> str | None:
        """That the child's server does not answer it, if so."""
        life = self._lives[child]
        is_waiting = life.alive and life.unanswered_s >= UNANSWERED_S
        return f"{SERVERS[child.role]} has not answered for {life.unanswered_s:.0f} s" if is_waiting else None

    def made_progress(self, child: Child) -> None:
        """Something was committed while the child was alive: its earlier deaths no longer count."""
        if self._lives[child].ready:
            self._lives[child].failures.succeeded()

    def exited(self, child: Child, code: int | None, now: float, *, out_of_memory: bool = False) -> list[Action]:
        """The process is gone, and will be restarted after a delay; see also ``terminal_error``.

        Args:
            code: its exit code; None if it could not be started.
            out_of_memory: the kernel has just killed some process for lack of memory.
        """
        life, before = self._lives[child], self.problem(child, now)
        rested, life.resting = life.resting, False
        life.alive = life.ready = False
        life.deaths += not rested
        life.cpu_s_before += life.cpu_s
        life.cpu_s = 0.0
        if life.ended or rested:
            return []
        life.starved = out_of_memory and code == -9 and not life.kill_sent
        life.died_by = OUT_OF_MEMORY if life.starved else _ended(code)
        life.failures.failed(now)
        why = str(life.error) if life.error is not None else f"{child} ended by {life.died_by}"
        life.trouble = Problem.after(before, why, now)
        delay_s = round(life.failures.retry_at - now, 2)
        fields: dict[str, object] = {"child": str(child), "ended": life.died_by, "restart_in_s": delay_s}
        if life.error is not None:
            fields["error"] = str(life.error)
        if life.starved:
            fields["remedy"] = MORE_MEMORY
        return [Log("warning", "process died", fields)]

    def terminal_error(self, child: Child) -> HeadraceError | None:
        """Why the child must not be restarted: it has died too often in a row. None if it has not."""
        life = self._lives[child]
        if not life.failures.exhausted:
            return None
        ended, remedy = self.last_end(child)
        return life.error or FatalError(f"{child} died", f"{life.failures.count} times in a row, {ended}", remedy)

    def last_end(self, child: Child) -> tuple[str, str]:
        """How the child last died, in words, and what to do if it keeps dying that way."""
        life = self._lives[child]
        if life.starved:
            return f"most recently {OUT_OF_MEMORY}", f"{MORE_MEMORY} Nothing is lost."
        remedy = "The log above has the first failure; fix its cause and start again: nothing is lost."
        return f"most recently by {life.died_by}", remedy

    def forgive(self, child: Child) -> None:
        """Its deaths were not its own fault."""
        self._lives[child].failures.succeeded()

    def hung(self, busy: Callable[[Child], bool], now: float) -> list[Action]:
        """Kill the children that are alive, have work, and make no progress; repeat it if a kill has no effect.

        A child whose start is abandoned just as it completes is not killed, and may still hang.
        """
        actions: list[Action] = []
        for child, life in self._lives.items():
            if not life.alive or life.ended:
                continue
            if life.ready and not busy(child):
                life.progress_at = now
            elif now - life.progress_at > self._hang_timeout_s:
                fields = {"child": str(child), "doing": life.doing, "silent_s": round(now - life.progress_at)}
                life.kill_sent, life.progress_at = True, now
                actions += [Log("error", "process is hung; killing it", fields), Kill(child)]
        return actions

    def forgive_silence(self, now: float) -> None:
        """This process was itself paused: no child's silence until now counts."""
        for life in self._lives.values():
            life.progress_at = life.heard_at = now

    def end(self, child: Child) -> None:
        """The child is to exit, and is not restarted."""
        self._lives[child].ended = True


def _ended(code: int | None) -> str:
    if code is None:
        return "a failed start"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
