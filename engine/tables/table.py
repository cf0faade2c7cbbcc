"""What a table format has to offer, and how what has landed gets into a table exactly once.

A table records, in the same atomic commit that adds files, up to which segment of each stream it has them: its
*coverage*. Files are added only beyond that, whoever adds them: two engines that add the same files cannot both
succeed, because the second finds the table changed, reads its coverage again, and has nothing left to add. A
commit whose outcome is unknown is treated the same way. Formats' libraries must not repeat a commit by themselves:
they would add the files again without comparing.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from engine.errors import FatalError, HeadraceError, TransientError
from engine.failpoints import failpoint

FILES_MAX = 500  # of one commit
ATTEMPTS = 10
log = logging.getLogger("headrace")


class Bounds(NamedTuple):
    """Between which values the rows of a file are.

    Attributes:
        oldest, newest: of ``_cdc_timestamp``.
        first, last: of ``_cdc_id``, perhaps a little more than the rows have; both None if that is not known.
    """

    oldest: int
    newest: int
    first: str | None = None
    last: str | None = None


class DataFile(NamedTuple):
    """An object of the lake, to be named by a table.

    Attributes:
        stream, seq: the segment that it is of; "" and 0 for a file that is not of one.
        key: below ``sink.url``.
        size: in bytes.
        rows: at least one.
        day: of its events' cluster times, in UTC; None in a table that is not partitioned by it.
        schema: its columns, without metadata.
        version: of the schema; files of one version have the same columns.
    """

    stream: str
    seq: int
    key: str
    size: int
    rows: int
    day: datetime.date | None
    schema: pa.Schema
    version: int
    bounds: Bounds


class TableFile(NamedTuple):
    """A file that a table names.

    Attributes:
        key: below ``sink.url``.
        size: in bytes.
        day: of its events; None in a table that is not partitioned by it.
        bounds: None if they are not known.
        entry: the format's own description.
    """

    key: str
    size: int
    rows: int
    day: datetime.date | None
    bounds: Bounds | None
    entry: Any


class Table(Protocol):
    """One table. Errors are ``HeadraceError``s; ``ConflictError`` if somebody else has changed it meanwhile."""

    @property
    def identity(self) -> str:
        """Which table was last looked at, or made: one that was dropped and made again is another; "" for none."""

    @property
    def metadata_directory(self) -> str:
        """Where objects of its metadata are that may be left behind, below ``sink.url``; "" for nowhere."""

    def coverage(self) -> Mapping[str, int]:
        """The last segment of each stream whose files it has, as it stands now."""

    def files(self) -> Sequence[TableFile]:
        """The files that it had when its coverage was last read."""

    def commit(
        self,
        files: Sequence[DataFile],
        coverage: Mapping[str, int],
        removed: Sequence[TableFile] = (),
        *,
        same_rows: bool = False,
    ) -> None:
        """Add files that it does not have, remove others, and record coverage in one step, once or not at all.

        A table that is not there is made with its first file.

        Args:
            same_rows: the new files have the rows of those that are removed.
        """

    def expire(self, before: float) -> None:
        """Forget the versions that were no longer the present one at a time (in seconds since 1970)."""

    def unused(self, keys: Collection[str], before: float, beat: Callable[[], None]) -> Collection[str]:
        """Those of these objects that no version of the table since ``before`` names; none if that is not known.

        Args:
            keys: of objects below the table's root that were written before that time.
            beat: called now and then: there may be thousands of versions.
        """


class ConflictError(TransientError):
    """Somebody else has changed the table since its coverage was read, or the outcome is not known."""


class Added(NamedTuple):
    """What was added to a table."""

    commits: int = 0
    files: int = 0
    rows: int = 0


def add(table: Table, files: Sequence[DataFile]) -> Added:
    """Add those of these files that the table does not have.

    Args:
        files: of each segment, all that it has for this table; of each stream, all such segments up to the last.

    Raises:
        HeadraceError: it cannot be done, or cannot be done now.
    """
    done = Added()
    for attempt in range(1, ATTEMPTS + 1):
        coverage = table.coverage()
        left = [each for each in files if each.seq > coverage.get(each.stream, -1)]
        if not left:
            return done
        try:
            for group, reached in _groups(left):
                failpoint("before_table_commit")
                table.commit(group, reached)
                failpoint("after_table_commit")
                rows = sum(each.rows for each in group)
                done = Added(done.commits + 1, done.files + len(group), done.rows + rows)
            return done
        except ConflictError as error:
            if attempt == ATTEMPTS:
                raise
            log.debug("the table has changed: reading it again", extra={"fields": {"error": str(error)}})
    raise AssertionError("unreachable")


def _groups(files: Sequence[DataFile]) -> Iterator[tuple[list[DataFile], Mapping[str, int]]]:
    """The files in commits of about ``FILES_MAX``, of whole segments, with the coverage after each."""
    group: list[DataFile] = []
    reached: dict[str, int] = {}
    ordered = sorted(files, key=lambda each: (each.stream, each.seq, each.key))
    for (stream, seq), of_segment in groupby(ordered, key=lambda each: (each.stream, each.seq)):
        if len(group) >= FILES_MAX:
            yield group, reached
            group, reached = [], {}
        group += of_segment
        reached[stream] = seq
    if group:
        yield group, reached


def unknown_outcome(operation: str, error: BaseException) -> HeadraceError:
    """The error for a commit that may have happened."""
    return ConflictError(operation, first_line(error), "The table is read again.")


def unexpected(operation: str, error: BaseException) -> HeadraceError:
    """The error for what a library should not raise: one table's, so that the others go on."""
    remedy = "The lake has everything. Please report it, with the types of what is in the collection."
    return FatalError(operation, first_line(error), remedy)


def first_line(error: BaseException) -> str:
    """What a library's error says, without the statements and traces that some add."""
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"
