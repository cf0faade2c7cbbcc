"""A simulated world around the real core: MongoDB, the state store, the lake, and the processes of engines.

Everything that could happen next is a step, and the seed picks one at a time. Each channel keeps its order, as
pipes do, and nothing else is ordered. Processes are killed, engines are paused past their lease while their
children continue, orphans finish their work, and replays see a different selection if a pipeline filters on
looked-up documents.

Tokens are like those of real servers: with type bits for some keys, in two versions, and with a fragment number
if the server splits events, which may differ when the event is read again. Events are identified by their
numbers here, never by the engine's own interpretation of tokens.

After every step that changes the lake, no event may be in two objects; at the end, none may be missing.
"""

from __future__ import annotations

import copy
import random
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import bson
import msgspec

from engine.core import actions as act
from engine.core import messages as msg
from engine.core import rebuild
from engine.core.actions import Child
from engine.core.backfill import END, Plan, Selection, encode_plan, is_end, make_place, plan_document, split_place
from engine.core.coordinator import Coordinator
from engine.core.generations import Generation
from engine.core.ledger import first_segment
from engine.core.lifecycle import Stage
from engine.core.messages import ObjectName
from engine.core.naming import is_split, number_in, object_key, partition_of, split_id
from engine.core.position import Position, make_time
from engine.core.records import read_record
from engine.core.restarts import RetryPolicy
from engine.core.segments import Limits, SegmentEnd, Segmenter
from engine.core.specs import BackfillSpec, MarkSpec, Spec, SplitSpec, StreamSpec
from engine.core.store import FleetSeen, FromStore, LeaseDenied, LeaseLost, LeaseTaken, StateRead, Written
from engine.core.stream import Settings
from engine.errors import LeaseLostError, TransientError
from engine.state.lake import LakeStore
from engine.state.seam import HeldElsewhere, Lease
from tests.sim.conditional import ChaoticObjects, Connection

STREAM = "shop.orders"
LEASE_TTL_S = 10.0
TROUBLE = "something that will not pass"
REPLACED = "shop.replaced"
UNSURVEYED = (Stage.WAITING, Stage.ACQUIRED, Stage.SURVEYING)


@dataclass(frozen=True)
class Event:
    """A change event; a fickle one may or may not pass the pipeline each time it is read.

    Attributes:
        number: its position in the stream.
        index: within its transaction.
        key: what kind of key its document has: ``plain``, or ``long``, whose tokens have type bits.
        large: whether servers that can split events split it.
    """

    number: int
    time: int
    collection: str
    fickle: bool
    index: int = 0
    key: str = "plain"
    large: bool = False


def is_rename(event: Event) -> bool:
    """Whether the event replaces a collection; a pipeline does not filter such events."""
    return event.number % 5 == 0 and not event.fickle


@dataclass
class Replies:
    """The events of one reply with their tokens, as the segmenter sees them."""

    events: Sequence[tuple[Event, str]]
    ends_invalidated: bool = False

    def __len__(self) -> int:
        return len(self.events)

    def token_at(self, row: int) -> str:
        return self.events[row][1]

    @property
    def offsets(self) -> Sequence[int]:
        return range(0, 10 * len(self.events) + 1, 10)


class Mongo:
    """A growing stream of events, which can be read again from any token that it has returned.

    State: the events, the current version of tokens, and for every token returned so far the number of the last
    event up to it.
    """

    def __init__(self, rng: random.Random, count: int) -> None:
        self._rng = rng
        self.to_come = count
        self.events: list[Event] = []
        self.version = rng.choice((1, 1, 2))
        self.given: dict[str, int] = {"": -1}
        self._seconds = 1_800_000_000
        self._increment = 0
        self._index = 0
        self._passed = False  # a token after the last event was returned: its transaction is over

    def append(self) -> None:
        """Append an event, sometimes in another hour, or in the transaction of the previous one."""
        roll = self._rng.random()
        self._index += 1
        if roll < 0.8 or self._passed:
            self._increment, self._index = self._increment + 2, 0
        if roll < 0.03:
            self._seconds += 1800
        self._passed = False
        time = make_time(self._seconds, self._increment)
        key = self._rng.choice(("plain", "long"))
        fickle, large = self._rng.random() < 0.08, self._rng.random() < 0.1
        collection = self._rng.choice(("orders", "items"))
        self.events.append(Event(len(self.events), time, collection, fickle, self._index, key, large))
        self.to_come -= 1

    def read(self, after: Position, most: int) -> tuple[list[tuple[Event, str]], str]:
        """Events after a position that pass the pipeline this time, and the token scanned up to."""
        start = self.given[after.token] + 1  # a server only finds tokens that it has returned
        scanned = [(event, self._token(event)) for event in self.events[start : start + most]]
        passing = [each for each in scanned if not each[0].fickle or self._rng.random() < 0.5]
        if self.events and start + most >= len(self.events) and self._rng.random() < 0.3:
            return passing, self._point_behind_all()
        return passing, scanned[-1][1] if scanned else after.token

    def _token(self, event: Event) -> str:
        key = f"461E5F6964002D{event.number:06X}00"
        if self.version == 2:
            insert = "463C6F7065726174696F6E54797065003C696E7365727400"
            key = f"{insert}46646F63756D656E744B657900{key}00"
            if event.large:
                key += self._rng.choice(("", "29", "2B02", "2B04"))
        index = f"2C{2 * event.index:04X}" if event.index else "29"
        head = f"82{event.time:016X}2B0{2 * self.version}2C0100{index}6E"
        token = f"{head}5A1004{'0123456789ABCDEF' * 2}{key}04"
        if event.key == "long":
            token += f":{bson.encode({'_data': token, '_typeBits': b'bits'}).hex()}"
        self.given[token] = event.number
        return token

    def _point_behind_all(self) -> str:
        """A token between events, as servers return it after scanning everything."""
        last = self.events[-1]
        token = f"82{last.time + 1:016X}2B0{2 * self.version}29296E{'14' if self.version == 2 else ''}04"
        self.given[token], self._passed = last.number, True
        return token


