"""The lake compared with itself, and with what the state store knows of it.

What is checked: the segments of each stream are all there, once, in order (``segments``); each object's rows are
its segment's (``contents``); the state store has committed what is there, and what it has committed is there; a
finished backfill has the rows that it read.

Memory: the objects are sorted on disk, and read one after the other, small ones several at once.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from msgspec import Struct

from engine.core.backfill import Plan
from engine.core.naming import LAYOUTS, TABLE_SUFFIX, collection_directory, is_split, plan_of_split
from engine.core.records import StreamRecord
from engine.lake.audit.catalogue import Catalogue, Entry
from engine.lake.audit.contents import Contents, read_contents, twice
from engine.lake.audit.findings import Finding, Findings
from engine.lake.audit.segments import Known, Segments, Window
from engine.lake.objects import LakeObject, Objects, is_of

# Objects are read several at once as long as they have no more than this together: compressed, and as columns they
# may have ten times as much.
_AHEAD_BYTES = 2 * 2**20
_THREADS = 4

# Beside a table's objects are its metadata, which are not the engine's.
_OF_A_TABLE = re.compile(rf"[^/=]+/[^/=]+{TABLE_SUFFIX}/cdc_date=")

Namespace = tuple[str, str]
Watch = Callable[[str, int, int], None]


class Audited(Struct):
    """What was looked at.

    Attributes:
        rewinds: where a stream was rewound, on purpose: the first segment after that, by stream.
    """

    streams: int = 0
    segments: int = 0
    objects: int = 0
    rows: int = 0
    size: int = 0
    rewinds: dict[str, list[int]] = {}


class Auditor:
    """Compares a lake with itself.

    Args:
        state: reads all records of the state store, and the plans of backfills; None for not to compare with it.
        collections: those whose rows to look at, and whose streams; None for all.
        watch: called with what is being done, how much of it is done, and of how much.

    Attributes:
        namespaces: the collections that rows have been found of.
    """

    def __init__(
        self,
        objects: Objects,
        state: Callable[[], tuple[Mapping[str, StreamRecord], Sequence[Plan]]] | None,
        collections: Sequence[Namespace] | None,
        window: Window,
        findings: Findings,
        watch: Watch,
    ) -> None:
        self._objects = objects
        self._state = state
        self._collections = collections
        self._window = window
        self._findings = findings
        self._watch = watch
        self._audited = Audited()
        self._split_rows: Counter[str] = Counter()
        self._dead: set[str] = set()
        self.namespaces: set[Namespace] = set()

    def run(self) -> Audited:
        """Compare.

        Raises:
            HeadraceError: of the sink or the state store.
        """
        before = self._state() if self._state is not None else None
        with Catalogue() as catalogue, ThreadPoolExecutor(_THREADS, thread_name_prefix="contents") as pool:
            catalogue.add(self._listed())
            objects, size = catalogue.totals()
            read = 0

            def footers(more: int) -> None:
                nonlocal read
                read += more
                self._watch("footers", read, objects)

            catalogue.read_footers(self._objects, footers)
            after = self._state() if self._state is not None else None
            seen = set()
            for stream, segments in catalogue.streams():
                seen.add(stream)
                known = _known(stream, before, after)
                self._stream(stream, known, segments, pool, size)
            if before is not None:
                self._unseen(before[0], seen)
                self._backfills(before[1])
        return self._audited

    def _listed(self) -> Iterator[tuple[LakeObject, bool]]:
        for number, each in enumerate(self._objects.everything()):
            if number % 1000 == 0:
                self._watch("objects", number, 0)
            if isinstance(each, LakeObject):
                yield each, self._is_wanted(each)
            elif self._is_among_objects(each):
                what = "the engine did not write it, and whoever queries the collection reads it"
                self._findings.add(Finding("foreign", "the lake", what, each))

    def _is_among_objects(self, key: str) -> bool:
        """Whether queries would take a file for an object, of the wanted collections."""
        name = key.rpartition("/")[2]
        if not name or name.startswith((".", "_")):  # consoles make an empty object for a directory
            return False
        # Whoever reads a directory reads all of its files, whatever the ends of their names.
        below = re.sub("^[0-9a-f]{4}/", "", key)
        if self._collections is None:
            homes = [each.database for each in LAYOUTS if each.database]
            return below.startswith(tuple(homes)) or _OF_A_TABLE.match(below) is not None
        homes = [collection_directory(*pair, each) for pair in self._collections for each in LAYOUTS]
        in_table = [f"{each}cdc_date=" if each.endswith(f"{TABLE_SUFFIX}/") else each for each in homes]
        return below.startswith(tuple(in_table))

    def _is_wanted(self, each: LakeObject) -> bool:
        if self._collections is None:
            return True
        return not each.parts.dead_letter and any(is_of(each, *pair) for pair in self._collections)

    def _stream(
        self,
        stream: str,
        known: Known | None,
        segments: Iterator[list[Entry]],
        pool: ThreadPoolExecutor,
        size: int,
    ) -> None:
        self._audited.streams += 1
        checks = Segments(stream, known, from_start=self._window.since is None)
        ahead = _Ahead(self._objects, pool)
        for entries in segments:
            found = list(checks.check(entries))
            if not self._window.has(entries):
                continue
            self._add(found)
            self._audited.segments += 1
            self._audited.objects += len(entries)
            footers = (each.footer for each in entries if each.footer is not None and each.wanted)
            self.namespaces |= {
                (each.database, each.collection) for each in footers if each.database and each.collection
            }
            for done in ahead.push([each for each in entries if each.wanted and each.footer is not None]):
                self._rows(done, size)
        for done in ahead.rest():
            self._rows(done, size)
        if self._window.until is None:
            self._add(checks.end())
        if checks.rewinds:
            self._audited.rewinds[stream] = checks.rewinds
        if is_split(stream):
            self._split_rows[plan_of_split(stream)] += checks.rows
            if checks.letters:
                self._dead.add(plan_of_split(stream))

    def _rows(self, segment: list[tuple[Entry, Contents]], size: int) -> None:
        for entry, contents in segment:
            self._add(contents.findings)
            self._audited.rows += contents.rows
            self._audited.size += entry.object.size
        self._watch("rows", self._audited.size, size)
        if (count := twice([contents for _, contents in segment])) and segment:
            entry = segment[-1][0]
            where = f"segment {entry.object.parts.seq} of {entry.object.parts.stream}"
            self._findings.add(Finding("token_twice", where, f"{count} of its events are in two of its objects"))

    def _add(self, findings: Iterator[Finding] | list[Finding]) -> None:
        for each in findings:
            self._findings.add(each)

    def _unseen(self, records: Mapping[str, StreamRecord], seen: set[str]) -> None:
        """Streams that have committed segments, and no object."""
        for stream, record in records.items():
            if stream in seen or record.spec is None or not self._concerns(record):
                continue
            if self._window == Window():
                self._add(Segments(stream, Known(record, record), from_start=True).end())

    def _concerns(self, record: StreamRecord) -> bool:
        spec = record.spec
        if self._collections is None or spec is None:
            return True
        # The objects of a stream of several collections may all be of others.
        return len(spec.collections) == 1 and any(spec.covers(*pair) for pair in self._collections)

    def _backfills(self, plans: Sequence[Plan]) -> None:
        """A finished backfill has as many rows as it read documents."""
        for plan in plans:
            is_mine = self._collections is None or (plan.database, plan.collection) in self._collections
            if not plan.finished or not is_mine or self._window != Window() or plan.id in self._dead:
                continue
            rows = self._split_rows[plan.id] - (plan.mark() is not None)
            if rows < plan.read:
                what = f"it has {rows} rows of the {plan.read} documents that were read"
                self._findings.add(Finding("rows_lost", f"the backfill {plan.id} of {plan.namespace}", what))


def _known(
    stream: str,
    before: tuple[Mapping[str, StreamRecord], Sequence[Plan]] | None,
    after: tuple[Mapping[str, StreamRecord], Sequence[Plan]] | None,
) -> Known | None:
    if before is None or after is None:
        return None
    return Known(before[0].get(stream), after[0].get(stream))


class _Ahead:
    """Reads the objects of segments, small ones several at once, and gives the segments back in order."""

    def __init__(self, objects: Objects, pool: ThreadPoolExecutor) -> None:
        self._objects = objects
        self._pool = pool
        self._begun: deque[list[tuple[Entry, Future[Contents]]]] = deque()
        self._size = 0

    def push(self, entries: list[Entry]) -> Iterator[list[tuple[Entry, Contents]]]:
        """Begin to read the objects of a segment; the segments that are done."""
        segment: list[tuple[Entry, Future[Contents]]] = []
        for each in entries:
            while self._begun and self._size + each.object.size > _AHEAD_BYTES:
                yield self._pop()
            if self._size + each.object.size > _AHEAD_BYTES:
                for _, begun in segment:
                    begun.result()
            self._size += each.object.size
            segment.append((each, self._pool.submit(read_contents, self._objects, each)))
        if segment:
            self._begun.append(segment)

    def rest(self) -> Iterator[list[tuple[Entry, Contents]]]:
        """The segments that are left."""
        while self._begun:
            yield self._pop()

    def _pop(self) -> list[tuple[Entry, Contents]]:
        segment = [(entry, begun.result()) for entry, begun in self._begun.popleft()]
        self._size -= sum(entry.object.size for entry, _ in segment)
        return segment
