"""The inputs of a coordinator can be recorded, and replayed into another one with the same result."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import pytest

from engine.core import messages as msg
from engine.core.actions import Action, Child
from engine.core.backfill import Progress
from engine.core.coordinator import Coordinator
from engine.core.specs import BackfillSpec, StreamSpec
from engine.core.store import FromStore
from engine.core.stream import Settings
from tests.sim import world
from tests.sim.world import ForgetfulWorld, SplitWorld, World

STORE = msgspec.json.Decoder(FromStore)
SPECS = msgspec.json.Decoder(list[BackfillSpec])


class Recorder(Coordinator):
    """A coordinator that records its inputs as text and bytes, and the actions that follow from each."""

    made: ClassVar[list[Recorder]] = []

    def __init__(self, settings: Settings, specs: Sequence[StreamSpec], rng: random.Random) -> None:
        self.seed = rng.random()
        self.given = settings, specs
        self.inputs: list[tuple[str, tuple[Any, ...]]] = []
        self.outputs: list[str] = []
        super().__init__(settings, specs, random.Random(self.seed))
        Recorder.made.append(self)

    def _kept(self, name: str, inputs: tuple[Any, ...], actions: Callable[[], list[Action]]) -> list[Action]:
        self.inputs.append((name, inputs))
        found = actions()
        self.outputs.append(repr(found))
        return found

    def load(self, specs: Iterable[BackfillSpec], progress: Mapping[str, Progress]) -> None:
        specs = list(specs)
        self.inputs.append(("load", (msgspec.json.encode(specs),)))
        self.outputs.append("[]")
        super().load(specs, progress)

    def start(self, now: float) -> list[Action]:
        return self._kept("start", (now,), lambda: super(Recorder, self).start(now))

    def tick(self, now: float) -> list[Action]:
        return self._kept("tick", (now,), lambda: super(Recorder, self).tick(now))

    def shut_down(self, now: float) -> list[Action]:
        return self._kept("shut_down", (now,), lambda: super(Recorder, self).shut_down(now))

    def from_child(self, child: Child, message: msg.FromChild, now: float) -> list[Action]:
        inputs = (str(child), msg.encode(message), now)
        return self._kept("from_child", inputs, lambda: super(Recorder, self).from_child(child, message, now))

    def from_store(self, answer: FromStore, now: float) -> list[Action]:
        inputs = (msgspec.json.encode(answer), now)
        return self._kept("from_store", inputs, lambda: super(Recorder, self).from_store(answer, now))

    def child_exited(
        self, child: Child, code: int | None, now: float, *, out_of_memory: bool = False
    ) -> list[Action]:
        inputs = (str(child), code, now, out_of_memory)
        return self._kept("child_exited", inputs, lambda: super(Recorder, self).child_exited(child, code, now))


def child_named(name: str) -> Child:
    role, _, index = name.partition("-")
    return Child("reader" if role == "reader" else "writer", int(index))


def replay(coordinator: Coordinator, name: str, inputs: tuple[Any, ...]) -> list[Action]:
    """Pass one recorded input to a coordinator."""
    match name, inputs:
        case "load", (specs,):
            coordinator.load(SPECS.decode(specs), {})
            return []
        case "start" | "tick" | "shut_down", (now,):
            return getattr(coordinator, name)(now)  # type: ignore[no-any-return]
        case "from_child", (child, message, now):
            return coordinator.from_child(child_named(child), msg.decode_from_child(message), now)
        case "from_store", (answer, now):
            return coordinator.from_store(STORE.decode(answer), now)
        case "child_exited", (child, code, now, out_of_memory):
            return coordinator.child_exited(child_named(child), code, now, out_of_memory=out_of_memory)
    raise AssertionError(name)


@pytest.mark.parametrize("kind", [World, SplitWorld, ForgetfulWorld])
def test_a_recorded_run_replays_to_the_same_actions(kind: type[World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "Coordinator", Recorder)
    monkeypatch.setattr(Recorder, "made", [])
    for seed in range(30):
        kind(seed).run()
    names: set[str] = set()
    for recorded in Recorder.made:
        settings, specs = recorded.given
        again = Coordinator(settings, specs, random.Random(recorded.seed))
        for number, (name, inputs) in enumerate(recorded.inputs):
            names.add(name)
            assert repr(replay(again, name, inputs)) == recorded.outputs[number], (number, name)
    assert {"load", "start", "tick", "from_child", "from_store", "child_exited"} <= names
