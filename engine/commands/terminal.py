"""Output on a terminal: a short table that fits it, followed by the details of each item."""

from __future__ import annotations

import select
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from engine.plain import plain

INDENT = 2


class Terminal(Console):
    """The standard output."""

    def __init__(self, *, soft_wrap: bool = False) -> None:
        super().__init__(soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """Re-raise the current error, for ``engine.cli`` to handle; called inside an except clause."""
        raise  # noqa: PLE0704


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table with the essentials of each item; names too long for their column are folded."""
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(
            name, overflow="fold", justify="right" if name in ("behind", "events", "documents") else "left"
        )
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    Terminal().print(table)


def print_details(title: str, facts: Mapping[str, str]) -> None:
    """The facts about an item, one per line; empty ones are left out."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, fact in facts.items():
        if fact:
            grid.add_row(name, Text(plain(fact)))
    terminal = Terminal()
    terminal.print()
    terminal.print(Text(plain(title), style="bold", overflow="fold"))
    terminal.print(Padding(grid, (0, 0, 0, INDENT)))


def is_cut_off(stream: TextIO) -> bool:
    """Whether the reader of a pipe, or a terminal, is gone."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # not a file
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
