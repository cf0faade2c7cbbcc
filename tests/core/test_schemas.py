"""Readers that ask for schemas at the same time: each of them gets one that has the fields it asked for."""

from __future__ import annotations

import random
from collections import deque

import pytest

from engine.core.actions import Child, GrowSchema, ReadState, Send
from engine.core.decisions import Decision
from engine.core.messages import SchemaGiven, SchemaWanted
from engine.core.schema import CollectionSchema, DataType, Field
from engine.core.schemas import Schemas, grown_document
from engine.core.store import SchemaRead, StateRead

MAX_FIELDS = 100
COLLECTIONS = ("orders", "items")


def some_fields(rng: random.Random) -> tuple[Field, ...]:
    names = rng.sample("abcdef", rng.randrange(4))
    return tuple(Field(name, DataType("int64")) for name in names)


class Reader:
    """Asks for one schema after another, as the reader's loop does; now and then its stream is taken away."""

    def __init__(self, number: int, rng: random.Random) -> None:
        self.child = Child("reader", number)
        self._rng = rng
        self._left = 6
        self.asked: SchemaWanted | None = None

    @property
    def is_done(self) -> bool:
        return self.asked is None and not self._left

    def ask(self) -> SchemaWanted:
        self._left -= 1
        first = self._left % 2 == 1  # a schema that it does not know yet is asked for without fields
        fields = () if first else some_fields(self._rng)
        self.asked = SchemaWanted("shop", self._rng.choice(COLLECTIONS), fields)
        return self.asked

    def take(self, given: SchemaGiven) -> None:
        if self.asked is None or given.collection != self.asked.collection:
            return  # the answer to a question that it no longer has
        names = {field.name for field in given.schema.fields}
        if {field.name for field in self.asked.fields} <= names:
            self.asked = None


class World:
    """Readers, the coordinator's part for schemas, and a store that answers in the order of the requests."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._schemas = Schemas(MAX_FIELDS, {})
        self._readers = [Reader(number, self._rng) for number in range(3)]
        self._requests: deque[GrowSchema | ReadState] = deque()
        self._documents: dict[str, tuple[int, str]] = {}

    def _perform(self, decisions: list[Decision]) -> None:
        for each in decisions:
            match each:
                case GrowSchema() | ReadState():
                    self._requests.append(each)
                case Send(child, SchemaGiven() as given):
                    self._readers[child.index].take(given)
                case _:
                    raise AssertionError(each)

    def _answer(self) -> None:
        request = self._requests.popleft()
        if isinstance(request, ReadState):
            self._perform(self._schemas.state_read(StateRead(request.about, {})))
            return
        version, text = self._documents.get(request.collection, (0, ""))
        if (grown := grown_document(request, version, text)) is not None:
            version, text = version + 1, grown
            self._documents[request.collection] = version, text
        answer = SchemaRead(request.reader, request.database, request.collection, text or None)
        self._perform(self._schemas.read(answer, is_ready=True))

    def run(self) -> None:
        while not all(each.is_done for each in self._readers):
            free = [each for each in self._readers if each.asked is None and not each.is_done]
            waiting = [each for each in self._readers if each.asked is not None]
            assert free or self._requests, f"nobody answers {[each.asked for each in waiting]}"
            if self._requests and (not free or self._rng.random() < 0.5):
                self._answer()
            else:
                reader = self._rng.choice(free)
                self._perform(self._schemas.wanted(reader.child, reader.ask()))
            if waiting and self._rng.random() < 0.05:
                self._rng.choice(waiting).asked = None  # its stream is taken away: it asks for something else


@pytest.mark.parametrize("first", range(0, 2000, 500))
def test_no_reader_waits_for_ever(first: int) -> None:
    for seed in range(first, first + 500):
        try:
            World(seed).run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_an_answer_says_which_version_the_store_must_have() -> None:
    """Whoever asked for it, and whether or not the reader still waits."""
    schemas = Schemas(MAX_FIELDS, {})
    reader = Child("reader", 0)
    schemas.wanted(reader, SchemaWanted("shop", "orders", ()))
    schemas.forget(reader)
    grown = grown_document(
        GrowSchema(reader, "shop", "orders", (Field("a", DataType("int64")),), 0, True, MAX_FIELDS), 0, ""
    )
    assert schemas.read(SchemaRead(reader, "shop", "orders", grown), is_ready=False) == []
    (asked,) = schemas.wanted(reader, SchemaWanted("shop", "orders", ()))
    assert isinstance(asked, GrowSchema)
    assert asked.min_version == CollectionSchema().version + 1
