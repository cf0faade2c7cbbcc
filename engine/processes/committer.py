"""The committer process: adds to tables what has been committed to the lake, and merges mirrors.

One loop: receive a message, look at the lake every ``table.interval``, merge every ``mirror.interval``, send a
heartbeat, and now and then maintain the tables. State: what these have, as far as this process has seen to it.
Owner: the loop. It reads the state store, and never writes to it.
"""

from __future__ import annotations

import logging
import random
import time
from multiprocessing.connection import Connection

from engine.core import messages as msg
from engine.errors import HeadraceError
from engine.logs import set_level
from engine.processes.link import ChildSettings
from engine.retries import policy_of
from engine.state.opening import open_store
from engine.tables.follower import Follower
from engine.tables.formats import tables_of
from engine.tables.maintenance import Maintenance
from engine.tables.mirrors import Mirrors

BEAT_S = 1.0
_WAIT_S = 0.1  # for a commit to become visible
log = logging.getLogger("headrace")


class Committer:
    """The loop of the committer process."""

    def __init__(self, settings: ChildSettings, connection: Connection) -> None:
        self._settings = settings
        self._connection = connection
        self._progress = 0
        self._beat_at = 0.0
        config = settings.config
        self._store = open_store(config.state, config.sink, read_only=True)
        self._tables = tables_of(config)
        self._follower = Follower(config, self._store, self._tables, settings.owner)
        enabled = config.mirror.enabled
        lake = config, self._store, self._tables, settings.owner
        self._mirrors = Mirrors(*lake, lambda: self._beat("merging mirrors")) if enabled else None
        self._maintenance = Maintenance(*lake, lambda: self._beat("maintaining tables"))
        self._merge_at = time.monotonic()
        self._maintain_at = time.monotonic() + config.maintenance.interval
        self._rng = random.Random()
        self._complete_at = time.monotonic()

    def run(self) -> None:
        """Run until told to stop."""
        self._tables.check()
        self._send(msg.CommitterReady())
        next_at = time.monotonic()
        while True:
            self._beat("waiting")
            if self._connection.poll(min(BEAT_S, max(0.0, next_at - time.monotonic()))):
                message = msg.decode_to_child(self._connection.recv_bytes())
                match message:
                    case msg.Stop():
                        return
                    case msg.LogLevel(level):
                        set_level(level)
                    case msg.CatchUp(committed):
                        self._send(msg.CaughtUp(self._catch_up(committed)))
                    case _:
                        raise AssertionError(message)
            elif time.monotonic() >= next_at:
                self._look()
                self._maintain()
                next_at = time.monotonic() + self._settings.config.table.interval

    def _look(self, committed: dict[str, int] | None = None) -> dict[str, str]:
        """Add what has been committed; the tables that lack something, each with the reason."""
        began = time.monotonic()
        failed: dict[str, str] = {}
        added: dict[str, msg.TableSeen] = {}
        try:
            done = self._follower.run_once(lambda: self._beat("adding to tables"))
        except HeadraceError as error:
            failed[""] = str(error)
        else:
            failed = {name: str(error) for name, error in done.failed.items()}
            added = {name: msg.TableSeen(*each) for name, each in done.tables.items()}
            if committed is not None and (short := self._follower.short_of(committed)):
                failed[""] = f"the state store does not show the last commits of {', '.join(sorted(short))} yet"
            if self._mirrors is not None and (committed is not None or began >= self._merge_at):
                self._merge(self._mirrors, added, failed)
        now = time.monotonic()
        if failed:
            self._tables.renew()
        else:
            self._complete_at = began
        self._send(msg.TablesSeen(added, failed, now - self._complete_at, now - began))
        return failed

    def _merge(self, mirrors: Mirrors, added: dict[str, msg.TableSeen], failed: dict[str, str]) -> None:
        try:
            merged = mirrors.run_once()
        except HeadraceError as error:
            failed[""] = str(error)
            return
        failed |= {name: str(error) for name, error in merged.failed.items()}
        added |= {name: msg.TableSeen(1, each.files, each.written) for name, each in merged.tables.items()}
        self._merge_at = time.monotonic() + self._settings.config.mirror.interval

    def _maintain(self) -> None:
        interval = self._settings.config.maintenance.interval
        if not interval or time.monotonic() < self._maintain_at:
            return
        try:
            done = self._maintenance.run_once()
        except HeadraceError as error:
            log.warning("tables are not maintained", extra={"fields": {"error": str(error)}})
        else:
            for name, cause in done.failed.items():
                log.warning("a table is not maintained", extra={"fields": {"table": name, "error": str(cause)}})
            for name, each in done.tables.items():
                if any(each):
                    log.info("a table was maintained", extra={"fields": {"table": name, **each._asdict()}})
        self._maintain_at = time.monotonic() + interval

    def _catch_up(self, committed: dict[str, int]) -> dict[str, str]:
        """Look again until the tables have everything, within the bounds of [retry]."""
        policy, failed = policy_of(self._settings.config.retry), dict[str, str]()
        for attempt in range(1, policy.max_attempts + 1):
            failed = self._look(committed)
            if not failed:
                break
            until = time.monotonic() + (_WAIT_S if set(failed) == {""} else policy.delay_s(attempt, self._rng))
            while time.monotonic() < until:
                time.sleep(min(_WAIT_S, until - time.monotonic()))
                self._beat("waiting for tables")
        return failed

    def _beat(self, doing: str) -> None:
        self._progress += 1
        now = time.monotonic()
        if now - self._beat_at >= BEAT_S:
            self._beat_at = now
            self._send(msg.Heartbeat(self._progress, doing, time.process_time()))

    def _send(self, message: msg.FromCommitter) -> None:
        self._connection.send_bytes(msg.encode(message))