@dataclass
class StoredStream:
    epoch: int = 0
    owner: str = ""
    expires_at: float = 0.0
    fields: dict[str, str] = field(default_factory=dict)


Landed = tuple[str, int]


class Lake:
    """Objects, their footers, and their events, by stream and number; fails at once if an event is in two.

    An event that was read again after a rewind is in one object for each line.
    """

    def __init__(self) -> None:
        self.objects: dict[str, tuple[Landed, ...]] = {}
        self.footers: dict[str, rebuild.Landed] = {}

    def put(self, key: str, events: Sequence[Landed], footer: rebuild.Landed) -> None:
        self.objects[key], self.footers[key] = tuple(events), footer
        seen: dict[tuple[Landed, int], str] = {}
        for other, others in self.objects.items():
            for event in others:
                line = self.line_of(other)
                assert (event, line) not in seen, f"{event} is in {seen[event, line]} and in {other}"
                seen[event, line] = other

    def line_of(self, key: str) -> int:
        footer = self.footers[key].footer
        return footer.line if footer else 0

    def events(self, line: int | None = None) -> set[Landed]:
        return {
            event
            for key, events in self.objects.items()
            if line is None or self.line_of(key) == line
            for event in events
        }


class PlayedReader:
    """Simulates ``engine.processes.reader``, one message or one step at a time."""

    def __init__(self, world: World, outbox: deque[msg.FromChild]) -> None:
        self._world = world
        self.outbox = outbox
        outbox.append(msg.ReaderReady("rs0", "6.0", 0))
        self._segmenter: Segmenter | None = None
        self._generation = -1
        self._position = Position()
        self._events = Replies([])
        self._row = 0
        self._asked: tuple[int, int, int] | None = None  # row after the batch, rows, seq
        self._cut_after: SegmentEnd | None = None
        self._renames: list[int] = []  # in the open segment
        self._finishing = False
        self._replay_only = False
        self._scanned = ""
        self._done = False
        self._spec: Spec = StreamSpec("", "collection")

    def receive(self, message: msg.ToChild) -> None:
        match message:
            case msg.Assign():
                self._assign(message)
            case msg.Unassign():
                self._segmenter, self._asked = None, None
            case msg.Grant():
                self._fill(message)
            case msg.CutNow():
                if self._segmenter and self._asked is None and message.generation == self._generation:
                    self._report(self._segmenter.flush("memory"))
            case msg.Finish():
                self._finishing = True

    def _assign(self, message: msg.Assign) -> None:
        self._generation, self._spec = message.generation, message.spec
        self._position = message.start or Position("", self._world.start_time)
        self.outbox.append(msg.Started(self._generation, None if message.start else self._position))
        limits = Limits(self._world.segment_rows, 10**9, 5.0)
        next_seq = first_segment(self._position) if message.next_seq is None else message.next_seq
        self._segmenter = Segmenter(limits, next_seq, message.replay, None, self._position)
        self._events, self._row, self._asked, self._cut_after = Replies([]), 0, None, None
        self._renames = []
        self._finishing = self._done = False
        self._replay_only = message.replay_only
        self._scanned = self._position.token

    def _report(self, end: SegmentEnd | None) -> None:
        if end is not None:
            replaced = tuple(msg.Replaced(REPLACED, number) for number in self._renames)
            self._renames = []
            intent = msgspec.structs.replace(end.intent, replaced=replaced)
            self.outbox.append(msg.SegmentCut(self._generation, intent, end.reason))

    def _fill(self, grant: msg.Grant) -> None:
        """Write the batch into the slab and hand it over, even if it has become void meanwhile."""
        rows = 0
        seq = 0
        if self._asked is not None and grant.generation == self._generation:
            stop, rows, seq = self._asked
            taken = [event for event, _ in self._events.events[stop - rows : stop]]
            self._world.arena[self._world.slab_key(self, grant.offset)] = taken
        ready = msg.BatchReady(grant.generation, seq, grant.offset, grant.size, rows, rows * 10)
        self.outbox.append(ready)
        if self._asked is not None and grant.generation == self._generation:
            self._row, self._asked = self._asked[0], None
            self._report(self._cut_after)
            self._cut_after = None

    def can_step(self) -> bool:
        return self._segmenter is not None and self._asked is None and not self._done

    def fail(self) -> None:
        """Fail with a lasting error."""
        self._segmenter = None
        self.outbox.append(msg.Failed("fatal", "read", TROUBLE, "", self._spec.stream, self._generation))

    def step(self) -> None:
        """Take some of what was read, read more, or cut the segment for its age."""
        segmenter = self._segmenter
        assert segmenter is not None
        now = self._world.now
        if self._row < len(self._events):
            stop = segmenter.reach(self._events, self._row, self._world.rng.randrange(1, 6))
            if stop > self._row and self._world.rng.random() < 0.05:
                self._report(segmenter.flush("schema"))
            seq, rows = segmenter.seq, stop - self._row
            end = segmenter.take(self._events, self._row, stop, now)
            taken = [event for event, _ in self._events.events[self._row : stop]]
            self._renames += [event.number for event in taken if is_rename(event)]
            if rows:
                self._asked = (stop, rows, seq)
                self._cut_after = end
                self.outbox.append(msg.SlabRequest(self._generation, seq, 100 * rows))
            else:
                self._report(end)
            return
        self._report(segmenter.scanned(self._scanned))
        self._report(segmenter.expired(now))
        ends = self._finishing or self._replay_only or self._scanned == END
        if ends and not segmenter.replaying:
            self._report(segmenter.flush("finish"))
            self._done = True
            at = Position(self._scanned, 0) if self._scanned else None
            self.outbox.append(msg.Finished(self._generation, at))
            return
        if not segmenter.is_open and not segmenter.replaying and self._scanned and self._world.rng.random() < 0.2:
            self.outbox.append(msg.Idle(self._generation, Position(self._scanned, 0)))
        after = Position(self._scanned, self._position.time)
        events, self._scanned = self._world.read(self._spec, after, self._world.rng.randrange(1, 12))
        self._events, self._row = Replies(events), 0


