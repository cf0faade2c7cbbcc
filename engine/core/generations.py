"""Which selections the engines on one state store have, and which of them have been replaced.

An engine's *selection* is what its streams capture and where it lands. Engines of one selection share its streams.
One that starts with a selection that meets another's introduces a new *generation*: the engines of the former one
drain and end, and cannot come back as long as the new one runs, however often they are started. Selections that do
not meet exist beside each other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import blake2b

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from engine.core.formats import decode_document, encode_document
from engine.core.handover import overlap
from engine.core.specs import StreamSpec
from engine.errors import ConfigError, StateLostError

# The shared document that holds the ``Generations``.
FLEET_DOCUMENT = "fleet"
# How many former selections are remembered.
MAX_FORMER = 50

_OPERATION = "join the fleet"
_DAMAGED = (
    "Stop every engine, then: headrace state rebuild --yes. It only forgets which configuration is the newest."
)


class Generation(Struct, frozen=True):
    """A selection that is in force.

    Attributes:
        number: higher than those of the generations that it has replaced.
        selection: identifies it.
        former: the selections that it has replaced, the latest first.
        by: the engine that lets the streams of the former one hand over to it.
    """

    number: int
    selection: str
    streams: tuple[StreamSpec, ...]
    former: tuple[str, ...] = ()
    by: str = ""


class Generations(Struct, frozen=True):
    """The shared document: the selections in force, which do not meet each other."""

    current: tuple[Generation, ...] = ()

    def of(self, selection: str) -> Generation | None:
        """The generation with this selection; None if it is not in force."""
        return next((each for each in self.current if each.selection == selection), None)

    def meeting(self, streams: Sequence[StreamSpec]) -> list[Generation]:
        """The generations that capture some of what these streams do."""
        return [each for each in self.current if any(overlap(a, b) for a in each.streams for b in streams)]


def selection_of(streams: Sequence[StreamSpec], sink: str) -> str:
    """The identity of a selection: the same for engines with the same streams and the same sink."""
    ordered = sorted(streams, key=lambda spec: spec.stream)
    return blake2b(msgspec.json.encode((sink, ordered)), digest_size=12).hexdigest()


def decode_generations(text: str | None) -> Generations:
    """The generations in the shared document, if there is one.

    Raises:
        ConfigError: it was written by a later version.
        StateLostError: it is damaged.
    """
    try:
        return decode_document(text, Generations, Generations) if text else Generations()
    except StateLostError as error:
        raise StateLostError(error.operation, error.cause, _DAMAGED) from error


def encode_generations(generations: Generations) -> str:
    """The generations as the shared document that holds them."""
    return encode_document(generations)


def joined(
    found: Generations,
    streams: Sequence[StreamSpec],
    selection: str,
    wanted: int,
    living: Collection[str],
    by: str,
    *,
    stays: bool = True,
) -> Generations | None:
    """The generations once an engine of this selection has joined; None if nothing changes.

    Args:
        stays: it goes on running. One that ends by itself replaces no engine that runs, unless its number says so.
        wanted: the number of its generation, as configured; 0 for the next one.
        living: the selections of the engines that are alive.
        by: the engine.

    Raises:
        ConfigError: its selection has been replaced by another.
    """
    if (mine := found.of(selection)) is not None:
        return None if wanted <= mine.number else _with(found, [mine], replace(mine, number=wanted))
    met = found.meeting(streams)
    for each in met:
        if wanted and wanted <= each.number:
            cause = (
                f"this is generation {wanted}, and generation {each.number} of the configuration selects otherwise"
            )
            remedy = f"Stop this engine; or set fleet.generation to more than {each.number}, to replace that one."
            raise ConfigError(_OPERATION, cause, remedy)
        if not wanted and selection in each.former and each.selection in living:
            cause = "its configuration has been replaced by another, and engines with that one are running"
            remedy = "Stop them first, or set fleet.generation, to say which configuration is newer."
            raise ConfigError(_OPERATION, cause, remedy)
        if not wanted and not stays and each.selection in living:
            cause = (
                "engines with another configuration are running, and this run would only replace them for a time"
            )
            remedy = "Run it with their configuration, or stop them first."
            raise ConfigError(_OPERATION, cause, remedy)
    number = wanted or 1 + max((each.number for each in found.current), default=0)
    former = [name for each in met for name in (each.selection, *each.former) if name != selection]
    made = Generation(number, selection, tuple(streams), tuple(dict.fromkeys(former))[:MAX_FORMER], by)
    return _with(found, met, made)


def claimed(found: Generations, selection: str, by: str, living: Collection[str]) -> Generations | None:
    """The generations once this engine is the one that hands over to the selection; None if another one lives."""
    mine = found.of(selection)
    return None if mine is None or mine.by in (by, *living) else _with(found, [mine], replace(mine, by=by))


def successor(found: Generations, former: Generation) -> Generation | None:
    """The generation that has replaced this one; None if it is in force, or nothing is known."""
    return None if found.of(former.selection) else next(iter(found.meeting(former.streams)), None)


def _with(found: Generations, without: Sequence[Generation], new: Generation) -> Generations:
    return Generations((*(each for each in found.current if each not in without), new))
