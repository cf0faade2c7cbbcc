"""The splits of a backfill on a Ray cluster: ``backfill.executor = "ray"``.

Ray finds the machines, starts the tasks and restarts them; the progress of a split is in the state store, under
its lease, so that a restarted task continues where the first one was killed. A task returns nothing. It runs an
engine of its own, with one reader and one writer, in a child process: a Ray worker is not safe to fork from, and
when it ends, all of them must end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
from typing import Any

from msgspec.structs import replace

from engine.backfill.plans import plans_of
from engine.backfill.work import Work
from engine.config import Config, Size
from engine.config.tree import LAKE
from engine.core.specs import BackfillSpec, MarkSpec, SplitSpec
from engine.errors import ConfigError, EngineEnded, FatalError, HeadraceError, TransientError
from engine.retries import retrying
from engine.supervisor.telemetry import Watch

POLL_S = 5.0
CONNECT_S = 5.0
TASKS_PER_CPU = 4

_Task = tuple[Config, tuple[BackfillSpec, ...]]
log = logging.getLogger("headrace")


def run_on_ray(config: Config, work: Work, watch: Watch) -> bool:
    """Read all splits of the work on the configured cluster; returns True when done.

    Raises:
        ConfigError: Ray is not installed or refuses us, or the state store is a file of this machine.
        TransientError: Ray cannot be reached.
        FatalError: a task failed; the others have ended.
    """
    ray = retrying(config.retry, what="the Ray cluster")(_connect, config)
    try:
        cpus = int(ray.cluster_resources().get("CPU", 1))
        splits = [each for each in work.splits if isinstance(each, SplitSpec)]
        marks = [each for each in work.splits if isinstance(each, MarkSpec)]
        size = max(1, len(splits) // (cpus * TASKS_PER_CPU))
        # A task takes one CPU, and as much memory as an engine may use.
        options = {"num_cpus": 1, "memory": int(config.memory.limit), "max_retries": config.retry.max_attempts}
        task = ray.remote(**options)(read_splits)
        for turn in (splits, marks):  # a plan is marked once all of it is in the lake
            pending = [
                task.remote((_of_one_task(config, cpus), tuple(turn[start : start + size])))
                for start in range(0, len(turn), size)
            ]
            _await(ray, pending, config, work, watch)
    finally:
        ray.shutdown()
    return True


def _await(ray: Any, pending: list[Any], config: Config, work: Work, watch: Watch) -> None:
    """Wait until these tasks have ended.

    Raises:
        FatalError: one of them failed; the others have ended.
    """
    failed: FatalError | None = None
    while pending:
        done, pending = ray.wait(pending, num_returns=len(pending), timeout=POLL_S)
        for each in done:
            try:
                _get(ray, each)
            except FatalError as error:  # the others continue
                log.error("a task failed", extra={"fields": {"error": str(error)}})
                failed = failed or error
        with contextlib.suppress(TransientError), plans_of(config) as plans:
            watch([each for each in plans.progress() if each.collection in work.progress])
    if failed is not None:
        raise failed


def _connect(config: Config) -> Any:
    operation, address = "reach the Ray cluster", config.backfill.ray_address
    if config.state.url.startswith("sqlite:") or (
        config.state.url == LAKE and config.sink.url.startswith("file:")
    ):
        cause = "state.url is a file, which the cluster's other machines cannot access"
        raise ConfigError(operation, cause, "Use redis://, or a sink on S3 with the state in the lake.")
    try:
        import ray
    except ImportError:
        cause = "Ray is not installed"
        raise ConfigError(operation, cause, "Install headrace[ray], here and on the cluster.") from None
    remedy = "Is the cluster up, and is backfill.ray_address right?"
    try:
        if address != "auto":
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except OSError as error:
        raise TransientError(operation, f"{address}: {error}", remedy) from error
    except (ValueError, RuntimeError) as error:
        raise ConfigError(operation, f"{address}: {error}", remedy) from error
    return ray


def _of_one_task(config: Config, at_once: int) -> Config:
    """The configuration of one of ``at_once`` tasks: one reader, one writer, and its share of the pace."""
    backfill = config.backfill
    return replace(
        config,
        backfill=replace(
            backfill,
            readers=1,
            max_documents_per_s=-(-backfill.max_documents_per_s // at_once),
            max_bytes_per_s=Size(-(-backfill.max_bytes_per_s // at_once)),
        ),
        writers=replace(config.writers, processes=1),
        telemetry=replace(config.telemetry, listen="", log_format="json"),
    )


def _get(ray: Any, task: Any) -> None:
    try:
        ray.get(task)
    except ray.exceptions.RayError as error:
        cause = str(error).strip().splitlines()[-1]
        remedy = "Nothing is lost: start again once the cause is fixed."
        raise FatalError("run splits on Ray", cause, remedy) from error


def read_splits(task: _Task) -> None:
    """In a Ray worker: run an engine for these splits to its end.

    Raises:
        RuntimeError: it failed; with its own message.
    """
    command = [sys.executable, "-m", "engine.backfill.ray"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has already ended, and says why
            pickle.dump(task, process.stdin)
            process.stdin.flush()
        # The pipe stays open until the end: if this worker is killed, the engine sees it closed.
        message = process.stdout.read().decode()
        if process.wait():
            raise RuntimeError(message or f"the engine ended with {process.returncode}")


def _main() -> int:
    """Run the engine, in its own process."""
    from engine.logs import configure_logging
    from engine.processes.forks import template
    from engine.supervisor.supervisor import Supervisor

    config, splits = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_worker, daemon=True).start()
    configure_logging(config, "supervisor")
    try:
        with template(config.sink.library):
            supervisor = Supervisor(config, (), pool=config.backfill.readers)
            supervisor.load(splits, {})
            try:
                return supervisor.run()
            finally:
                supervisor.abandon()
    except EngineEnded as ended:
        sys.stdout.write(config.redactor()(str(ended.error)))
        return ended.code
    except HeadraceError as error:
        sys.stdout.write(config.redactor()(str(error)))
        return 1


def _end_with_worker() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing more is sent: this returns when the other end is closed
    os._exit(1)


if __name__ == "__main__":
    sys.exit(_main())
