"""The writer process: turns slabs into objects.

One loop: receive a message, act on it, send a heartbeat. State: the segments being built or sealed, each with its
objects. Owner: the loop. A segment that fails is discarded and reported, and the coordinator has it replayed.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection

from engine.core import messages as msg
from engine.core.naming import (
    OLD_DIRECTORIES,
    layout_of,
)
from engine.errors import FatalError, HeadraceError
from engine.failpoints import failpoint
from engine.logs import log_with, set_level
from engine.processes.builds import ObjectBuild, SegmentBuild
from engine.processes.figures import work_since
from engine.processes.link import ChildSettings, send_failure
from engine.shared.arena import Arena
from engine.shared.slab import read_slab
from engine.sink.lake import object_beyond
from engine.sink.objects import Sink, Upload

BEAT_S = 1.0
ROW_GROUP_BYTES = 48 * 2**20
PUBLISH_THREADS = 8
log = logging.getLogger("headrace")


class Writer:
    """The loop of one writer process."""

    def __init__(self, settings: ChildSettings, connection: Connection, arena: Arena) -> None:
        self._settings = settings
        self._connection = connection
        self._arena = arena
        self._progress = 0
        self._beat_at = 0.0
        self._working_on: tuple[str, int, int] | None = None
        log_with(self._shown)
        beat = partial(self._beat, "waiting for the sink")
        self._sink = Sink(settings.config.sink, beat, settings.budget.part)
        self._segments: dict[tuple[str, int, int], SegmentBuild] = {}
        self._pool = ThreadPoolExecutor(PUBLISH_THREADS, thread_name_prefix="publish")

    def run(self) -> None:
        """Run until told to stop."""
        self._sink.check()
        self._sink.sweep()
        self._send(msg.WriterReady())
        while True:
            self._beat("waiting")
            if not self._connection.poll(BEAT_S):
                continue
            message = msg.decode_to_child(self._connection.recv_bytes())
            if isinstance(message, msg.Stop):
                break
            self._handle(message)
            self._progress += 1
        for segment in self._segments.values():
            segment.discard()
        self._pool.shutdown(wait=False)

    def _handle(self, message: msg.ToChild) -> None:
        match message:
            case msg.Batch(stream, generation, seq):
                self._guarded(message, stream, generation, seq)
            case msg.Seal(stream, generation, intent):
                self._guarded(message, stream, generation, intent.seq)
            case msg.Publish(stream, generation, seq):
                self._guarded(message, stream, generation, seq)
            case msg.Abandon(stream, generation):
                for key in [key for key in self._segments if key[0] == stream and key[1] < generation]:
                    self._segments.pop(key).discard()
            case msg.FlushBuffers():
                self._flush_pending(0)
            case msg.Survey():
                self._survey(message)
            case msg.LogLevel(level):
                set_level(level)
            case _:
                raise AssertionError(message)

    def _survey(self, asked: msg.Survey) -> None:
        def beat(seen: int) -> None:
            self._progress += seen
            self._beat("looking at the lake")

        sink, name = self._settings.config.sink, asked.spec.stream
        try:
            beyond = object_beyond(self._sink, sink, asked.spec, asked.since, asked.known, self._pool, beat)
        except HeadraceError as error:
            send_failure(self._connection, error, name, asked.generation)
        else:
            self._send(msg.Surveyed(name, asked.generation, beyond))

    def _guarded(
        self, message: msg.Batch | msg.Seal | msg.Publish, stream: str, generation: int, seq: int
    ) -> None:
        """Work on one segment; a failure ends the segment, not the process."""
        key = stream, generation, seq
        with self._ending(key):
            match message:
                case msg.Batch():
                    self._add(key, message)
                case msg.Seal():
                    self._seal(key, message)
                case msg.Publish():
                    self._publish(key)

    @contextmanager
    def _ending(self, key: tuple[str, int, int]) -> Iterator[None]:
        """A failure ends this segment."""
        self._working_on = key
        try:
            yield
        except HeadraceError as error:
            self._failed(key, error)
        except (AssertionError, OSError, EOFError):  # the process is broken, or its supervisor is gone
            raise
        except Exception as error:
            self._failed(key, _bug(error))
        finally:
            self._working_on = None

    def _shown(self) -> dict[str, object]:
        """What each log line of this process concerns."""
        if (key := self._working_on) is None:
            return {}
        segment = self._segments.get(key)
        return {"stream": key[0], "seq": key[2]} | ({"epoch": segment.epoch} if segment and segment.epoch else {})

    def _failed(self, key: tuple[str, int, int], error: HeadraceError) -> None:
        if (segment := self._segments.pop(key, None)) is not None:
            segment.discard()
        send_failure(self._connection, error, key[0], key[1])

    def _add(self, key: tuple[str, int, int], batch: msg.Batch) -> None:
        # The slab is not freed until there is memory for its contents, so the reader cannot run ahead.
        max_bytes = self._settings.budget.writer_pending
        self._flush_pending(max(0, max_bytes - batch.size))
        segment = self._segments.get(key)
        if segment is None:
            config = self._settings.config
            directories = OLD_DIRECTORIES if batch.old_layout else layout_of(config.sink.partition_by)
            segment = SegmentBuild(key[0], key[2], self._sink, config, directories, epoch=batch.epoch)
            self._segments[key] = segment
        if batch.size > max_bytes // 2:
            self._add_large(segment, batch)
        else:
            self._add_copied(segment, batch)
        self._flush_pending(max_bytes)

    def _add_copied(self, segment: SegmentBuild, batch: msg.Batch) -> None:
        """Copy the rows out of a slab, which is free again before anything is encoded."""
        try:
            contents = list(read_slab(self._arena.slab(batch.offset, batch.size)))
        finally:
            self._send(msg.SlabFreed(batch.offset))
        while contents:  # popped, so that rows that are written at once are not kept alive here
            segment.add(*contents.pop(0))
        for build in list(segment.pending()):
            if build.pending_bytes >= ROW_GROUP_BYTES:
                build.flush()

    def _add_large(self, segment: SegmentBuild, batch: msg.Batch) -> None:
        """Encode a large event straight from the slab: the encoder makes enough copies of it."""
        try:
            for content, rows in read_slab(self._arena.slab(batch.offset, batch.size), copied=False):
                segment.add(content, rows)
            for build in list(segment.pending()):
                build.flush()
        except Exception:
            segment.discard()  # before the slab is reused
            raise
        finally:
            self._send(msg.SlabFreed(batch.offset))

    def _flush_pending(self, max_bytes: int) -> None:
        """Write row groups early, then upload small objects early, until at most ``max_bytes`` are held here."""
        self._release(max_bytes, lambda build: build.pending_bytes, ObjectBuild.flush)
        self._release(max_bytes, lambda build: build.upload.spillable, ObjectBuild.spill)

    def _release(
        self, max_bytes: int, size: Callable[[ObjectBuild], int], release: Callable[[ObjectBuild], None]
    ) -> None:
        """Release the builds with the largest ``size`` until little enough is held or none is left to release."""
        while True:
            builds = [
                (key, build) for key, segment in self._segments.items() for build in segment.objects.values()
            ]
            held = sum(build.pending_bytes + build.upload.spillable for _, build in builds)
            key, largest = max(builds, key=lambda each: size(each[1]), default=(None, None))
            if held <= max_bytes or key is None or largest is None or not size(largest):
                return
            with self._ending(key):
                release(largest)
            self._progress += 1
            self._beat("flushing")

    def _seal(self, key: tuple[str, int, int], sealed: msg.Seal) -> None:
        failpoint("before_seal")
        segment = self._segments.get(key)
        if segment is None:
            segment = self._segments[key] = SegmentBuild(key[0], key[2], self._sink, self._settings.config)
        segment.seal(sealed, self._settings.version)
        self._flush_pending(self._settings.budget.writer_pending)
        objects = tuple(sorted(build.name for build in segment.objects.values()))
        letters = sum(build.rows for build in segment.objects.values() if build.name.dead_letter)
        size = sum(build.size for build in segment.objects.values())
        self._send(msg.Sealed(*key, objects, size, letters, *segment.work()))
        failpoint("after_seal")

    def _publish(self, key: tuple[str, int, int]) -> None:
        segment = self._segments.get(key)
        if segment is None:
            return  # it failed after it was sealed, which has been reported
        failpoint("before_publish")
        began = time.monotonic()
        self._publish_all([build.upload for build in segment.objects.values()])
        publishing = work_since(began)
        failpoint("after_publish")
        del self._segments[key]
        failpoint("before_acknowledge")
        self._send(msg.Published(*key, publishing))
        failpoint("after_acknowledge")

    def _publish_all(self, uploads: Sequence[Upload]) -> None:
        """Publish several at once, as long as they hold no more than a part's size together; wait for all of them.

        Raises:
            HeadraceError: the first failure.
        """
        waiting = deque(uploads)
        under_way: dict[Future[None], int] = {}
        failed: BaseException | None = None
        while under_way or (waiting and failed is None):
            while waiting and failed is None and self._may_join(waiting[0].held, under_way.values()):
                upload = waiting.popleft()
                held = upload.held
                under_way[self._pool.submit(upload.publish)] = held
            done, _ = wait(under_way, BEAT_S, FIRST_COMPLETED)
            for each in done:
                del under_way[each]
                failed = failed or each.exception()
                self._progress += 1
                failpoint("between_objects")
            self._beat("publishing")
        if failed is not None:
            raise failed

    def _may_join(self, size: int, others: Collection[int]) -> bool:
        """Whether a request with a body of this size may be sent while the others are in flight."""
        fits = not others or size + sum(others) <= self._settings.budget.part
        return fits and len(others) < PUBLISH_THREADS

    def _beat(self, doing: str) -> None:
        now = time.monotonic()
        if now - self._beat_at >= BEAT_S:
            self._beat_at = now
            unanswered_s = self._sink.unanswered_s
            self._send(msg.Heartbeat(self._progress, doing, time.process_time(), unanswered_s))

    def _send(self, message: msg.FromWriter) -> None:
        self._connection.send_bytes(msg.encode(message))


def _bug(error: Exception) -> FatalError:
    """The failure that an exception of our own is: another attempt would meet it again."""
    log.error("a bug in the engine", exc_info=error)
    remedy = "Nothing is lost. Please report it, with the traceback that is in the log."
    return FatalError("write a segment", f"{type(error).__name__}: {error}", remedy)
