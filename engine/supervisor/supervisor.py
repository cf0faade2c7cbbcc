"""The supervisor: the main process, around the coordinator.

It waits for its children's pipes and sentinels, and for one pipe for everything else (signals, answers of the
state store). It tells the coordinator what happened, and performs the actions that it returns. Nothing else blocks
it: what a child has not yet taken from its pipe is bounded (``core.grants``), and both the state store and the
starting of children have threads of their own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

from engine import __version__
from engine.cgroup import divide_within, oom_kills
from engine.config import Config
from engine.core.actions import (
    Acquire,
    Action,
    Announce,
    Child,
    Exit,
    GrowSchema,
    Kill,
    Leave,
    Log,
    ReadState,
    Release,
    Renew,
    Send,
    Spawn,
    Write,
)
from engine.core.backfill import Progress
from engine.core.coordinator import Coordinator
from engine.core.generations import Generation
from engine.core.messages import FromChild, LogLevel
from engine.core.position import Position
from engine.core.specs import BackfillSpec, StreamSpec
from engine.core.store import FromStore
from engine.core.stream import Settings
from engine.errors import EngineEnded, FatalError
from engine.logs import LEVELS, set_level
from engine.owner import this_owner
from engine.processes.child import DEATH_S, ChildProcess
from engine.processes.forks import stop_signals
from engine.processes.link import ChildSettings
from engine.processes.spawner import Spawner
from engine.retries import policy_of
from engine.shared.arena import Arena
from engine.state.opening import open_store
from engine.state.thread import StateThread
from engine.supervisor.observer import Observer
from engine.supervisor.recent import recent_errors
from engine.supervisor.snapshot import memory_of_tree, snapshot
from engine.supervisor.telemetry import Telemetry, Watch

TICK_S = 0.5
# How often memory is measured, which takes a millisecond and more for each process; and while nothing is done that
# takes any.
MEASURE_EVERY_S, MEASURE_AT_REST_S = 2.0, 10.0
# A busy engine has hundreds of turns a second.
STATUS_EVERY_S = 0.25
WARN_EVERY_S = 60.0
STOP_TIMEOUT_S = 5.0
END_POLL_S = 0.01
_LEVEL_STEPS = {signal.SIGUSR1: -1, signal.SIGUSR2: 1}

log = logging.getLogger("headrace")


class Supervisor:
    """Runs one engine to its end.

    Args:
        specs: the change streams.
        pool: readers for splits; see ``load``.
        start_at: where streams without a position start; ``source.start`` when None.
        lost, abandoned: see ``Settings``.
        until_caught_up: end when every stream has passed the cluster time at which the run started.
        common_end: end with all streams at the same cluster time, and keep their leases.
        reload_from, loaded, fleet: see ``Settings``.
    """

    def __init__(
        self,
        config: Config,
        specs: Sequence[StreamSpec],
        *,
        pool: int = 0,
        start_at: str | None = None,
        lost: Mapping[str, Position | None] | None = None,
        abandoned: Mapping[str, str] | None = None,
        until_caught_up: bool = False,
        common_end: bool = False,
        reload_from: float = float("inf"),
        loaded: Mapping[str, int] | None = None,
        fleet: Generation | None = None,
    ) -> None:
        self._config = config
        self._watch: Watch | None = None
        held = len(specs) if fleet is None else config.fleet.held(len(specs))
        self._budget = budget = divide_within(config, held + pool)
        settings = Settings(
            writers=config.writers.processes,
            arena_size=budget.arena,
            lease_ttl_s=config.lease.ttl,
            retry=policy_of(config.retry),
            hang_timeout_s=config.supervision.hang_timeout,
            drain_timeout_s=config.shutdown.timeout,
            start_at=start_at or config.source.start,
            on_history_lost=config.source.on_history_lost,
            sink=config.sink.identity,
            pool=pool,
            max_fields=config.schema.max_fields,
            lost=dict(lost or {}),
            abandoned=dict(abandoned or {}),
            until_caught_up=until_caught_up,
            common_end=common_end,
            memory_limit=budget.limit,
            on_replaced=config.source.on_replaced,
            reload_from=reload_from,
            loaded=dict(loaded or {}),
            fleet=fleet,
            capacity=config.fleet.streams,
            version=__version__,
            tables=config.table.format != "none",
        )
        self._coordinator = Coordinator(settings, specs, random.Random())
        self._child_settings = ChildSettings(config, budget, __version__, this_owner())
        self._arena = Arena.create(budget.arena)
        self._children: dict[Child, ChildProcess] = {}
        self._launched = False
        self._spawned: deque[tuple[Child, ChildProcess | None]] = deque()
        self._answers: deque[FromStore] = deque()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._spawner = Spawner(self._spawn, self._take_spawned)
        self._signals = 0
        self._stop_signal = ""
        self._stop_told = False
        self._exit: Exit | None = None
        self._telemetry = telemetry = Telemetry()
        self._observer = Observer(lambda: telemetry.status)
        telemetry.registry.register(self._observer.metrics)
        self._log_level: str = config.telemetry.log_level
        self._level_steps: deque[int] = deque()
        self._started_at = time.time()
        self._memory: dict[int, int] = {}  # by pid, of the whole process tree
        self._measured_at = self._status_at = 0.0
        self._wait_s = TICK_S
        self._warned_at: dict[str, float] = {}
        self._redact = config.redactor()
        self._errors = recent_errors(self._redact)
        self._oom_kills = self._oom_kills_before = oom_kills() or 0
        self._state: StateThread | None = None

    @property
    def until(self) -> int | None:
        """The cluster time up to which all streams are read, if the run has such an end."""
        return self._coordinator.readers.until

    @property
    def lost(self) -> Mapping[str, Position | None]:
        """The streams whose collections must be loaded again before they can go on."""
        return self._coordinator.lost

    @property
    def reloads(self) -> bool:
        """Whether it ended in order to load replaced collections again."""
        return self._coordinator.reloads

    @property
    def interrupted(self) -> bool:
        """Whether a signal told it to end, perhaps while it was ending for another reason."""
        return self._coordinator.draining or self._signals > 0

    def launch(self) -> None:
        """Start the children, which takes a while; ``run`` gives them work."""
        self._launched = True
        self._perform(self._coordinator.start(time.monotonic()))

    def load(
        self,
        splits: Sequence[BackfillSpec],
        progress: Mapping[str, Progress],
        watch: Watch | None = None,
    ) -> None:
        """Add splits to read; called before ``run``.

        Args:
            progress: of each collection's backfill, by namespace.
            watch: called repeatedly with the progress of all backfills.
        """
        self._coordinator.load(splits, progress)
        self._watch = watch

    def abandon(self) -> None:
        """End what was launched but has not run; after a run, nothing is left to end."""
        self._end_children()
        self._arena.close()

    def run(self) -> int:
        """Run until the work is done or cannot go on; returns the exit code.

        Raises:
            ConfigError: the address or the certificate of the endpoints cannot be used.
            EngineEnded: it ended with an error.
        """
        if self._config.telemetry.listen:
            address = self._telemetry.serve(self._config.telemetry)
            log.info("listening", extra={"fields": {"address": address}})
        self._observer.export(self._config.telemetry)
        store = open_store(self._config.state, self._config.sink)
        self._state = StateThread(
            store,
            this_owner(),
            self._config.lease.ttl,
            self._config.retry,
            self._take_answer,
            self._redact,
        )
        previous = {each: signal.signal(each, self._on_signal) for each in stop_signals()}
        previous |= {each: signal.signal(each, self._on_level_signal) for each in _LEVEL_STEPS}
        try:
            if not self._launched:
                self.launch()
            while self._exit is None:
                self._turn()
        finally:
            self._end_children()
            stored = self._state.close(STOP_TIMEOUT_S)
            self._arena.close()
            self._telemetry.close()
            with self._best_effort("the last commits cannot be counted"):
                while self._answers:  # those of the writes that the state thread has made since
                    self._observer.answered(self._answers.popleft())
                self._observer.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._exit.error is not None:
            raise EngineEnded(self._exit.code, self._exit.error)
        if not stored:
            cause = f"the state store did not accept the last writes within {STOP_TIMEOUT_S:.0f} s"
            late = FatalError("end", cause, "Nothing is lost: what was not committed is replayed next time.")
            raise EngineEnded(1, self._state.error or late)
        return self._exit.code

    # --- one turn ----------------------------------------------------------------------------------------

    def _turn(self) -> None:
        awaited = {each: name for name, child in self._children.items() for each in child.awaited}
        ready = wait([*awaited, self._wake_read], self._wait_s)
        talking = {awaited[each] for each in ready if each in awaited}
        for name in talking:
            self._receive(name)
        for name in [name for name, child in self._children.items() if name in talking or child.is_ending]:
            self._reap_if_dead(name)
        self._adopt_spawned()
        if self._wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        while self._answers:
            answer = self._answers.popleft()
            with self._best_effort("an answer cannot be counted"):
                self._observer.answered(answer)
            self._perform(self._coordinator.from_store(answer, time.monotonic()))
        self._act_on_signals()
        self._measure()
        assert self._state is not None
        now = time.monotonic()
        seen = self._state.seen()
        self._observer.answered(seen)
        self._perform(self._coordinator.from_store(seen, now))
        self._perform(self._coordinator.tick(now))
        self._telemetry.turned_at = now
        status_due_s = self._status_at + STATUS_EVERY_S - now
        if status_due_s <= 0 or self._exit is not None:
            self._status_at = now
            self._update_status()
        # What this turn has changed is shown in time, also if nothing more happens.
        self._wait_s = status_due_s if status_due_s > 0 else TICK_S
        if self._watch is not None:
            self._watch(tuple(self._coordinator.splits.progress.values()))

    def _update_status(self) -> None:
        with self._best_effort("the status cannot be updated; the last one is shown"):
            self._telemetry.status = snapshot(
                self._coordinator,
                {name: child.pid for name, child in self._children.items()},
                self._memory,
                self._budget,
                self._started_at,
                self._redact,
                self._errors.latest(),
            )

    def _receive(self, name: Child) -> None:
        """Handle some of a child's messages."""
        try:
            for message in self._children[name].receive():
                now = time.monotonic()
                self._note(name, message, now)
                self._perform(self._coordinator.from_child(name, message, now))
        except (EOFError, OSError):
            self._children[name].mark_disconnected()  # it died, perhaps in the middle of a message

    def _note(self, name: Child, message: FromChild, now: float) -> None:
        """Count a child's message before it has any effect."""
        with self._best_effort("a message cannot be counted"):
            stream = self._coordinator.readers.stream_of(name) if name.role == "reader" else None
            self._observer.heard(name, message, stream, now)

    def _reap_if_dead(self, name: Child) -> None:
        """If a child has ended, handle its last messages, then tell the coordinator."""
        child = self._children[name]
        if child.has_ended():
            while child.has_input:
                self._receive(name)
            del self._children[name]
            child.close()
            starved = child.code == -signal.SIGKILL and (oom_kills() or 0) > self._oom_kills_before
            now = time.monotonic()
            self._perform(self._coordinator.child_exited(name, child.code, now, out_of_memory=starved))

    def _adopt_spawned(self) -> None:
        """Adopt the children started since the last turn; a failed start counts as a death."""
        while self._spawned:
            name, process = self._spawned.popleft()
            if process is None:
                self._perform(self._coordinator.child_exited(name, None, time.monotonic()))
            else:
                self._children[name] = process
                if self._log_level != self._config.telemetry.log_level:
                    process.send(LogLevel(self._log_level))

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        # A closing terminal causes several SIGHUPs: its own and the shell's. They are not a second request.
        if number != signal.SIGHUP or not self._signals:
            self._signals += 1
        self._stop_signal = self._stop_signal or signal.Signals(number).name
        self._wake()

    def _on_level_signal(self, number: int, _: FrameType | None) -> None:
        self._level_steps.append(_LEVEL_STEPS[signal.Signals(number)])
        self._wake()

    def _act_on_signals(self) -> None:
        while self._level_steps:
            self._step_log_level(self._level_steps.popleft())
        if self._stop_signal and not self._stop_told:
            self._stop_told = True
            log.info("stopping at a signal", extra={"fields": {"signal": self._stop_signal}})
        if self._signals == 1:
            self._perform(self._coordinator.shut_down(time.monotonic()))
        elif self._signals > 1 and self._exit is None:
            cause = "a second signal arrived during the drain"
            error = FatalError("drain", cause, "Nothing is lost: what was not committed is replayed next time.")
            self._exit = Exit(1, error)

    def _step_log_level(self, step: int) -> None:
        """Log more, or less, from now on, in all processes."""
        at = LEVELS.index(self._log_level) + step
        self._log_level = LEVELS[min(max(at, 0), len(LEVELS) - 1)]
        set_level(self._log_level)
        for child in self._children.values():
            child.send(LogLevel(self._log_level))
        log.log(
            logging.getLevelNamesMapping()[self._log_level.upper()],
            "the log level was changed",
            extra={"fields": {"level": self._log_level}},
        )

    def _take_spawned(self, name: Child, process: ChildProcess | None) -> None:
        """Called from the spawner's thread."""
        self._spawned.append((name, process))
        self._wake()

    def _take_answer(self, answer: FromStore) -> None:
        """Called from the state thread."""
        self._answers.append(answer)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full, so the loop will wake up anyway
            os.write(self._wake_write, b"x")

    # --- actions -----------------------------------------------------------------------------------------

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Send(child, message):
                    if child in self._children:
                        self._children[child].send(message)
                case Spawn(child):
                    self._spawner.start(child)
                case Kill(child):
                    self._kill(child)
                case Acquire() | Renew() | Release() | Write() | GrowSchema() | ReadState() | Announce() | Leave():
                    assert self._state is not None
                    if isinstance(action, Release):
                        self._observer.released(action.streams)
                    self._state.do(action)
                case Log(level, event, fields):
                    shown = self._with_epoch(fields)
                    log.log(logging.getLevelNamesMapping()[level.upper()], event, extra={"fields": shown})
                case Exit():
                    self._exit = action

    def _with_epoch(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of a line about a stream, with the epoch of its lease."""
        stream = self._coordinator.streams.get(fields.get("stream", ""))
        return fields | {"epoch": stream.epoch} if stream is not None and stream.epoch else fields

    def _spawn(self, child: Child) -> ChildProcess:
        """Called from the spawner's thread."""
        return ChildProcess(child, self._child_settings, self._arena.fd, self._arena.size)

    def _kill(self, child: Child) -> None:
        if child in self._children:
            self._children[child].kill()
        else:
            self._spawner.give_up(child)

    def _end_children(self) -> None:
        """Give children that were told to stop time to do so; none outlives the supervisor."""
        is_orderly = self._exit is not None and self._signals < 2
        for name, child in self._children.items():
            if not is_orderly or not self._coordinator.children[name].ready:
                child.kill()
        self._await_ends(STOP_TIMEOUT_S)
        for child in self._children.values():
            child.kill()
        self._await_ends(DEATH_S)
        for name, child in self._children.items():
            log.error("a killed process does not end", extra={"fields": {"child": str(name), "pid": child.pid}})
        self._children.clear()
        self._spawner.close()
        while self._spawned:
            if (process := self._spawned.popleft()[1]) is not None:
                process.kill()
                process.close()

    def _await_ends(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._children and time.monotonic() < deadline:
            for name in [name for name, child in self._children.items() if child.is_gone()]:
                self._children.pop(name).close()
            time.sleep(END_POLL_S if self._children else 0.0)

    # --- measuring itself --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _best_effort(self, what: str) -> Iterator[None]:
        """Failing to observe the engine must not end it; failures are logged every ``WARN_EVERY_S``."""
        try:
            yield
        except Exception as error:
            now = time.monotonic()
            if now - self._warned_at.get(what, -WARN_EVERY_S) >= WARN_EVERY_S:
                self._warned_at[what] = now
                log.warning(what, extra={"fields": {"cause": repr(error)}})

    def _measure(self) -> None:
        now = time.monotonic()
        if now - self._measured_at < (MEASURE_AT_REST_S if self._coordinator.is_at_rest else MEASURE_EVERY_S):
            return
        self._measured_at, self._memory = now, {}
        # A death is compared with a count at least one measurement old: kills are counted before deaths are seen.
        self._oom_kills_before, self._oom_kills = self._oom_kills, oom_kills() or 0
        with self._best_effort("memory cannot be measured"):
            self._memory = memory_of_tree()
        if self._memory:
            self._perform(self._coordinator.memory_used(sum(self._memory.values()), now))