class PlayedWriter:
    """Simulates ``engine.processes.writer``; uploads become visible one at a time, each in its own step."""

    def __init__(self, world: World, outbox: deque[msg.FromChild], slabs_of: Callable[[int], Sequence[Event]]):
        self._world = world
        self.outbox = outbox
        self._slabs_of = slabs_of
        outbox.append(msg.WriterReady())
        self._open: dict[tuple[str, int, int], list[Event]] = {}
        self._sealed: dict[tuple[str, int, int], dict[str, list[Landed]]] = {}
        self._footers: dict[tuple[str, int, int], rebuild.Footer] = {}
        self.uploads: deque[tuple[str, list[Landed], rebuild.Landed] | msg.Published] = deque()

    def receive(self, message: msg.ToChild) -> None:
        match message:
            case msg.Batch():
                rows = self._open.setdefault((message.stream, message.generation, message.seq), [])
                rows.extend(self._slabs_of(message.offset))
                self.outbox.append(msg.SlabFreed(message.offset))
            case msg.Seal():
                self._seal(message)
            case msg.Publish():
                segment = message.stream, message.generation, message.seq
                objects, footer = self._sealed.pop(segment), self._footers.pop(segment)
                names = {key: ObjectName(key, "shop", key.partition("collection=")[2]) for key in objects}
                self.uploads.extend(
                    (key, events, rebuild.Landed(message.seq, names[key], footer))
                    for key, events in objects.items()
                )
                self.uploads.append(msg.Published(message.stream, message.generation, message.seq))
            case msg.Survey():
                self._survey(message)
            case msg.Abandon():
                for table in (self._open, self._sealed, self._footers):
                    for key in [key for key in table if key[0] == message.stream and key[1] < message.generation]:
                        del table[key]  # type: ignore[attr-defined]

    def _seal(self, message: msg.Seal) -> None:
        if self._world.rng.random() < self._world.upload_failures:
            failed = msg.Failed("transient", "upload", "503", "", message.stream, message.generation)
            self._open.pop((message.stream, message.generation, message.intent.seq), None)
            self.outbox.append(failed)
            return
        rows = self._open.pop((message.stream, message.generation, message.intent.seq), [])
        objects: dict[str, list[Landed]] = {name.key: [] for name in message.intent.objects}
        names = {name.key: name for name in message.intent.objects}
        for event in rows:
            partition = partition_of(event.time, "hour")
            key = object_key(message.stream, message.intent.seq, "shop", event.collection, partition)
            objects.setdefault(key, []).append((message.stream, event.number))
            names.setdefault(key, ObjectName(key, "shop", event.collection))
        self._sealed[message.stream, message.generation, message.intent.seq] = objects
        self._footers[message.stream, message.generation, message.intent.seq] = rebuild.Footer(
            message.intent.first_token,
            message.intent.end,
            message.after,
            len(objects),
            message.line,
            message.replaced,
        )
        listed = tuple(sorted(names.values()))
        size = len(rows)
        self.outbox.append(msg.Sealed(message.stream, message.generation, message.intent.seq, listed, size))

    def _survey(self, asked: msg.Survey) -> None:
        stream = asked.spec.stream
        numbers = {key: number_in(key, stream) for key in self._world.lake.objects}
        beyond = [key for key, number in numbers.items() if number is not None and number > asked.known]
        self.outbox.append(msg.Surveyed(stream, asked.generation, min(beyond, default=None)))

    def can_step(self) -> bool:
        return bool(self.uploads)

    def step(self) -> None:
        """One upload is completed and acknowledged."""
        upload = self.uploads.popleft()
        if isinstance(upload, msg.Published):
            self.outbox.append(upload)
        else:
            self._world.lake.put(*upload)


