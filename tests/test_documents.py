"""What the documents mention exists: links, paths, commands, keys, metrics, and messages."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.arguments import parser
from engine.commands.reference import OPERATIONS, PROTOCOL, reference_markdown
from engine.config import load
from engine.config.environment import WELL_KNOWN
from engine.core.ledger import Phase
from engine.failpoints import POINTS
from engine.supervisor.metrics import metrics_markdown
from tests.test_imports import LAYERS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "engine" / "README.md"
ENVIRONMENT = {"MONGODB_URI": "mongodb://db.example"}
README_BYTES_MAX = 9_000


def files(ending: str) -> list[Path]:
    """The project's files with this extension; of hidden directories only ``.github`` belongs to it."""
    found = ((path, path.relative_to(ROOT).parts) for path in ROOT.rglob(f"*{ending}"))
    return sorted(
        path
        for path, parts in found
        if not any(part.startswith(".") and part != ".github" for part in parts) and parts[0] != "bench-report"
    )


DOCUMENTS = files(".md")
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return [code for found, code in FENCE.findall(text) if found == language]


def prose(text: str) -> str:
    """A document without its fenced blocks."""
    return FENCE.sub("", text)


def inline(text: str) -> list[str]:
    """Inline code."""
    return [code.strip() for code in re.findall(r"`([^`\n]+)`", prose(text))]


