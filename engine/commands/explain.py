"""``check --explain``: what a configuration takes of memory, and a rate of events of cores; no server is asked."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from engine.backfill.work import snapshot_readers
from engine.cgroup import cpu_limit, divide_within, memory_limit
from engine.commands.terminal import print_details
from engine.config import Config, format_size
from engine.config.streams import streams_of
from engine.core import sizing
from engine.core.budget import Budget
from engine.core.sizing import Needed, needed_for

_RATE = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kM]?)\s*(?:/?\s*(s|min|h|d))?\s*")
_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6}
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Term(Struct, frozen=True):
    """A term of the memory sum, in bytes."""

    name: str
    bytes: int


class Sizing(Struct, frozen=True):
    """What is printed as JSON; sizes in bytes.

    Attributes:
        memory_container: the container's limit; null if there is none.
        cores: of an engine; those that this process may use, if none were given.
        needed: what the rate takes; null if none was given.
        advice: what to change, in sentences.
        source, assumptions: where the figures are from, and what they do not say; empty without a rate.
    """

    memory_limit: int
    memory_container: int | None
    memory: list[Term]
    cores: float
    streams: int
    readers: int
    writers: int
    needed: Needed | None
    advice: list[str]
    source: str
    assumptions: list[str]


def parse_rate(text: str) -> float:
    """Events per second of a text such as ``"50000/s"``, ``"50k/s"`` or ``"3M/min"``.

    Raises:
        ValueError: it is none.
    """
    match = _RATE.fullmatch(text)
    if match is None or not (rate := float(match[1]) * _FACTORS[match[2]] / _SECONDS[match[3] or "s"]):
        raise ValueError(f'{text!r} is no rate such as "50000/s", "50k/s" or "3M/min"')
    return rate


def available_cores() -> float:
    """How many cores this process may use: by its container's limit, and by its affinity."""
    return min(cpu_limit() or float("inf"), float(len(os.sched_getaffinity(0))))


def explain(
    config: Config, events_per_s: float | None, document_bytes: int, cores: float | None, *, as_json: bool
) -> int:
    """Print it; returns the exit code.

    Args:
        document_bytes: the mean size of the documents as BSON.
        cores: what an engine has of them; None for those that this process may use.

    Raises:
        ConfigError: ``memory.limit`` cannot hold the configuration, or exceeds the container's.
    """
    streams = len(streams_of(config.source))
    budget = divide_within(config, streams + snapshot_readers(config))
    cores = cores or available_cores()
    needed = needed_for(events_per_s, document_bytes, cores) if events_per_s else None
    found = Sizing(
        memory_limit=budget.limit,
        memory_container=memory_limit(),
        memory=[Term(name, size) for name, size in budget.terms()],
        cores=cores,
        streams=streams,
        readers=budget.readers,
        writers=budget.writers,
        needed=needed,
        advice=list(advice(budget, streams, cores, needed)),
        source=sizing.SOURCE if needed else "",
        assumptions=list(sizing.ASSUMPTIONS) if needed else [],
    )
    if as_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        _print(found)
    return 0


def advice(budget: Budget, streams: int, cores: float, needed: Needed | None) -> Iterator[str]:
    """What to change in the configuration, in sentences."""
    if (surplus := more_writers_than_cores(budget.writers, cores)) is not None:
        yield surplus
    if needed is None:
        return
    if needed.streams > streams:
        yield (
            f"{needed.streams} streams are needed, and the configuration has {streams}: split hot collections "
            "(source.split), or raise source.max_readers."
        )
    if (each := -(-needed.writers // needed.engines)) > budget.writers:
        yield f"Set writers.processes to {each}."
    if needed.engines > 1:
        yield (
            f"Run {needed.engines} engines of {cores:g} cores with this configuration (one more, to lose one "
            f"without falling behind), or give one engine {needed.cores:.1f} cores."
        )


def more_writers_than_cores(writers: int, cores: float) -> str | None:
    """A sentence if there are more writers than could work at the same time."""
    if writers <= max(2.0, cores):
        return None
    return f"writers.processes is {writers}, and {cores:g} cores can be used: more writers only take memory."


def _print(found: Sizing) -> None:
    container = "no limit" if found.memory_container is None else format_size(found.memory_container)
    terms = "\n".join(f"{each.bytes / 2**20:5.0f} MiB  {each.name}" for each in found.memory)
    memory = {"memory.limit": format_size(found.memory_limit), "of which": terms, "container": container}
    print_details("Memory", memory)
    here = {
        "cores": f"{found.cores:g}",
        "streams": str(found.streams),
        "processes": f"{found.readers} reader(s), {found.writers} writer(s), the supervisor and the template",
    }
    print_details("One engine", here)
    if (needed := found.needed) is not None:
        rate = f"{needed.events_per_s:,.0f} events/s of {format_size(needed.document_bytes)}"
        facts = {
            "CPU per event": f"{needed.cpu_us:.1f} µs",
            "cores": f"{needed.cores:.1f}, of which {needed.busy_cores:.1f} are busy",
            "streams": str(needed.streams),
            "writers": str(needed.writers),
            "engines": f"{needed.engines}, each of {found.cores:g} cores",
            "from MongoDB": f"{needed.from_mongodb / 1e6:,.1f} MB/s",
            "to the sink": f"{needed.to_sink / 1e6:,.1f} MB/s at most",
            "measured": found.source,
            "assumed": "\n".join(found.assumptions),
        }
        print_details(f"Needed for {rate}", facts)
    if found.advice:
        print_details("Advice", {"": "\n".join(found.advice)})
