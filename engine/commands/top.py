"""The command ``top``: what the page at ``/`` shows, live in a terminal; in a pipe, once."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast

from rich.console import ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from engine.commands.terminal import Terminal
from engine.commands.watching import Rates, Source, by_trouble, reason, source_of, trusting, utc, verdict
from engine.config import Config
from engine.config.expansion import Expansion, Problems
from engine.errors import ConfigError, FatalError, TransientError
from engine.plain import plain
from engine.supervisor.telemetry import Status, StreamStatus

POLL_S = 1.0
HISTORY = 600
ERRORS_SHOWN = 4
_STYLES = {"good": "green", "care": "yellow", "bad": "bold red"}
_STATE_STYLES = {"failed": "bold red", "stalled": "red", "starting": "yellow", "reading": "green"}
UNKNOWN = "-"
_BARS = "▁▂▃▄▅▆▇█"
_DOWN, _UP = (b"j", b"\x1b[B", b"\x1bOB"), (b"k", b"\x1b[A", b"\x1bOA")


def top(config: Config, url: str, ca_file: Path | None) -> int:
    """Show an engine until q is pressed; returns the exit code.

    Args:
        url: of its endpoints; empty for those of the configuration.
        ca_file: the authorities to trust instead of the usual ones.

    Raises:
        ConfigError: it cannot be asked: the address, the certificate or the credentials are wrong.
        FatalError: the output is no terminal, and there is no answer.
    """
    source = _source(config, url, ca_file)
    terminal = Terminal()
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or terminal.is_dumb_terminal:
        return _once(source, terminal)
    view = View(source.address)
    with _keys(), Live(console=terminal, screen=True, auto_refresh=False) as live:
        while True:
            asked_at = time.monotonic()
            try:
                view.show(source.read())
            except TransientError as error:
                view.miss(error.cause)
            while (left_s := asked_at + POLL_S - time.monotonic()) > 0:
                # The terminal's own size: COLUMNS and LINES, which may be of another one, do not follow it.
                terminal.size = ConsoleDimensions(*os.get_terminal_size(sys.stdout.fileno()))
                live.update(view.render(terminal.width, terminal.height), refresh=True)
                if select.select([sys.stdin], [], [], left_s)[0] and not _obey(view, terminal.height):
                    return 0


def _source(config: Config, url: str, ca_file: Path | None) -> Source:
    if not url:
        return source_of(config.telemetry)
    problems = Problems()
    expanded: str = Expansion(os.environ, problems).expand(url, "--url")
    if problems.found:
        raise ConfigError("read --url", "; ".join(problems.found), "Set it, or write the value itself.")
    context = trusting(str(ca_file), "--ca-file") if ca_file else None
    return Source(expanded, context, config.telemetry.password)


def _once(source: Source, terminal: Terminal) -> int:
    """Two answers, for the rates."""
    view = View(source.address)
    for number in range(2):
        time.sleep(POLL_S * number)
        try:
            view.show(source.read())
        except TransientError as error:
            remedy = "Does the engine run there? headrace status shows what it has committed, without it."
            raise FatalError(error.operation, error.cause, remedy) from error
    terminal.print(view.render(terminal.width, None))
    return 0


@contextmanager
def _keys() -> Iterator[None]:
    """Keys arrive one by one, and are not echoed."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _obey(view: View, height: int) -> bool:
    """Act on what was typed; whether to go on."""
    typed = os.read(sys.stdin.fileno(), 64)
    if not typed or typed[:1] in (b"q", b"Q", b"\x03", b"\x04"):
        return False
    page = max(1, height // 2)
    moves = dict.fromkeys(_DOWN, 1) | dict.fromkeys(_UP, -1) | {b" ": page, b"\x1b[6~": page, b"\x1b[5~": -page}
    view.scrolled = max(0, view.scrolled + moves.get(typed, 0))
    return True


class View:
    """What is on the screen.

    State: the last answer, rates and histories; since when there is no answer, and why; the first stream shown.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._status: Status | None = None
        self._rates = Rates()
        self._histories: dict[str, deque[float]] = {}
        self._answered_at: float | None = None
        self._missing = ""
        self.scrolled = 0

    def show(self, status: Status | None) -> None:
        """Take an answer."""
        self._answered_at, self._missing = time.time(), ""
        self._status = status
        if status is not None:
            self._rates.add(status)
            for name, value, *_ in self._figures(status):
                if value is not None:
                    self._histories.setdefault(name, deque(maxlen=HISTORY)).append(value)

    def miss(self, cause: str) -> None:
        """There was no answer."""
        self._missing = cause

    def render(self, width: int, height: int | None) -> RenderableType:
        """The picture; as long as it takes without a height."""
        status = self._status
        above: list[RenderableType] = [self._head(width)]
        if self._missing:
            above.append(Text(self._gone(), style="bold red", no_wrap=True, overflow="ellipsis"))
        if status is None:
            return Group(*above, Text("The engine is starting." if not self._missing else ""))
        above += [Text(), self._figure_table(status, width)]
        below = [*self._fleet(status), *self._backfills(status), *self._tables(status), *self._errors(status)]
        taken = len(above) + 3 + sum(map(_lines, below))
        processes = self._processes(status)
        left = 10**6 if height is None else max(3, height - taken - 4)
        # The processes follow if there is room for all of both.
        needed = sum(1 + bool(reason(each)) for each in status.streams)
        if needed + _lines(processes) <= left:
            below.insert(0, processes)
        return Group(*above, Text(), self._streams(status, width, left), *below)

    def _head(self, width: int) -> Table:
        status = self._status
        words, quality = ("no answer", "bad") if self._missing else verdict(status)
        about = f"at {self._address}"
        if status is not None:
            about = f"{plain(status.version)} {about}, up {_duration(float(int(status.at - status.started_at)))}"
        grid = Table.grid(expand=True, padding=(0, 1, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        grid.add_column(no_wrap=True, justify="right")
        grid.add_row(Text("headrace", style="bold"), Text(about, style="dim"), Text(words, style=_STYLES[quality]))
        return grid

    def _gone(self) -> str:
        if self._answered_at is None:
            return f"no answer yet: {self._missing}"
        ago = _duration(float(int(time.time() - self._answered_at)))
        return f"no answer since {utc(self._answered_at)} ({ago}): {self._missing}; the figures are as of then"

    def _figures(self, status: Status) -> list[tuple[str, float | None, str, str]]:
        """Name, value, the value as text, and a note."""
        live = [each for each in status.streams if each.state not in ("standby", "finished")]
        total = self._rates.total("events_read")
        read, landed = self._rates.total("bytes_read"), self._rates.total("bytes_landed")
        note = f"{_size(read)}/s read, {_size(landed)}/s landed" if read is not None and landed is not None else ""
        behind = max((each for each in live if each.lag_s is not None), key=lambda s: s.lag_s or 0.0, default=None)
        lag = behind.lag_s if behind else None
        headroom = min((s.oplog_headroom_s for s in live if s.oplog_headroom_s is not None), default=None)
        window = f"of {_duration(status.oplog_window_s)}" if status.oplog_window_s is not None else ""
        share = (
            f"{(status.memory_bytes or 0) / status.memory_limit_bytes:.0%} of {_size(status.memory_limit_bytes)}"
        )
        return [
            ("throughput", total, _per_second(total), note),
            ("lag", lag, _duration(lag), plain(behind.stream) if behind else ""),
            ("oplog left", headroom, _duration(headroom), window or plain(status.oplog_error)),
            ("memory", status.memory_bytes, _size(status.memory_bytes), share),
        ]

    def _figure_table(self, status: Status, width: int) -> Table:
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column(no_wrap=True, justify="right", style="bold", min_width=10)
        bars = max(0, min(40, width - 50))
        if bars:
            grid.add_column(no_wrap=True, style="cyan", width=bars)
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for name, _, text, note in self._figures(status):
            plot = [_plot(self._histories.get(name, ()), bars)] if bars else []
            grid.add_row(name, text, *plot, Text(note))
        return grid

    def _streams(self, status: Status, width: int, lines: int) -> RenderableType:
        """One line for each, and one below with the reason of each that has one."""
        found = sorted(status.streams, key=by_trouble)
        self.scrolled = min(self.scrolled, max(0, len(found) - 1))
        shown: list[StreamStatus] = []
        for each in found[self.scrolled :]:
            lines -= 1 + bool(reason(each))
            if lines < 0:
                break
            shown.append(each)
        table = _stream_table(width, show_header=True)
        parts: list[RenderableType] = [table]
        for each in shown:
            cells = [
                _per_second(self._rates.of_stream(each.stream, "events_read")),
                _duration(each.lag_s),
                _duration(each.oplog_headroom_s),
                f"{each.events_committed:,}",
            ]
            state = Text(each.state, style=_STATE_STYLES.get(each.state, "dim"))
            table.add_row(Text(plain(each.stream)), state, *cells[: len(table.columns) - 2])
            if why := reason(each):
                table = _stream_table(width, show_header=False)  # a row of a table cannot span its columns
                parts += [Text(f"  {plain(why)}", style="dim", no_wrap=True, overflow="ellipsis"), table]
        if hidden := len(found) - len(shown):
            parts.append(Text(f"{hidden} more; \u2193 \u2191 scroll", style="dim", no_wrap=True))
        return Group(*parts)

    def _processes(self, status: Status) -> RenderableType:
        table = _table("process", "doing", "cpu", "memory", "restarts")
        for each in status.processes:
            cpu = self._rates.cpu_of(each.process)
            doing = plain(each.doing) or "ready" if each.ready else "starting"
            used = f"{cpu:.0%}" if cpu is not None else UNKNOWN
            table.add_row(
                Text(plain(each.process)), Text(doing), used, _size(each.memory_bytes), str(each.restarts)
            )
        return Group(Text(), table)

    def _backfills(self, status: Status) -> list[RenderableType]:
        running = [each for each in status.backfills if not each.finished]
        if not running:
            return []
        table = _table("backfill", "splits", "documents")
        for each in running[:ERRORS_SHOWN]:
            table.add_row(
                Text(plain(each.collection)),
                f"{each.splits:,} of {each.splits_total:,}",
                f"{each.documents:,} of about {each.documents_total:,}",
            )
        return [Text(), table]

    def _tables(self, status: Status) -> list[RenderableType]:
        if status.tables_lag_s is None:
            return []
        table = _table("table", "commits", "files", "rows")
        for each in sorted(status.tables, key=lambda each: (not each.error, each.table))[:ERRORS_SHOWN]:
            counts = (f"{number:,}" for number in (each.commits, each.files, each.rows))
            table.add_row(Text(plain(each.table) or "all", style="red" if each.error else ""), *counts)
        return [Text(), table]

    def _fleet(self, status: Status) -> list[RenderableType]:
        """The engines that share the streams, if there are several; and what nobody can take."""
        parts: list[RenderableType] = []
        if len(status.fleet) > 1:
            table = _table("engine", "streams", "room", "cannot take", "version")
            for each in status.fleet:
                name = plain(each.engine) + (
                    " (this one)" if each.is_this else " (leaving)" if each.leaving else ""
                )
                numbers = [str(number) for number in (len(each.streams), each.room, len(each.cannot))]
                table.add_row(Text(name), *numbers, Text(plain(each.version)))
            parts += [Text(), table]
        if status.unowned:
            names = plain(", ".join(status.unowned))
            parts.append(Text(f"no engine can take {names}", style="red", no_wrap=True, overflow="ellipsis"))
        return parts

    def _errors(self, status: Status) -> list[RenderableType]:
        lines: list[RenderableType] = [Text()]
        for each in status.errors[:ERRORS_SHOWN]:
            line = Text(no_wrap=True, overflow="ellipsis")
            line.append(f"{utc(each.at)} ", style="dim")
            line.append(each.level, style="yellow" if each.level == "warning" else "red")
            line.append(f" {plain(each.message)}" + (f" ({each.times} times)" if each.times > 1 else ""))
            line.append(f"  {plain(each.details)}", style="dim")
            lines.append(line)
        return lines if len(lines) > 1 else []


def _stream_table(width: int, *, show_header: bool) -> Table:
    """A table of streams; where it is narrow, without the last columns."""
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True, show_header=show_header)
    table.add_column("stream", no_wrap=True, overflow="ellipsis", ratio=1)
    left = width - 25
    for name, size in (("state", 8), ("events/s", 9), ("lag", 10), ("oplog left", 11), ("committed", 13)):
        left -= size + 1
        if left >= 0:
            table.add_column(name, no_wrap=True, width=size, justify="left" if name == "state" else "right")
    return table


def _table(*columns: str) -> Table:
    """A table with one line per row."""
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    for number, name in enumerate(columns):
        side: Literal["left", "right"] = "left" if number < 2 else "right"
        table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=None if number else 1, justify=side)
    return table


def _lines(part: RenderableType) -> int:
    """How many lines a part takes: rows never wrap."""
    if isinstance(part, Table):
        return part.row_count + bool(part.show_header)
    return sum(map(_lines, cast(Sequence[RenderableType], part.renderables))) if isinstance(part, Group) else 1


def _plot(values: Sequence[float] | deque[float], width: int) -> str:
    """The latest values, one per character; the top of the highest bar is their maximum."""
    latest = list(values)[-width:]
    most = max(latest, default=0.0) or 1.0
    return "".join(_BARS[min(7, int(value / most * 8))] for value in latest).rjust(width)


def _per_second(rate: float | None) -> str:
    if rate is None:
        return UNKNOWN
    return f"{rate:.1f}/s" if 0 < rate < 10 else f"{rate:,.0f}/s"


def _size(size_bytes: float | None) -> str:
    """As the page shows it."""
    if size_bytes is None:
        return UNKNOWN
    unit = 0
    while size_bytes >= 1024 and unit < 4:
        size_bytes, unit = size_bytes / 1024, unit + 1
    return f"{size_bytes:,.{int(unit > 0 and size_bytes < 10)}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def _duration(seconds: float | None) -> str:
    """As the page shows it."""
    if seconds is None:
        return UNKNOWN
    if seconds < 10:
        return f"{seconds:.1f} s"
    left = int(seconds)
    parts: list[tuple[int, str]] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= size or parts:
            parts.append((left // size, unit))
        left %= size
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number)