# --- links --------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors that GitHub generates for a document's headings."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(text), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\](\([^)]*\))?|[`*]", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken_links(path: Path, text: str) -> list[str]:
    """The broken relative links of a document."""
    visible = re.sub(r"`[^`\n]+`", "", prose(text))
    targets = re.findall(r"\]\(([^)\s]+)\)", visible) + re.findall(r"^\[[^]]+\]: (\S+)", visible, re.MULTILINE)
    broken = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        there = text if file == path else file.read_text() if file.is_file() and file.suffix == ".md" else ""
        if not file.exists() or not file.is_relative_to(ROOT) or (anchor and anchor not in anchors(there)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("name", NAMES)
def test_every_link_resolves(name: str) -> None:
    path = ROOT / name
    assert broken_links(path, path.read_text()) == []


def test_broken_links_are_found() -> None:
    planted = {
        "[a](bench/NOTHING.md)": "bench/NOTHING.md",
        "[a](#no-such-heading)": "#no-such-heading",
        "[a](configs/LAKE.md#no-such-heading)": "configs/LAKE.md#no-such-heading",
        "![a](bench/figures/nothing.png)": "bench/figures/nothing.png",
        "[a](../elsewhere.md)": "../elsewhere.md",
        "[a]: nothing.md": "nothing.md",
    }
    good = "# One `two`: (three)\n[a](#one-two-three) [b](configs/LAKE.md#columns) [c](https://example.com/x.md)\n"
    assert broken_links(README, good + "".join(f"\n{each}\n" for each in planted)) == [*planted.values()]


def test_the_readme_is_short() -> None:
    assert len(README.read_bytes()) <= README_BYTES_MAX


# --- commands -----------------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[str]:
    """All commands of a document, in shell blocks and in sentences."""
    for block in blocks(text, "sh"):
        yield from (line for line in block.replace("\\\n", " ").splitlines() if line.strip())
    yield from (
        code for code in inline(text) if re.match(r"([A-Z_]+=\S* )*(python -m|\./scripts/|headrace )", code)
    )


def problem_of(command: str) -> str:
    """What is wrong with a command; empty if it is valid."""
    first, pipe, then = command.partition(" | ")
    if pipe:
        return problem_of(first) or problem_of(then)
    words = shlex.split(command, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    match words:
        case ["python", "-m", "engine", *arguments] | ["headrace", *arguments]:
            return problem_of_engine(arguments)
        case ["python", "-m", "bench", name, *arguments] if not name.startswith("-"):
            return "" if name == "NAME" else unknown_options(("bench", name), arguments)
        case ["python", "-m", module, *arguments]:
            if importlib.util.find_spec(module) is None:
                return f"no module {module}"
            return unknown_options((module,), arguments) if arguments[:1] == ["--help"] else ""
        case ["pip", "install", what]:
            extras = re.findall(r"\[(\w+)\]", what)
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            return "" if set(extras) <= known.keys() else f"no extra {extras}"
        case [script, *arguments] if script.startswith("./scripts/"):
            return problem_of_script(script, arguments)
    return "a command that this test does not know"


def problem_of_engine(arguments: list[str]) -> str:
    given = arguments if arguments and not arguments[0].startswith("--config") else ["run", *arguments]
    try:
        options = parser().parse_args(given)
    except SystemExit as ended:
        return "" if ended.code == 0 else f"{arguments} cannot be parsed"
    config = getattr(options, "config", None)
    return "" if config is None or (ROOT / config).exists() else f"no {config}"


def problem_of_script(script: str, arguments: list[str]) -> str:
    path = ROOT / script
    if not path.is_file() or not path.stat().st_mode & 0o100:
        return "no such script"
    modules = {"quickstart": ("bench.local.demo",), "soak": ("bench.soak",), "test": ("pytest",)}
    text = path.read_text()
    if path.name in modules:  # to which the script passes on what it does not take itself
        return unknown_options(modules[path.name], [each for each in arguments if f'"{each}"' not in text])
    return "".join(f"{each} is unknown" for each in arguments if each.startswith("-") and each not in text)


@functools.cache
def help_of(words: tuple[str, ...]) -> str:
    """The help text of a module."""
    command = [sys.executable, "-m", *words, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout


def unknown_options(words: tuple[str, ...], arguments: list[str]) -> str:
    options = [each.partition("=")[0] for each in arguments if each.startswith("-")]
    if not options:
        known = ("bench",) if words[0] == "bench" else ()
        return (
            "" if not known or re.search(rf"^    {words[1]}\b", help_of(known), re.MULTILINE) else "no benchmark"
        )
    text = help_of(words)
    return "".join(f"{each} is unknown" for each in options if not re.search(rf"(^|\s){each}\b", text))


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_valid(name: str) -> None:
    found = {each: problem_of(each) for each in commands((ROOT / name).read_text())}
    assert {each: problem for each, problem in found.items() if problem} == {}


@pytest.mark.parametrize(
    "wrong",
    [
        "python -m engine --config configs/nothing.toml",
        "python -m engine backfill --config configs/prod.toml --colections orders",
        "headrace verfy",
        "./scripts/nothing",
        "./scripts/quickstart --kep",
        "./scripts/check --fixed",
        "HEADRACE_X=1 python -m bench nothing",
        "python -m bench stream --round 3x --evnts 1",
        "python -m bench.nothing",
        "pip install headrace[spark]",
        "curl http://localhost",
    ],
)
def test_wrong_commands_are_found(wrong: str) -> None:
    assert problem_of(wrong)


# --- configuration, paths, metrics --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_loads(name: str, tmp_path: Path) -> None:
    for number, block in enumerate(blocks((ROOT / name).read_text(), "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(block)
        assert load(file, ENVIRONMENT).sink.url


@pytest.mark.parametrize("name", ["dev.toml", "prod.toml"])
def test_the_examples_load(name: str) -> None:
    assert load(ROOT / "configs" / name, ENVIRONMENT | {"PWD": "/srv"}).sink.url


def missing_paths(path: Path, text: str) -> list[str]:
    """The paths of a document that do not exist, relative to the root, ``engine/`` or its own directory."""
    known = {each.name for ending in (".py", ".md", ".toml", ".sql", ".rs") for each in files(ending)}
    missing = []
    for code in inline(text):
        if re.fullmatch(r"[\w.-]+\.(py|md|toml|sql|rs)", code):
            missing += [] if code in known else [code]
        elif re.fullmatch(
            r"(\./)?[\w.-]+(/[\w.-]+)*/[\w-]+\.(py|md|toml|sql)|(engine|tests|bench|configs)/\S*", code
        ):
            places = (ROOT, ROOT / "engine", path.parent)
            missing += [] if any((place / code).exists() for place in places) else [code]
    return missing


def unknown_names(text: str) -> set[str]:
    """The configuration keys and metrics of a document that do not exist."""
    keys = set(re.findall(r"^\| `(\S+?)` \|", reference_markdown(), re.MULTILINE))
    sections = "|".join({key.partition(".")[0] for key in keys})
    named = {code.partition(" = ")[0] for code in inline(text)}
    of_keys = {each for each in named if re.fullmatch(rf"({sections})\.[a-z_.0-9]+", each)}
    metrics = set(re.findall(r"headrace_\w+", metrics_markdown()))
    return {each for each in of_keys - keys if not each.endswith(".py")} | (
        set(re.findall(r"headrace_\w+", text)) - metrics
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_path_key_and_metric_exists(name: str) -> None:
    path = ROOT / name
    assert missing_paths(path, path.read_text()) == []
    assert unknown_names(path.read_text()) == set()


def test_unknown_paths_keys_and_metrics_are_found() -> None:
    good = "`engine/core/ledger.py` `core/ledger.py` `LAKE.md` `batch.rows = 1` headrace_reading"
    bad = ["engine/nothing/", "tests/nothing.py", "nothing.md", "core/nothing.py"]
    assert missing_paths(README, good + "".join(f" `{each}`" for each in bad)) == bad
    assert unknown_names(f"{good} `batch.row` headrace_wrting") == {"batch.row", "headrace_wrting"}


# --- contents that are also in the code ---------------------------------------------------------------------


@functools.cache
def messages() -> str:
    """All strings in the engine's code, with ``…`` for interpolated values."""
    found = []
    for path in (ROOT / "engine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value.replace("%s", "…"))
    return "\0".join(found)


def is_a_message(text: str) -> bool:
    """Whether the engine has this message; ``…`` stands for anything."""
    return re.search("[^\0]*".join(map(re.escape, text.split("…"))), messages()) is not None


def quoted_messages() -> list[str]:
    """The messages that have a runbook."""
    section = OPERATIONS.read_text().partition("\n## Runbooks by message\n")[2].partition("\n## ")[0]
    return re.findall(r"^#### `(.+)`$", section, re.MULTILINE)


def test_the_runbooks_quote_real_messages() -> None:
    assert len(quoted_messages()) > 30
    assert [each for each in quoted_messages() if not is_a_message(each)] == []


def test_messages_that_do_not_exist_are_found() -> None:
    assert not is_a_message("the flux capacitor is … empty")
    assert not is_a_message("streams are held up … stream stopped")


def first_column(text: str, heading: str) -> list[str]:
    """The inline code in the first column of the first table below a heading."""
    section = text.partition(f"\n{heading}\n")[2]
    rows = re.search(r"^\|.*?\n\n|^\|.*?\n<!--", section, re.DOTALL | re.MULTILINE)
    assert rows, heading
    return [code for row in rows[0].splitlines()[2:] for code in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def test_tables_agree_with_the_code() -> None:
    protocol = PROTOCOL.read_text()
    assert first_column(protocol, "## A segment's life") == [phase.name for phase in Phase]
    assert sorted(first_column(protocol, "## Crash points")) == sorted(POINTS)
    layers = [sorted(layer.split()) for layer in reversed(LAYERS)]
    table = ARCHITECTURE.read_text().partition("<!-- layers:begin -->")[2].partition("<!-- layers:end -->")[0]
    shown = [sorted(re.findall(r"`(\w+)`", row.split(" | ")[0])) for row in table.strip().splitlines()[2:]]
    assert shown == layers
    variables = first_column((ROOT / "configs" / "README.md").read_text(), "## Environment variables")
    assert sorted(variables) == sorted(WELL_KNOWN)
