"""Sees the messages that pass the supervisor, and makes metrics and traces of them.

State: what metrics, traces and the export have of their own. Owner: the supervisor's loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from engine.config.tree import TelemetryConfig
from engine.core import messages as msg
from engine.core.actions import Child
from engine.core.store import FromStore
from engine.core.stream import Stream
from engine.supervisor.metrics import Metrics
from engine.supervisor.telemetry import Status
from engine.supervisor.traces import SegmentTrace, Traces

if TYPE_CHECKING:
    from engine.supervisor.otlp import Otlp


class Observer:
    """Metrics and, if they are wanted, traces of one engine.

    Args:
        status: the current status; None before the first.
    """

    def __init__(self, status: Callable[[], Status | None]) -> None:
        self.metrics = Metrics(status)
        self._figures = self.metrics.figures
        self._traces = Traces(self._committed)
        self._otlp: Otlp | None = None

    def export(self, wanted: TelemetryConfig) -> None:
        """Send metrics and traces over OTLP from now on, if that is configured.

        Raises:
            ConfigError: as ``Otlp``.
        """
        if wanted.otlp_metrics or wanted.otlp_traces:
            from engine.supervisor.otlp import Otlp

            self._otlp = Otlp(wanted, self.metrics.collect)

    def close(self) -> None:
        """Send what is left, within a short time."""
        if self._otlp is not None:
            self._otlp.close()

    def heard(self, child: Child, message: msg.FromChild, stream: Stream | None, now: float) -> None:
        """A message from a child.

        Args:
            stream: the one that a reader has.
        """
        if stream is not None and getattr(message, "generation", None) != stream.generation:
            stream = None  # the message is outdated
        name, epoch = (stream.name, stream.epoch) if stream is not None else (None, 0)
        self._figures.heard(child, message)
        self._traces.heard(message, name, epoch, now)

    def answered(self, answer: FromStore) -> None:
        """An answer of the state store."""
        self._figures.answered(answer)
        self._traces.answered(answer)

    def _committed(self, segment: SegmentTrace) -> None:
        self._figures.committed(segment)
        if self._otlp is not None:
            self._otlp.segment(segment)

    def released(self, streams: Iterable[str]) -> None:
        """The leases of these streams are released."""
        self._figures.forget(streams)
