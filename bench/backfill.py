"""Whole collections to Parquet, compared with the server's limit and other tools.

- ``scan``: the same documents read as raw replies by one and by two processes, one reply after another, and
  discarded.
- ``engine``: ``python -m engine backfill`` with one and with two readers, to Parquet on S3, including start,
  planning and end.
- ``pymongoarrow``: ``find_arrow_all``, ``write_table`` and s3fs, in an environment of its own.
- ``mongodump``, ``mongoexport``: to /dev/null, built from their public Go module if there is a Go toolchain.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import duckdb
from msgspec import Struct
from pymongo import MongoClient

from bench.local import LocalStack
from bench.measure import PEERS, Cost, python, run
from bench.stream import Case, config_toml
from bench.workloads import insert

TOOLS = "github.com/mongodb/mongo-tools"
READERS = (1, 2)


class BackfillResult(Struct):
    """Medians over the rounds; documents per second, CPU in microseconds per document, sizes in bytes.

    Attributes:
        scan1_per_s, scan2_per_s: raw scans by one and by two processes.
        of_scan: the engine's rate with two readers as a share of the raw scan's with two.
        scaling: the engine's rate with two readers as a multiple of that with one.
        exact: every document landed once, by a count of keys.
        hash: a hash of the keys that landed.
    """

    workload: str
    documents: int
    rounds: int
    bytes_per_document: float
    scan1_per_s: float
    scan2_per_s: float
    engine1_per_s: float
    engine2_per_s: float
    of_scan: float
    scaling: float
    pymongoarrow_per_s: float
    mongodump_per_s: float
    mongoexport_per_s: float
    engine_cpu_us: float
    engine_server_us: float
    scan_server_us: float
    pymongoarrow_cpu_us: float
    pss_peak: int
    memory_limit: str
    landed_bytes_per_document: float
    objects: int
    exact: bool
    hash: str


def measure_backfill(
    stack: LocalStack,
    uri: str,
    workload: str,
    documents: int,
    rounds: int,
    memory: str,
    tell: Callable[[str], None],
    *,
    peers: bool = True,
) -> BackfillResult:
    """Create the documents once, then read them in rounds; ``peers``: also with tools to install or build."""
    database = uuid4().hex[:8]
    tell(f"writing {documents:,} documents of {workload}")
    with MongoClient[dict[str, Any]](uri) as client:
        collection = client[database].events0
        insert([collection], workload, documents)
        size = int(client[database].command("collStats", "events0")["size"])
    server = stack.mongo.members[0].pid if stack.mongo else None
    commands = _commands(stack, uri, database, peers, tell)
    costs: dict[str, list[Cost]] = {}
    for number in range(rounds):
        for name, command in commands.items():
            costs.setdefault(name, []).append(run(command, server=server))
            tell(f"round {number + 1}: {name:12} {documents / costs[name][-1].seconds:9,.0f}/s")
        for readers in READERS:
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / "engine.toml"
                prefix = f"{database}-{number}-{readers}"
                toml = config_toml(stack, uri, database, Case(memory=memory), prefix)
                path.write_text(f"{toml}[backfill]\nreaders = {readers}\n")
                cost = run(python("-m", "engine", "backfill", "--config", str(path)), server=server)
            costs.setdefault(f"engine{readers}", []).append(cost)
            tell(
                f"round {number + 1}: engine {readers}     {documents / cost.seconds:9,.0f}/s"
                f"  {cost.cpu_s / documents * 1e6:.1f} us  {cost.pss_peak / 2**20:.0f} MiB"
            )
    landed = [_landed(stack, f"{database}-{number}-{readers}") for number in range(rounds) for readers in READERS]
    rates = {name: documents / median(each.seconds for each in found) for name, found in costs.items()}

    def cpu_us(name: str, part: Callable[[Cost], float] = lambda cost: cost.cpu_s) -> float:
        return median(map(part, costs[name])) / documents * 1e6 if name in costs else 0.0

    return BackfillResult(
        workload=workload,
        documents=documents,
        rounds=rounds,
        bytes_per_document=size / documents,
        scan1_per_s=rates["scan1"],
        scan2_per_s=rates["scan2"],
        engine1_per_s=rates["engine1"],
        engine2_per_s=rates["engine2"],
        of_scan=rates["engine2"] / rates["scan2"],
        scaling=rates["engine2"] / rates["engine1"],
        pymongoarrow_per_s=rates.get("pymongoarrow", 0.0),
        mongodump_per_s=rates.get("mongodump", 0.0),
        mongoexport_per_s=rates.get("mongoexport", 0.0),
        engine_cpu_us=cpu_us("engine2"),
        engine_server_us=cpu_us("engine2", lambda cost: cost.server_cpu_s),
        scan_server_us=cpu_us("scan2", lambda cost: cost.server_cpu_s),
        pymongoarrow_cpu_us=cpu_us("pymongoarrow"),
        pss_peak=max(cost.pss_peak for cost in costs["engine2"]),
        memory_limit=memory,
        landed_bytes_per_document=landed[-1][2] / documents,
        objects=landed[-1][1],
        exact=all(each[0] == documents for each in landed) and len({each[3] for each in landed}) == 1,
        hash=landed[-1][3],
    )


def _commands(
    stack: LocalStack, uri: str, database: str, peers: bool, tell: Callable[[str], None]
) -> dict[str, list[str]]:
    """The commands to compare the engine with, by name."""
    found = {f"scan{n}": python("-m", "bench.baselines", "scan", uri, database, str(n)) for n in READERS}
    if not peers:
        return found
    if (interpreter := pymongoarrow_python(tell)) is not None:
        s3 = stack.s3
        options = {"key": s3.access_key, "secret": s3.secret_key, "endpoint_url": s3.endpoint_url}
        target = f"{stack.bucket}/{database}-arrow/all.parquet"
        found["pymongoarrow"] = [
            interpreter,
            "-m",
            "bench.baselines",
            "arrow",
            uri,
            database,
            target,
            json.dumps(options),
        ]
    if (tools := mongo_tools(tell)) is not None:
        common = ["--quiet", "--uri", uri, "--db", database, "--collection", "events0"]
        found["mongodump"] = [str(tools / "mongodump"), *common, "--out", "-"]
        found["mongoexport"] = [str(tools / "mongoexport"), *common]
    return found


def pymongoarrow_python(tell: Callable[[str], None]) -> str | None:
    """An interpreter with pymongoarrow, which needs its own version of pyarrow; installed the first time."""
    directory = PEERS / "pymongoarrow"
    interpreter = directory / "bin" / "python"
    if not (directory / "done").exists():
        packages = ["pymongoarrow", "s3fs"]
        commands = [
            python("-m", "venv", "--clear", str(directory)),
            [str(interpreter), "-m", "pip", "install", "-q", *packages],
        ]
        if not _all_succeed(commands, "pymongoarrow cannot be installed; left out", tell):
            return None
        (directory / "done").touch()
    return str(interpreter)


def mongo_tools(tell: Callable[[str], None]) -> Path | None:
    """The directory of mongodump and mongoexport, built the first time; None without Go or their module."""
    directory, names = PEERS / "mongo-tools", ("mongodump", "mongoexport")
    if all((directory / name).exists() for name in names):
        return directory
    go = shutil.which("go")
    if go is None:
        tell("no Go toolchain: mongodump and mongoexport are left out")
        return None
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "go.mod").write_text("module tools\n")
    commands = [[go, "get", f"{TOOLS}@latest"]]
    commands += [[go, "build", "-mod=mod", "-o", name, f"{TOOLS}/{name}/main"] for name in names]
    what = "mongodump and mongoexport cannot be built; left out"
    return directory if _all_succeed(commands, what, tell, cwd=directory) else None


def _all_succeed(
    commands: Sequence[Sequence[str]], what: str, tell: Callable[[str], None], cwd: Path | None = None
) -> bool:
    for command in commands:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode:
            tell(f"{what}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
            return False
    return True


def _landed(stack: LocalStack, tag: str) -> tuple[int, int, int, str]:
    """The number of distinct keys (0 if there is a duplicate), objects and bytes, and a hash of the keys."""
    filesystem = stack.s3.filesystem()
    database = duckdb.connect()
    database.register_filesystem(filesystem)
    row = database.execute(
        "select count(*), count(distinct _cdc_key), count(distinct filename), "
        "md5(string_agg(_cdc_key, '' order by _cdc_key)) "
        f"from read_parquet('s3://{stack.bucket}/{tag}/**/*.parquet', filename = true)"
    ).fetchone()
    assert row is not None
    rows, keys, objects, digest = row
    return (rows if rows == keys else 0), objects, int(filesystem.du(f"{stack.bucket}/{tag}")), digest
