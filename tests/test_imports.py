"""Packages are in layers: imports point down, and there are no cycles among modules."""

from __future__ import annotations

import ast
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import engine

# From lowest to highest: a module may import its own package and lower layers.
LAYERS = (
    "errors quantities failpoints owner rawbson fold footprint plain",
    "core",
    "config",
    "logs retries cgroup scratch",
    "decode objects",
    "encode shared source sink state",
    "lake",
    "tables",
    "processes",
    "supervisor",
    "backfill",
    "commands",
    "arguments",
    "cli",
    "__main__",
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names.split()}

# Forks for each module, so that libraries are loaded only once.
SCRIPT = """
import importlib, os, sys, traceback
import fastavro, msgspec, numpy, psutil, pyarrow.csv, pyarrow.parquet, pymongo, redis, rich, s3fs
failed = []
for name in sys.argv[1:]:
    if not (child := os.fork()):
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
sys.exit(f"cannot be imported first: {failed}" if failed else 0)
"""


def sources(root: Path) -> dict[str, str]:
    """The source of every module below a directory, by the module's name."""
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return found


def imports(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """The modules that each module imports, at any place."""
    return {
        name: {each for each in _imported(source, modules) if each != name} for name, source in modules.items()
    }


def _imported(source: str, modules: Mapping[str, str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, "imports are absolute"
            for each in node.names:
                name = f"{node.module}.{each.name}"
                if name in modules or node.module in modules:
                    yield name if name in modules else node.module


def upward(found: Mapping[str, set[str]]) -> list[str]:
    """The imports that do not point down."""
    return sorted(
        f"{name} imports {each}"
        for name, others in found.items()
        for each in others
        if name.count(".") and each.count(".")  # the package itself has only its version
        if _package(name) != _package(each) and LEVELS[_package(each)] >= LEVELS[_package(name)]
    )


def _package(module: str) -> str:
    return module.split(".")[1]


def cycle(found: Mapping[str, set[str]]) -> list[str]:
    """The modules of an import cycle; empty if there is none."""
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_import_points_down() -> None:
    modules = sources(Path(engine.__path__[0]))
    assert {_package(name) for name in modules if name.count(".")} == LEVELS.keys()
    assert upward(imports(modules)) == []


def test_there_is_no_import_cycle() -> None:
    assert cycle(imports(sources(Path(engine.__path__[0])))) == []


@pytest.mark.parametrize("at", ["module", "function", "for types alone"])
def test_an_import_that_points_up_is_found(at: str) -> None:
    modules = sources(Path(engine.__path__[0]))
    statement = "from engine.supervisor.supervisor import Supervisor\n"
    planted = {
        "module": statement,
        "function": f"def f():\n    {statement}",
        "for types alone": f"if TYPE_CHECKING:\n    {statement}",
    }
    modules["engine.core.ledger"] += planted[at]
    assert upward(imports(modules)) == ["engine.core.ledger imports engine.supervisor.supervisor"]


def test_a_cycle_is_found() -> None:
    modules = sources(Path(engine.__path__[0]))
    modules["engine.processes.link"] += "def f():\n    import engine.processes.reader\n"
    assert set(cycle(imports(modules))) >= {"engine.processes.link", "engine.processes.reader"}


def test_every_module_can_be_imported_first() -> None:
    names = [each.name for each in pkgutil.walk_packages(engine.__path__, "engine.")]
    run = ("engine.__main__", "engine.processes.template")
    names = [name for name in names if name not in run]
    assert len(names) > 50
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-4000:]


# Tests of a whole package, or of the project.
OF_MORE_THAN_A_MODULE = {
    "decode": {"corpus", "fuzz", "properties", "renames", "table"},
    "state": {"stores", "upgrade"},
    ".": {"bench", "documents", "imports", "package"},
}


def test_tests_mirror_the_package() -> None:
    tests = Path(__file__).parent
    code = tests.parent / "engine"
    for directory in (tests, *(each for each in tests.iterdir() if (code / each.name / "__init__.py").exists())):
        package = directory.relative_to(tests)
        tested = {path.stem.removeprefix("test_") for path in directory.glob("test_*.py")}
        others = OF_MORE_THAN_A_MODULE.get(str(package), set())
        assert others <= tested
        modules = {path.stem for path in (code / package).glob("*.py")}
        assert tested - others <= modules, package
