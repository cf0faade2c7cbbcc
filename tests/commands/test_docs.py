"""The documents that come with the package; that the wheel has them is in ``test_package``."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from engine import cli
from engine.commands.docs import _ABOUT, DOCUMENTS
from engine.commands.reference import reference_toml

ENGINE = Path(cli.__file__).parent


def test_each_document_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["docs"]) == 0
    listed = capsys.readouterr().out
    assert list(_ABOUT) == list(DOCUMENTS)
    for name, path in DOCUMENTS.items():
        assert f"headrace docs {name} " in listed
        assert cli.main(["docs", name]) == 0
        assert capsys.readouterr().out == (ENGINE.parent / path).read_text()
    assert cli.main(["docs", "reference"]) == 0
    assert capsys.readouterr().out == reference_toml()


def test_messages_refer_to_nothing_that_only_the_repository_has() -> None:
    """What has only the wheel can follow ``headrace docs operations``, but no path."""
    found = {
        f"{path.relative_to(ENGINE)}:{node.lineno}": str(node.value)
        for path in ENGINE.rglob("*.py")
        if path.name not in ("docs.py", "reference.py")
        for node in strings(ast.parse(path.read_text()))
        if re.search(r"\b(configs|scripts|bench|tests)/|\.md\b|reference\.toml", str(node.value))
    }
    assert found == {}
    named = {
        name for path in ENGINE.rglob("*.py") for name in re.findall(r"`headrace docs (\w+)`", path.read_text())
    }
    assert named
    assert named <= DOCUMENTS.keys()


def strings(tree: ast.AST) -> list[ast.Constant]:
    """All strings but docstrings."""
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]
