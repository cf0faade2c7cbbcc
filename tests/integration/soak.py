"""An endurance test with faults: the engine runs for a long time, and random ones of ``fault_rows.py`` befall it.

Three members of a replica set, ten collections of documents of all types, the state in the lake. A seed chooses
the faults and when they come. In the end every event of a plain driver's change stream must be in the lake once,
and each collection as it stands in the lake must be the collection, for this test and for ``verify``. Between
faults the engine is measured: memory (PSS), descriptors and threads must not be more in the last third than in the
first.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import msgspec
import psutil
from bson import Timestamp
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.raw_bson import RawBSONDocument

from engine.config import load
from engine.core.budget import MIB
from engine.core.records import schema_document
from engine.core.schema import CollectionSchema
from engine.state.opening import open_store
from tests.decode import lake as inverse
from tests.integration import workload
from tests.integration.fault_rows import FAULTS, Fault
from tests.integration.fault_table import key
from tests.integration.harness import Engine, Lake, catch_up, operation_time, run_engine
from tests.integration.rig import WITHIN_S, Rig, Servers
from tests.integration.test_reading import in_order, plain

SAMPLE_EVERY_S = 2.0
WRITERS = 3
CALM_S = (5.0, 15.0)
VERIFY_S = 1200.0
MAX_GROWTH = 0.05
# A connection more or less, and a thread with it, is not growth.
MAX_MORE = {"pss_mib": 0.0, "descriptors": 3.0, "threads": 3.0}
OF_A_SOAK = {"MongoDB", "S3", "state in the lake", "the machine"}
NOT_OF_A_SOAK = ("uploads vanished", "resumable code", "rolled back")  # they write, or take long


@dataclass(frozen=True)
class Sample:
    """The processes of the engine at one moment, together."""

    at_s: float
    pss_mib: float
    descriptors: int
    threads: int


@dataclass
class Watch:
    """Measures the engine in a thread, while it is well.

    State: the samples; ``is_calm``, whether to take any.
    """

    rig: Rig
    samples: list[Sample] = field(default_factory=list)
    is_calm: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure meanwhile."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        yield
        self._ended.set()
        thread.join()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            with suppress(psutil.NoSuchProcess):
                if self.is_calm and (found := self._sample()) and self.is_calm:
                    self.samples.append(found)

    def _sample(self) -> Sample:
        root = psutil.Process(self.rig.engine.process.pid)
        tree = (root, *root.children(recursive=True))
        return Sample(
            time.monotonic(),
            sum(each.memory_full_info().pss for each in tree) / MIB,
            sum(each.num_fds() for each in tree),
            sum(each.num_threads() for each in tree),
        )


@contextmanager
def writing(uri: str, database: str, seed: int, collections: list[str]) -> Iterator[None]:
    """Run the workload meanwhile, in some processes."""
    command = [sys.executable, workload.__file__, uri, database]
    processes = [
        subprocess.Popen(
            [*command, str(seed + number), *collections[number::WRITERS]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(min(WRITERS, len(collections)))
    ]
    try:
        yield
    finally:
        writes = [int(each.communicate()[0]) for each in processes]
        assert not any(each.returncode for each in processes)
        print(f"{sum(writes):,} writes", flush=True)


def wait_well(engine: Engine, more: int = 1) -> None:
    """Wait until all streams are read, and so many more events are committed."""

    def total(status: dict[str, Any]) -> int:
        return sum(each["events_committed"] for each in status["streams"])

    before = total(engine.wait_for(lambda status: bool(status["streams"]), "status"))
    engine.wait_for(
        lambda status: all(each["reading"] for each in status["streams"]) and total(status) >= before + more,
        "all is well",
        WITHIN_S,
    )


def befall(rig: Rig, watch: Watch, rng: random.Random, minutes: float) -> Counter[str]:
    """One fault after another until the time is over; how often each came."""
    faults = [each for each in FAULTS if each.bring and each.of in OF_A_SOAK and each.rig in ("redis", "lake")]
    faults = [each for each in faults if not each.stops and not any(words in each.name for words in NOT_OF_A_SOAK)]
    done: Counter[str] = Counter()
    began = time.monotonic()
    while time.monotonic() < began + minutes * 60:
        watch.is_calm = True
        time.sleep(rng.uniform(*CALM_S))
        watch.is_calm = False
        fault = rng.choice(faults)
        recovered_s = _befall(rig, fault)
        done[key(fault)] += 1
        print(f"{time.monotonic() - began:5.0f} s  {key(fault)}: well after {recovered_s:.0f} s", flush=True)
    return done


def _befall(rig: Rig, fault: Fault) -> float:
    assert fault.bring is not None
    with fault.bring(rig):
        time.sleep(fault.lasts_s)
    ended = time.monotonic()
    wait_well(rig.engine)
    return time.monotonic() - ended


def wrong_events(rig: Rig, lake: Lake, start: Timestamp) -> list[str]:
    """What is lost or doubled, by a plain change stream of the whole time."""
    mark = rig.database["the end"].insert_one({}).inserted_id
    expected: set[str] = set()
    lenient = CodecOptions[dict[str, Any]](datetime_conversion=DatetimeConversion.DATETIME_AUTO)
    source = rig.client.get_database(rig.name, codec_options=lenient)
    with source.watch([{"$project": {"documentKey": 1, "ns": 1}}], start_at_operation_time=start) as stream:
        for event in stream:
            if event["ns"]["coll"] != "the end":
                expected.add(event["_id"]["_data"])
            elif event["documentKey"]["_id"] == mark:
                break
    landed = Counter(token for tokens in lake.tokens().values() for token in tokens)
    lost, unknown = expected - set(landed), set(landed) - expected
    doubled = sum(landed.values()) - len(landed)
    print(f"{len(expected):,} events, lost {len(lost)}, doubled {doubled}, unknown {len(unknown)}", flush=True)
    found = {"lost": len(lost), "doubled": doubled, "of no change stream": len(unknown)}
    return [f"{count} events are {what}" for what, count in found.items() if count]


def wrong_documents(rig: Rig, lake: Lake, collections: list[str]) -> list[str]:
    """The collections that are not in the lake as they stand, document by document."""
    settings = load(rig.config.path)
    store = open_store(settings.state, settings.sink)
    raw: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument)
    wrong = []
    for name in collections:
        schema = msgspec.json.decode(store.read_shared(schema_document(rig.name, name))[1], type=CollectionSchema)
        rows = standing(lake, rig.name, name)
        found = sorted(in_order(inverse.document_of(row, schema.fields)) for row in rows)
        there = rig.database[name].with_options(raw).find()
        expected = sorted(in_order(inverse.document_tree(bytes(each.raw))) for each in there)
        print(f"{name}: {len(expected):,} documents, {'equal' if found == expected else 'DIFFERENT'}", flush=True)
        wrong += [f"{name} differs from the source"] * (found != expected)
    store.close()
    return wrong


def standing(lake: Lake, database: str, collection: str) -> list[dict[str, Any]]:
    """The newest row of each document that was not deleted, by a dictionary."""
    newest: dict[str, dict[str, Any]] = {}
    for each in lake.object_keys():
        if f"_database={database}/" in each and f"_collection={collection}/" in each:
            for row in plain(lake.table(each)):
                if row["_cdc_token"] > newest.get(row["_cdc_key"], {}).get("_cdc_token", ""):
                    newest[row["_cdc_key"]] = row
    return [row for row in newest.values() if row["_cdc_op"] != "delete"]


def growth(samples: list[Sample]) -> list[str]:
    """What is more in the last third than in the first, after a tenth to warm up; prints both.

    Faults kill the engine, and a young one is smaller: for two minutes, until all of its processes have done
    everything once. So what is compared is what is not exceeded nine times out of ten.
    """
    warm = samples[len(samples) // 10 :]
    third = len(warm) // 3
    if third < 3:
        return ["too few samples: run it for longer"]
    grown = []
    for what, more in MAX_MORE.items():
        parts = [[getattr(each, what) for each in part] for part in (warm[:third], warm[-third:])]
        first, last = (quantiles(part, n=10)[-1] for part in parts)
        middles = ", ".join(f"{median(part):.1f}" for part in parts)
        print(f"{what}: {first:.1f} in the first third, {last:.1f} in the last (medians {middles})", flush=True)
        if last > max(first * (1 + MAX_GROWTH), first + more):
            grown.append(f"{what} has grown from {first:.1f} to {last:.1f}")
    return grown


def soak(minutes: float, seed: int, collections: list[str], directory: Path) -> list[str]:
    """Run it; what is wrong."""
    with Servers() as servers:
        rig = Rig(servers, directory, "lake")
        rig.config.set("source", collections=collections)
        rig.config.set("telemetry", log_level="info")
        lake, watch, start = Lake(servers.stack, rig.name), Watch(rig), operation_time(rig.client)
        with writing(servers.mongo.uri, rig.name, seed, collections):
            wait_well(rig.engine)
            with watch.running():
                done = befall(rig, watch, random.Random(seed), minutes)
        wrong = growth(watch.samples)
        wait_well(rig.engine, more=0)
        began = time.monotonic()
        verified = run_engine(rig.config, "verify", timeout_s=VERIFY_S)
        print(verified.stdout, f"{time.monotonic() - began:.0f} s", flush=True)
        rig.end()
        catch_up(rig.config)
        log = (directory / rig.name / f"{rig.name}.log").read_bytes()
        lines = log.count(b"\n")
        print(f"{done.total()} faults of {len(done)} kinds, {lines:,} log lines", flush=True)
        wrong += wrong_events(rig, lake, start) + wrong_documents(rig, lake, collections)
        if verified.returncode:
            wrong.append(f"verify: exit {verified.returncode}: {verified.stderr[-1000:]}")
        if b'"stream stopped"' in log:
            wrong.append("a stream has stopped")
        rig.close()
    return wrong


def main() -> int:
    """Run it; returns 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="scripts/soak --faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to write (default: 30)")
    parser.add_argument("--collections", type=int, default=10, help="how many (default: 10)")
    parser.add_argument("--seed", type=int, default=1, help="of the workload and the faults (default: 1)")
    options = parser.parse_args()
    if options.minutes <= 0 or options.collections < 1:
        parser.error("--minutes and --collections must be more than 0")
    names = [f"events{number}" for number in range(options.collections)]
    with tempfile.TemporaryDirectory() as directory:
        wrong = soak(options.minutes, options.seed, names, Path(directory))
    print("\n".join(wrong) or "nothing is wrong: every event landed once, and nothing has grown", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