@dataclass
class Orphan:
    """A child whose supervisor is dead; it takes some more steps before it notices."""

    process: PlayedReader | PlayedWriter
    inbox: deque[msg.ToChild]
    steps_left: int

    def can_step(self) -> bool:
        return self.steps_left > 0 and (bool(self.inbox) or self.process.can_step())

    def step(self) -> None:
        self.steps_left -= 1
        if self.process.can_step() and (not self.inbox or self.process._world.rng.random() < 0.5):
            self.process.step()
        else:
            self.process.receive(self.inbox.popleft())


class Engine:
    """One supervisor with its children, their pipes, and its queue of writes to the state store."""

    def __init__(self, world: World, name: str, writers: int) -> None:
        self.world = world
        self.name = name
        settings = Settings(
            writers=writers,
            arena_size=1 << 16,
            lease_ttl_s=LEASE_TTL_S,
            retry=RetryPolicy(10**6, 0.1, 1.0),
            hang_timeout_s=10**9,
            drain_timeout_s=10**9,
            start_at="now",
            on_history_lost="fail",
            sink="lake",
            pool=world.pool,
            fleet=world.fleet,
        )
        self.coordinator = Coordinator(settings, world.streams(), world.rng)
        self.coordinator.load(world.splits(), {})
        self.children: dict[Child, PlayedReader | PlayedWriter] = {}
        self.inboxes: dict[Child, deque[msg.ToChild]] = {}
        self.store_queue: deque[act.Action] = deque()
        self.store_results: deque[FromStore] = deque()
        self.starting: deque[Child] = deque()
        self.failed_starts: deque[Child] = deque()
        self.dead_children: deque[Child] = deque()
        self.epochs: dict[str, int] = {}
        self.paused_until = 0.0
        self.exited: act.Exit | None = None
        self._ticked_at = -1.0
        self.perform(self.coordinator.start(world.now))

    def perform(self, actions: Sequence[act.Action]) -> None:
        """Simulate what the supervisor does with each action."""
        for action in actions:
            match action:
                case act.Spawn(child):
                    self.starting.append(child)
                case act.Kill(child):
                    self.kill_child(child)
                case act.Send(child, msg.Stop()):
                    self.kill_child(child)
                case act.Send(child, message):
                    if child in self.inboxes:
                        self.inboxes[child].append(message)
                case (
                    act.Acquire()
                    | act.Renew()
                    | act.Release()
                    | act.Write()
                    | act.ReadState()
                    | act.Announce()
                    | act.Leave()
                ):
                    self.store_queue.append(action)
                case act.Exit():
                    self.exited = action

    def _start(self) -> None:
        """Start the next child, or fail to."""
        child = self.starting.popleft()
        if self.world.rng.random() < 0.1:
            self.failed_starts.append(child)
            return
        outbox: deque[msg.FromChild] = deque()
        self.inboxes[child] = deque()
        if child.role == "reader":
            reader = PlayedReader(self.world, outbox)
            self.world.reader_engine[id(reader)] = self
            self.children[child] = reader
        else:
            self.children[child] = PlayedWriter(self.world, outbox, lambda at: self.world.arena[id(self), at])

    def kill_child(self, child: Child) -> None:
        """The process is gone at once; its messages still arrive, followed by the notice of its exit.

        One that is still being started is given up.
        """
        if child in self.starting:
            self.starting.remove(child)
            self.failed_starts.append(child)
        elif child in self.children and child not in self.dead_children:
            self.dead_children.append(child)

    def readers_at_work(self) -> list[PlayedReader]:
        """Readers that could meet a lasting error."""
        alive = [process for child, process in self.children.items() if child not in self.dead_children]
        return [each for each in alive if isinstance(each, PlayedReader) and each.can_step()]

    def steps(self) -> list[Callable[[], None]]:
        """All possible next steps of this engine."""
        possible: list[Callable[[], None]] = []
        awake = self.world.now >= self.paused_until and self.exited is None
        for child, process in self.children.items():
            dead = child in self.dead_children
            if not dead and self.inboxes[child]:
                possible.append(lambda c=child, p=process: p.receive(self.inboxes[c].popleft()))  # type: ignore[misc]
            if not dead and process.can_step() and not self.world.lags(child.role):
                possible.append(process.step)
            if awake and process.outbox and not self.world.lags("pipes"):
                possible.append(lambda c=child, p=process: self._hear(c, p))  # type: ignore[misc]
            elif awake and dead:
                possible.append(lambda c=child: self._bury(c))  # type: ignore[misc]
        if self.store_queue and not self.world.lags("store"):
            possible.append(self._store_step)
        if awake and self.starting:
            possible.append(self._start)
        if awake and self.failed_starts:
            possible.append(lambda: self._bury_unborn(self.failed_starts.popleft()))
        if awake and self.store_results:
            possible.append(self._hear_store)
        if awake and self.world.now > self._ticked_at:
            possible.append(self._tick)
        return possible

    def _hear(self, child: Child, process: PlayedReader | PlayedWriter) -> None:
        self.perform(self.coordinator.from_child(child, process.outbox.popleft(), self.world.now))

    def _hear_store(self) -> None:
        answer = self.store_results.popleft()
        self.perform(self.coordinator.from_store(answer, self.world.now))

    def _bury(self, child: Child) -> None:
        self.dead_children.remove(child)
        del self.children[child], self.inboxes[child]
        self.perform(self.coordinator.child_exited(child, -9, self.world.now))

    def _bury_unborn(self, child: Child) -> None:
        self.perform(self.coordinator.child_exited(child, None, self.world.now))

    def _tick(self) -> None:
        self._ticked_at = self.world.now
        self.perform(self.coordinator.tick(self.world.now))

    def _store_step(self) -> None:
        """The next queued operation reaches the store, fenced by this engine's epoch."""
        action = self.store_queue.popleft()
        records, now = self.world.records, self.world.now
        match action:
            case act.Acquire(stream, document):
                stored = records[stream]
                if stored.owner and stored.owner != self.name and stored.expires_at > now:
                    self.store_results.append(LeaseDenied(stream, stored.owner, stored.expires_at - now))
                    return
                stored.epoch += 1
                stored.owner, stored.expires_at = self.name, now + LEASE_TTL_S
                self.epochs[stream] = stored.epoch
                text = self.world.documents.get(document or "")
                self.store_results.append(LeaseTaken(stream, dict(stored.fields), text))
            case act.Renew(streams):
                for stream in streams:
                    if self._is_ours(stream):
                        records[stream].expires_at = now + LEASE_TTL_S
            case act.Release(streams):
                for stream in streams:
                    if self.epochs.get(stream) == records[stream].epoch:
                        records[stream].owner = ""
            case act.ReadState(about):
                found = {name: (dict(each.fields), each.owner) for name, each in records.items()}
                self.store_results.append(StateRead(about, found))
            case act.Announce(member):
                self.world.announced[self.name] = msgspec.json.encode(member).decode(), now + LEASE_TTL_S
                living = {name: text for name, (text, until) in self.world.announced.items() if until > now}
                self.store_results.append(FleetSeen(self.name, living, self.world.generations))
            case act.Leave():
                self.world.announced.pop(self.name, None)
            case act.Write(stream, generation, change, kind, seq):
                if not self._is_ours(stream):
                    return
                stored = records[stream]
                before = stored.fields.get("position")
                stored.fields.update(change.put)
                for name in change.remove:
                    stored.fields.pop(name, None)
                self.world.check_commit(stream, before)
                self.store_results.append(Written(stream, generation, kind, seq))

    def _is_ours(self, stream: str) -> bool:
        """Whether the epoch is still ours; if not, tell the coordinator."""
        if self.epochs.get(stream) == self.world.records[stream].epoch:
            return True
        self.store_results.append(LeaseLost(stream))
        return False


