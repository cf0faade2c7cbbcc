"""The faults of the table in configs/OPERATIONS.md: all rows are there, and their tests exist and pass."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from engine.commands.reference import OPERATIONS
from tests.exploring import EXPLORE
from tests.integration.fault_rows import FAULTS, Fault
from tests.integration.fault_table import HERE, KINDS, OWN_TEST, check, key, read_table, rig, shown
from tests.integration.rig import Rig, Servers

TRIED = sorted(
    (each for each in FAULTS if each.bring is not None and (each.is_quick or EXPLORE)),
    key=lambda each: KINDS.index(each.rig),  # so that one rig is open at a time
)


class Rigs:
    """One rig at a time: that of the last fault, or another kind instead."""

    def __init__(self, servers: Servers, directory: Path) -> None:
        self._servers, self._directory = servers, directory
        self._kind, self._open = "", ExitStack()

    def of(self, kind: str) -> Rig:
        """The rig of this kind."""
        if kind != self._kind:
            self.close()
            self._rig, self._kind = self._open.enter_context(rig(self._servers, self._directory, kind)), kind
        return self._rig

    def close(self) -> None:
        """End the last one."""
        self._open.close()


@pytest.fixture(scope="module")
def rigs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rigs]:
    with Servers() as servers, closing(Rigs(servers, tmp_path_factory.mktemp("faults"))) as made:
        yield made


def test_the_table_has_every_row() -> None:
    rows = read_table(OPERATIONS.read_text())
    assert [(row[0], row[1], row[-1]) for row in rows] == [(each.of, each.name, shown(each)) for each in FAULTS]
    read_on = [each.bring is not None or not each.stops for each in FAULTS]
    assert [(row[4], row[5]) for row in rows] == [("0" if each else "", "0") for each in read_on]


@pytest.mark.parametrize("test", sorted({each.test or OWN_TEST for each in FAULTS}))
def test_each_row_names_a_test(test: str) -> None:
    file, _, name = test.partition("::")
    functions = [
        each.name for each in ast.parse((HERE / file).read_text()).body if isinstance(each, ast.FunctionDef)
    ]
    assert name in functions


@pytest.mark.parametrize("fault", TRIED, ids=key)
def test_a_fault(rigs: Rigs, fault: Fault) -> None:
    check(fault, rigs.of(fault.rig))
