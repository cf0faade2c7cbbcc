"""The wheel: what is in it, what it needs, and that it works where nothing else is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bench.local import LocalStack
from engine.commands.docs import DOCUMENTS
from engine.rawbson import native
from tests.integration.harness import EngineConfig

ROOT = Path(__file__).parents[1]


def project() -> dict[str, Any]:
    """The project's own description of itself."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, f"--wheel-dir={directory}", str(ROOT)], check=True, timeout=120)
    (found,) = directory.glob("headrace-*.whl")
    return found


def test_the_wheel_has_the_engine_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    assert {name.partition("/")[0] for name in names} == {"engine", metadata.partition("/")[0]}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "engine").rglob("*.py")}
    files = {"engine/py.typed", "engine/supervisor/page.html"}
    files |= {f"engine/documents/{path}" for path in DOCUMENTS.values()}
    if native.library:
        files.add("engine/rawbson/_native.abi3.so")
    assert {name for name in names if name.startswith("engine/")} == sources | files
    needed = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]
    always = [each for each in needed if "extra ==" not in each]
    assert len(always) == len(project()["dependencies"])
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes; needs {', '.join(always)}")


def test_without_a_compiler_the_wheel_is_for_all_platforms(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*pip, f"--wheel-dir={tmp_path}", str(ROOT)],
        env=os.environ | {"CC": str(tmp_path / "no-compiler")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (found,) = tmp_path.glob("headrace-*.whl")
    assert found.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(found) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".c", ".h"))]


def test_installed_alone_it_reaches_the_servers(
    wheel: Path, stack: LocalStack, tmp_path: Path, unique: str
) -> None:
    """In an environment of its own, with the dependencies that are installed here, from an empty directory."""
    config = EngineConfig(stack, tmp_path, unique)
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, f"--prefix={environment}", "--ignore-installed", str(wheel)], check=True)
    # A path alone: what is installed here as editable is not found by it.
    (site / "dependencies.pth").write_text(next(each for each in sys.path if each.endswith("site-packages")))
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*command: str) -> str:
        # By its own Python: pip has written its own into the script.
        programs = [str(environment / "bin" / each) for each in dict.fromkeys(("python", command[0]))]
        done = subprocess.run(
            [*programs, *command[1:]],
            cwd=empty,
            env={"PATH": "/usr/bin:/bin", "HOME": str(empty)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    version = run("headrace", "--version").split()
    assert version[0] == "headrace"
    assert f"-{version[1]}-" in wheel.name
    assert "can be opened" in run("headrace", "check", "--config", str(config.path))
    for name, path in DOCUMENTS.items():
        assert run("headrace", "docs", name) == (ROOT / path).read_text()
    code = "import engine, importlib.util as u; print(engine.__file__, u.find_spec('bench'), u.find_spec('tests'))"
    assert run("python", "-c", code).split() == [str(site / "engine" / "__init__.py"), "None", "None"]
    assert list(empty.iterdir()) == []


def test_the_oldest_constraints_are_the_lower_bounds() -> None:
    bounds = [*project()["dependencies"], *project()["optional-dependencies"]["avro"]]
    pinned = (ROOT / "scripts" / "constraints" / "oldest.txt").read_text().splitlines()
    wanted = sorted(re.sub(r"\[.*\]", "", each).replace(">=", "==") for each in bounds)
    assert [each for each in pinned if not each.startswith("#")] == wanted


def test_without_what_writes_avro_the_extra_is_named(stack: LocalStack, tmp_path: Path, unique: str) -> None:
    config = EngineConfig(stack, tmp_path, unique)
    config.set("sink", format="avro")
    hide = "import sys; sys.modules['fastavro'] = None; from engine.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", hide, "check", "--config", str(config.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "pip install 'headrace[avro]'" in done.stderr


@pytest.fixture
def advisories() -> Iterator[str]:
    """The URL of a database of vulnerabilities, which has one of numpy."""
    affected = {"package": {"name": "numpy", "ecosystem": "PyPI"}, "ranges": [], "versions": []}
    vulnerability = {"id": "OSV-1", "summary": "x", "details": "x", "aliases": [], "affected": [affected]}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = {"vulns": [vulnerability]} if asked["package"]["name"] == "numpy" else {}
            body = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def audit(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("pip_audit")
    command = [str(ROOT / "scripts" / "audit"), "--vulnerability-service", "osv", "--osv-url", url, *arguments]
    environment = os.environ | {"HEADRACE_VENV": sys.prefix}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_a_known_vulnerability_of_a_dependency_is_found(advisories: str) -> None:
    found = audit(advisories)
    assert found.returncode == 1, found.stderr
    (line,) = found.stderr.splitlines()
    assert re.fullmatch(r"scripts/audit: numpy [0-9.]+: OSV-1, fixed in no version", line)
    left_out = audit(advisories, "--ignore-vuln", "OSV-1")
    assert (left_out.returncode, left_out.stderr) == (0, "")


def test_without_advisories_the_audit_says_so_and_does_not_fail() -> None:
    found = audit("http://127.0.0.1:1")
    assert found.returncode == 0
    assert "advisories cannot be reached" in found.stderr