class World:
    """One run, determined by its seed.

    Args:
        seed: decides everything.
        events: how many there will be in all.
        faults: the maximum number of faults.
    """

    def __init__(self, seed: int, *, events: int = 40, faults: int = 5) -> None:
        self.rng = rng = random.Random(seed)
        self.now = 0.0
        self.mongo = Mongo(rng, events)
        self.start_time = make_time(1_700_000_000, 0)
        self.lake = Lake()
        self.records: dict[str, StoredStream] = defaultdict(StoredStream)
        self.announced: dict[str, tuple[str, float]] = {}
        self.arena: dict[tuple[int, int], Sequence[Event]] = {}
        self.reader_engine: dict[int, Engine] = {}
        self.segment_rows = rng.randrange(2, 12)
        self.upload_failures = rng.choice((0.0, 0.0, 0.1))
        self._writers = rng.randrange(1, 4)
        # In each world one thing is slow, so that everything else runs far ahead of it.
        self.slow = rng.choice(("", "store", "reader", "writer", "pipes"))
        self._faults_left = rng.randrange(faults + 1)
        self.pipeline = "[]"
        self.engines = [self.engine_kind(self, "engine-0", self._writers)]
        self.orphans: list[Orphan] = []
        self.orphan_stores: list[Engine] = []
        self.steps_taken = 0
        self.refusals = 0

    pool = 0
    fleet: Generation | None = None
    generations: str | None = None
    engine_kind: type[Engine] = Engine
    documents: Mapping[str, str] = {}  # shared documents, by name

    def streams(self) -> list[StreamSpec]:
        """The change streams of an engine that starts now."""
        return [StreamSpec(STREAM, "collection", pipeline=self.pipeline)]

    def splits(self) -> list[BackfillSpec]:
        """The splits left to read for an engine that starts now."""
        return []

    def read(self, _: Spec, after: Position, most: int) -> tuple[list[tuple[Event, str]], str]:
        """The reply to a getMore of this stream after a position, and the token scanned up to."""
        return self.mongo.read(after, most)

    def reached(self, _: str, position: Position | None) -> int:
        """The number of the last event of a stream up to a position."""
        return self.mongo.given[position.token] if position is not None else -1

    def lags(self, what: str) -> bool:
        """Whether this part is the slow one, and has to wait this time."""
        return self.slow == what and self.rng.random() < 0.8

    def slab_key(self, reader: PlayedReader, offset: int) -> tuple[int, int]:
        """The key of a slab: slabs are in the arena of the reader's engine."""
        return id(self.reader_engine[id(reader)]), offset

    def check_commit(self, stream: str, before: str | None) -> None:
        """Every event up to the committed token that is always selected must be in the lake."""
        after = self.records[stream].fields.get("position")
        if after is None or after == before:
            return
        reached = self.reached(stream, read_record(self.records[stream].fields).position)
        landed = self.lake.events()
        for event in self.events_of(stream):
            if event.number <= reached and not event.fickle:
                assert (stream, event.number) in landed, f"{event} is committed, but in no object"
        if not is_split(stream):
            renames = [event.number for event in self.events_of(stream) if is_rename(event)]
            last = max((number for number in renames if number <= reached), default=0)
            told = read_record(self.records[stream].fields).replaced.get(REPLACED, 0)
            assert told >= last, f"event {last} has replaced a collection, but the record does not say so"

    def known_streams(self) -> Sequence[str]:
        """The streams that have a record."""
        return list(self.records)

    def events_of(self, _: str) -> Sequence[Event]:
        """All events that a stream will ever have."""
        return self.mongo.events

    def after_step(self) -> None:
        """Called after each step."""

    def run(self, steps_max: int = 20_000) -> None:
        """Run until everything has landed; then every event must be in the lake once."""
        while self.steps_taken < steps_max:
            self.steps_taken += 1
            steps = [step for engine in self.engines for step in engine.steps()]
            steps += [orphan.step for orphan in self.orphans if orphan.can_step()]
            steps += [engine._store_step for engine in self.orphan_stores if engine.store_queue]
            if self.mongo.to_come and self.rng.random() < 0.1:
                self.mongo.append()
            elif not steps or self.rng.random() < 0.05:
                self.now += self.rng.random() * 2
            else:
                self.rng.choice(steps)()
            for engine in [engine for engine in self.engines if engine.exited]:
                self._end_engine(engine)
            self.after_step()
            if self._faults_left and self.rng.random() < 0.02:
                self._faults_left -= 1
                self._fault()
            if not self.mongo.to_come and not self._faults_left and self._is_done():
                break
        else:
            raise AssertionError(f"not done after {steps_max} steps: {self.engines[-1].coordinator.streams}")
        events = [(stream, event) for stream in self.known_streams() for event in self.events_of(stream)]
        missing = {(stream, event.number) for stream, event in events if not event.fickle} - self.lake.events()
        assert not missing, f"missing from the lake: {sorted(missing)}"

    faults: tuple[str, ...] = (*3 * ["child"], "engine", "pause", "second", "drain", "upgrade", "trouble")

    def _fault(self) -> None:
        engine = self.rng.choice(self.engines)
        match self.rng.choice(self.faults):
            case "upgrade":
                self.mongo.version = 2
            case "child" if victims := [*engine.children, *engine.starting]:
                engine.kill_child(self.rng.choice(victims))
            case "trouble" if readers := engine.readers_at_work():
                self.rng.choice(readers).fail()
            case "drain":
                engine.perform(engine.coordinator.shut_down(self.now))
            case "engine":
                self._kill_engine(engine)
            case "pause":
                engine.paused_until = self.now + self.rng.random() * 3 * LEASE_TTL_S
            case "second" if len(self.engines) < 2:
                self._start_engine()

    def _kill_engine(self, engine: Engine) -> None:
        """The supervisor dies, its children may finish their work, and another engine is started."""
        self.engines.remove(engine)
        self.orphans += [
            Orphan(process, engine.inboxes[child], self.rng.randrange(20))
            for child, process in engine.children.items()
            if child not in engine.dead_children
        ]
        sent = self.rng.randrange(len(engine.store_queue) + 1)  # operations already sent still arrive
        engine.store_queue = deque(list(engine.store_queue)[:sent])
        self.orphan_stores.append(engine)
        if not self.engines:
            self._start_engine()

    def _end_engine(self, engine: Engine) -> None:
        """The engine has exited by itself, after performing its queued operations."""
        assert engine.exited is not None
        error = engine.exited.error
        assert error is None or TROUBLE in str(error), error
        self.engines.remove(engine)
        self.orphan_stores.append(engine)
        if not self.engines:
            self._start_engine()

    def _start_engine(self) -> None:
        """Start an engine, sometimes with another selection (which selects the same events)."""
        if self.rng.random() < 0.2:
            self.pipeline = f'[{{"$match": {{"number": {self.rng.random()}}}}}]'
        self.engines.append(self.engine_kind(self, f"engine-{self.rng.random()}", self._writers))

    def _is_done(self) -> bool:
        if any(engine.paused_until > self.now for engine in self.engines):
            return False
        record = read_record(self.records[STREAM].fields)
        return self.reached(STREAM, record.position) == len(self.mongo.events) - 1 and not record.intents


