"""What follows from the errors and deaths of children: another attempt, or the end of a stream or of the engine.

An error that names a stream concerns only that stream. A transient one is retried from the committed position,
within the retry budget; any other stops the stream. A process that cannot work at all is restarted, unless it
reports a fault of a configuration that has never worked.

State: whether anything has been read, and whether the sink has answered; the streams whose history is lost. Owner:
the coordinator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.core.actions import Child, Log
from engine.core.children import Children
from engine.core.decisions import Decision, End, Fail, Forget, Interrupt
from engine.core.messages import Failed
from engine.core.position import Position
from engine.core.problems import Problem
from engine.core.readers import Readers
from engine.core.stream import Settings, Stream
from engine.errors import FatalError, HeadraceError, error_of_kind


class Faults:
    """The faults of an engine's children.

    Attributes:
        has_run: something was read, or had nothing new to read: the configuration works.
        sink_seen: the sink has answered.
        lost: the streams whose loss of history has ended the engine, each with the position that it was lost at.
    """

    def __init__(
        self, settings: Settings, streams: Mapping[str, Stream], children: Children, readers: Readers
    ) -> None:
        self._settings = settings
        self._streams = streams
        self._children = children
        self._readers = readers
        self.has_run = False
        self.sink_seen = False
        self.lost: Mapping[str, Position | None] = {}

    def code_of(self, error: HeadraceError | None) -> int:
        """The exit code of an engine that exits with this error."""
        if error is None:
            return 0
        return 2 if error.kind == "config" and not self.has_run else 1

    def failed(self, child: Child, failed: Failed, now: float) -> list[Decision]:
        """An error that a child could not handle itself."""
        error = error_of_kind(failed.kind, failed.operation, failed.cause, failed.remedy)
        if failed.stream is None:
            return self._of_process(child, error)
        stream = self._streams.get(failed.stream)
        if stream is None or failed.generation != stream.generation:
            return []
        if error.kind == "stream_lost":
            return self._history_lost(stream, error, now)
        # If the configuration has worked before, the fault lies in a server's state, or is about to be fixed.
        has_worked = stream.has_been_read or (stream.is_of_backfill and self.has_run)
        may_pass = error.kind == "transient" or (error.kind == "config" and has_worked)
        if not may_pass:
            return [Fail(stream, error)]
        if not stream.failures.failed(now):
            remedy = error.remedy or "Start again once the cause is fixed: nothing is lost."
            return [Fail(stream, FatalError(error.operation, error.cause, remedy))]
        stream.trouble = Problem.after(stream.trouble, str(error), now)
        delay_s = round(stream.failures.retry_at - now, 2)
        fields = {"stream": failed.stream, "error": str(error), "retry_in_s": delay_s}
        return [Log("warning", "stream failed; starting over", fields), Interrupt(stream)]

    def _of_process(self, child: Child, error: HeadraceError) -> list[Decision]:
        """A process has reported why it is exiting."""
        seen = {
            "reader": self._readers.deployment is not None,
            "writer": self.sink_seen,
            "committer": self.has_run,
        }
        has_worked = seen[child.role]
        if error.kind == "transient" or has_worked:
            self._children[child].error = error
            return []
        return [End(error)]

    def _history_lost(self, stream: Stream, error: HeadraceError, now: float) -> list[Decision]:
        # If it is lost repeatedly with nothing captured in between, starting over does not help.
        if self._settings.on_history_lost == "fail" or not stream.failures.failed(now):
            return [Fail(stream, error)]
        fields: dict[str, object] = {"stream": stream.name, "error": str(error)}
        if self._settings.on_history_lost == "snapshot":
            # The load is planned before the stream gets a new position: a crash in between must not hide the gap.
            also = {each.name: each.lost_at for each in self._streams.values() if each.history_lost}
            self.lost = {**also, stream.name: stream.ledger.committed}
            what = "history lost; reloading the collections and continuing from now"
            return [Log("error", what, fields), End(error, 1)]
        fields["intents_dropped"] = len(stream.ledger.intents)
        what = "history lost; continuing from now, what happened in between is not captured"
        if not stream.history_lost:
            stream.start_at = "now"
        return [Log("error", what, fields), Interrupt(stream), Forget(stream)]

    def child_exited(self, child: Child, now: float) -> list[Decision]:
        """A child is dead: interrupt the streams it was working on, and stop what has died too often in a row.

        Commits of other streams reset the child's failures, but not those of the stream that it dies of. It is not
        known which one that is, so one stream is stopped at a time, and the others get all their attempts again.
        """
        hit = [stream for stream in self._streams.values() if self._is_at_work(child, stream)]
        for stream in hit:
            stream.failures.failed(now)
        return [*map(Interrupt, hit), *self._judge(child, hit)]

    def _judge(self, child: Child, hit: Sequence[Stream]) -> list[Decision]:
        worst = max(hit, key=lambda stream: stream.failures.count, default=None)
        error = self._children.terminal_error(child)
        if worst is not None and (worst.failures.exhausted or error is not None):
            return self._blame(worst, child, hit)
        if error is None:
            return []
        if child.role == "committer":  # the lake does not need it
            self._children.forgive(child)
            return [Log("error", "the tables are not followed", {"error": str(error)})]
        own = self._readers.stream_of(child)
        if own is None or own.is_of_backfill:
            return [End(error, 1)]
        self._children.end(child)
        return [Fail(own, error)] if own.is_open else []

    def _blame(self, worst: Stream, child: Child, hit: Sequence[Stream]) -> list[Decision]:
        """Stop the stream that the child has most often died working on; the counts of the others start over."""
        ended, remedy = self._children.last_end(child)
        count = max(worst.failures.count, self._children[child].failures.count)
        cause = f"a {child.role} died {count} times in a row before anything was committed, {ended}"
        for stream in hit:
            stream.failures.succeeded()
        self._children.forgive(child)
        return [Fail(worst, FatalError(f"run the stream {worst.name}", cause, remedy))]

    def _is_at_work(self, child: Child, stream: Stream) -> bool:
        """Whether the child reads the stream, surveys the lake for it, or builds a segment of it."""
        if child.role == "reader":
            return stream.is_assigned and stream.reader == child
        if child.role == "committer":
            return False
        builds = any(each.writer == child.index for each in stream.ledger.segments.values())
        return builds or stream.surveyor == child