class SplitWorld(World):
    """A backfill instead of change streams: shared splits, documents that come and go, and a mark."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(-seed - 1)
        self.pool = rng.randrange(1, 4)
        self._documents: dict[str, list[Event]] = {}
        for number in range(rng.randrange(1, 7)):
            stream = split_id("shop", "orders", "a", number)
            self._documents[stream] = [
                Event(place, 1_800_000_000 << 32, "orders", rng.random() < 0.08)
                for place in range(1, rng.randrange(0, 25))
            ]
        self._mark = split_id("shop", "orders", "a", len(self._documents))
        self._documents[self._mark] = [Event(1, 1_800_000_000 << 32, "orders", fickle=False)]
        bounds = tuple(map(str, range(len(self._documents) - 2)))
        plan = Plan("a", "shop", "orders", Selection(), None, None, bounds, 0, 0, 0.0)
        self.documents = {plan_document("shop.orders"): encode_plan(plan)}
        super().__init__(seed, events=0)

    def streams(self) -> list[StreamSpec]:
        """None."""
        return []

    def splits(self) -> list[BackfillSpec]:
        """The splits that are not in the lake yet, as the shell computes them."""
        left = [stream for stream in self._documents if not self._is_in(stream)]
        return [
            MarkSpec(stream, "shop", "orders", 1) if stream == self._mark else SplitSpec(stream, "shop", "orders")
            for stream in left
        ]

    def _is_in(self, stream: str) -> bool:
        return is_end(read_record(self.records[stream].fields).position)

    def read(self, spec: Spec, after: Position, most: int) -> tuple[list[tuple[Event, str]], str]:
        """The next documents of a split; of the fickle ones, those that exist this time."""
        if isinstance(spec, MarkSpec):
            others = [(stream, each) for stream in self._documents for each in self._documents[stream]]
            there_before = {
                (stream, each.number) for stream, each in others if stream != self._mark and not each.fickle
            }
            assert there_before <= self.lake.events(), "a mark means that everything has been loaded"
        reached = self.reached(spec.stream, after)
        left = [event for event in self._documents[spec.stream] if event.number > reached]
        there = [event for event in left[:most] if not event.fickle or self.rng.random() < 0.5]
        tokens = [(event, make_place(event.number, "key")) for event in there]
        return tokens, make_place(left[most - 1].number, "key") if len(left) > most else END

    def reached(self, stream: str, position: Position | None) -> int:
        """The number of the last document of a split up to a place."""
        if position is None or not position.token:
            return 0
        return len(self._documents[stream]) if position.token == END else split_place(position.token)[0]

    def events_of(self, stream: str) -> Sequence[Event]:
        """All documents of a split."""
        return self._documents[stream]

    def _is_done(self) -> bool:
        return all(self._is_in(stream) for stream in self._documents)


class ForgetfulWorld(World):
    """While no engine runs, the state is lost or restored from a copy: engines stay exact, or stop.

    State: copies of the records as they once were, which of them came back, and the true ones where they were
    taken away.
    """

    faults = (*World.faults, "forget", "forget", "forget")

    def __init__(self, seed: int) -> None:
        self._once: list[dict[str, StoredStream]] = [{}]
        self._chosen = 0
        self._truth: dict[str, StoredStream] | None = None
        super().__init__(seed, faults=8)

    def check_commit(self, stream: str, before: str | None) -> None:
        """Also sometimes copy the records; a record that has been written to is a true one.

        The copies made after the one that was gone on from tell of what did not happen: an intent in them may be
            of
        other events than the segment that has its number now.
        """
        super().check_commit(stream, before)
        if self._truth is not None:  # nothing is written before the survey of the lake
            del self._once[self._chosen + 1 :]
            self._truth = None
        if self.rng.random() < 0.3:
            self._once.append(copy.deepcopy(dict(self.records)))

    def _fault(self) -> None:
        quiet = not any(orphan.can_step() for orphan in self.orphans)
        if self._truth is None and quiet and self.rng.random() < 0.4:
            self.engines.clear()
            self.orphan_stores.clear()
            self._truth = dict(self.records)
            self._chosen = self.rng.randrange(len(self._once))
            self.records = defaultdict(StoredStream, copy.deepcopy(self._once[self._chosen]))
            for stored in self.records.values():
                stored.owner = ""
            self._start_engine()
        else:
            super()._fault()

    def _end_engine(self, engine: Engine) -> None:
        assert engine.exited is not None
        if "older than the lake" in str(engine.exited.error):
            assert self._truth is not None
            self.refusals += 1
            self.records = defaultdict(StoredStream, self._truth)
            self._truth = None
            for stored in self.records.values():
                stored.owner = ""
            self.engines.clear()
            self.orphan_stores.clear()
            self._start_engine()
        else:
            super()._end_engine(engine)

    def _is_done(self) -> bool:
        accepted = all(engine.coordinator.streams[STREAM].stage not in UNSURVEYED for engine in self.engines)
        return (self._truth is None or accepted) and super()._is_done()


class LakeEngine(Engine):
    """An engine whose state is in the lake: the real store, on an object store that misbehaves.

    State: what it has been doing in the store; a request may let other engines in, but not this one.
    """

    world: LakeWorld

    def __init__(self, world: LakeWorld, name: str, writers: int) -> None:
        objects = Connection(world.objects)
        self.store = LakeStore(objects, "lake", clock=lambda: world.now, prove=False)
        self.leases: dict[str, Lease] = {}
        self.busy = False
        super().__init__(world, name, writers)

    def _store_step(self) -> None:
        if self.busy:
            return
        self.busy = True
        action = self.store_queue[0]
        try:
            self._attempt(action)
        except TransientError:
            return  # it stays the next one
        finally:
            self.busy = False
        if self.store_queue and self.store_queue[0] is action:  # an engine that dies drops what it has queued
            self.store_queue.popleft()

    def _attempt(self, action: act.Action) -> None:
        match action:
            case act.Acquire(stream, document):
                found = self.store.acquire(stream, self.name, LEASE_TTL_S)
                if isinstance(found, HeldElsewhere):
                    self.store_results.append(LeaseDenied(stream, found.holder, found.expires_in_s))
                    return
                self.leases[stream] = found.lease
                text = self.world.documents.get(document or "")
                self.store_results.append(LeaseTaken(stream, found.fields, text))
            case act.Renew(streams):
                for stream in streams:
                    self._fenced(stream, lambda lease: self.store.renew(lease, LEASE_TTL_S))
            case act.Release(streams):
                for stream in streams:
                    self._fenced(stream, self.store.release)
                    self.leases.pop(stream, None)
            case act.ReadState(about):
                self.store_results.append(StateRead(about, self.store.read_all()))
            case act.Announce(member):
                self.store.announce(self.name, msgspec.json.encode(member).decode(), LEASE_TTL_S)
                self.store_results.append(FleetSeen(self.name, self.store.announced()))
            case act.Leave():
                self.store.announce(self.name, "", LEASE_TTL_S)
            case act.Write(stream, generation, change, kind, seq):
                before = self.world.records[stream].fields.get("position")
                if self._fenced(stream, lambda lease: self.store.write(lease, change.put, change.remove)):
                    self.world.check_commit(stream, before)
                    self.store_results.append(Written(stream, generation, kind, seq))

    def _fenced(self, stream: str, do: Callable[[Lease], None]) -> bool:
        lease = self.leases.get(stream)
        if lease is None:
            return False
        try:
            do(lease)
        except LeaseLostError:
            del self.leases[stream]
            self.store_results.append(LeaseLost(stream))
            return False
        return True


class Records(dict[str, StoredStream]):
    """The records as they are in the lake."""

    def __init__(self, objects: ChaoticObjects) -> None:
        super().__init__()
        self._objects = objects

    def __missing__(self, stream: str) -> StoredStream:
        stored = self._objects.objects.get(f"streams/{stream}.json")
        if stored is None:
            return StoredStream()
        found = msgspec.json.decode(stored.body)
        return StoredStream(found["epoch"], found["owner"], 0.0, found["fields"])


class LakeWorld(World):
    """The state is in the lake, whose conditional writes lose their answers and arrive late."""

    engine_kind = LakeEngine

    def __init__(self, seed: int, *, events: int = 40, faults: int = 5) -> None:
        self.objects = ChaoticObjects(random.Random(-seed - 1), self._let_others_in)
        self.engines = []
        super().__init__(seed, events=events, faults=faults)
        self.objects.now = lambda: self.now
        self.records = Records(self.objects)

    def known_streams(self) -> Sequence[str]:
        """The only one."""
        return [STREAM]

    def _let_others_in(self) -> None:
        idle = [each for each in self._stores() if each.store_queue and not each.busy]
        if idle:
            self.objects.rng.choice(idle)._store_step()

    def _stores(self) -> list[LakeEngine]:
        engines = [*self.engines, *getattr(self, "orphan_stores", ())]
        return [each for each in engines if isinstance(each, LakeEngine)]
