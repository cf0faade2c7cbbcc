"""Common mistakes are reported clearly, and read-only commands change nothing."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from bench.local.servers import Valkey, wait_until
from tests.conditions import as_a_replica, client_of, out_of_memory, set_to
from tests.exploring import rare
from tests.integration.harness import Engine, EngineConfig, Lake, catch_up, is_alive, run_engine

Client = MongoClient[dict[str, Any]]


# --- names that the server does not have --------------------------------------------


def absent_lines(log: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line for line in lines if "there is no" in line.get("cause", "")]


def test_missing_collections_are_reported_once(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    mongo[config.name].orders.insert_one({"n": 1})
    mongo[config.name].users.insert_one({"n": 2})
    # Still once, with several readers and a split collection.
    config.set("source", collections=["orderss", "users", "zzz"], split={"users": 2})
    catch_up(config)
    config.set("source", collections=["orderss", "users", "zzz"], split={})
    for command in ("check", "backfill"):
        done = run_engine(config, command)
        assert done.returncode == 0, done.stderr + done.stdout
        said = done.stdout + done.stderr
        assert said.count("there is no collection 'orderss'") == 1
        assert "did you mean 'orders'?" in said
        assert said.count("there is no collection 'zzz'") == 1
    found = sorted((row["n"], row["_cdc_op"]) for row in lake.rows() if row["n"] is not None)
    assert found == [(2, "insert"), (2, "read")]


def test_run_warns_once_about_missing_collections(mongo: Client, config: EngineConfig) -> None:
    mongo[config.name].orders.insert_one({"n": 1})
    config.set("source", collections=["orderss", "orders", "users"], split={"orders": 2})
    done = run_engine(config, "run", "--until-caught-up")
    assert done.returncode == 0, done.stderr
    found = [line["cause"] for line in absent_lines(done.stderr)]
    assert len(found) == 2
    assert found[0] == f"there is no collection 'orderss' in {config.name}: did you mean 'orders'?"
    assert found[1].startswith(f"there is no collection 'users' in {config.name}: it is captured once it exists")


def test_a_missing_database_is_reported_once(mongo: Client, config: EngineConfig) -> None:
    mongo[config.name].orders.insert_one({"n": 1})
    config.set("source", database=f"{config.name}x", collections=["a", "b"])
    done = run_engine(config, "run", "--until-caught-up")
    (line,) = absent_lines(done.stderr)
    assert f"did you mean '{config.name}'" in line["cause"]
    config.set("source", watch="database", collections=[])
    done = run_engine(config, "backfill")
    assert (done.returncode, len(absent_lines(done.stderr))) == (0, 1)


# --- read-only commands -----------------------------------------------------------------------------


def test_read_only_commands_create_nothing(
    mongo: Client, config: EngineConfig, tmp_path: Path, lake: Lake
) -> None:
    mongo[config.name].orders.insert_one({"n": 1})
    (tmp_path / "state").mkdir()
    config.set("state", url=f"sqlite:///{tmp_path}/state/s.db")
    config.set("sink", url=f"file://{tmp_path}/lake")
    before = sorted(tmp_path.rglob("*"))
    done = run_engine(config, "check")
    assert done.returncode == 0, done.stdout
    assert "there is no state yet" in done.stdout
    for command in (["status"], ["state", "show"]):
        done = run_engine(config, *command)
        assert done.returncode == 1
        assert f"there is no state yet at {tmp_path}/state/s.db" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    config.set("state", url=f"sqlite:///{tmp_path}/nowhere/s.db")
    done = run_engine(config, "check")
    assert done.returncode == 2
    assert f"there is no directory {tmp_path}/nowhere" in done.stdout


def test_read_only_commands_leave_the_state_files_alone(
    mongo: Client, config: EngineConfig, tmp_path: Path
) -> None:
    mongo[config.name].orders.insert_one({"n": 1})
    config.set("state", url=f"sqlite:///{tmp_path}/s.db")
    catch_up(config)

    def files() -> list[tuple[str, bytes]]:
        return [(path.name, path.read_bytes()) for path in sorted(tmp_path.glob("s.db*"))]

    before = files()
    assert run_engine(config, "check").returncode == 0
    (shown,) = [json.loads(line) for line in run_engine(config, "status").stdout.splitlines()]
    assert (shown["events"], shown["status"]) == (1, "stopped")
    assert shown["behind_s"] >= 0
    assert files() == before
    with Engine(config) as engine:  # the last writes are still in the log beside the file
        engine.wait_reading()
        shown, _engine = map(json.loads, run_engine(config, "status").stdout.splitlines())
        assert shown["status"] == "running"
        assert run_engine(config, "check").returncode == 0
        assert engine.terminate() == 0
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE t (x)")
    config.set("state", url=f"sqlite:///{tmp_path}/other.db")
    assert run_engine(config, "status").returncode == 1


# --- terminals and pipes ---------------------------------------------------------------------------------


def on_a_terminal(config: EngineConfig, columns: int, *arguments: str) -> str:
    """The output of a command on a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", *arguments, "--config", str(config.path)],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=environment | {"TERM": "xterm", "NO_COLOR": "1"},
    )
    os.close(theirs)
    said = b""
    with suppress(OSError):  # at the end of the output
        while data := os.read(ours, 65536):
            said += data
    os.close(ours)
    with process:
        assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", said.decode().replace("\r\n", "\n"))


@pytest.mark.parametrize("columns", [rare(80), 60])
def test_status_is_readable_at_any_width(mongo: Client, config: EngineConfig, columns: int) -> None:
    long = "a_collection_with_quite_a_long_name_as_some_have"
    names = ["orders", long, *(f"collection{n}" for n in range(6))]
    for name in names:
        mongo[config.name][name].insert_many([{"n": n} for n in range(1200)])
    config.set("source", collections=names, max_readers=2)
    catch_up(config)
    run_engine(config, "backfill", "--collections", "orders")
    said = on_a_terminal(config, columns, "status")
    assert max(map(len, said.splitlines())) <= columns
    words = said.split()
    assert all(each in words for each in ("stream", "status", "behind", "events", "held", "stopped"))
    assert said.count("stopped") == 2
    assert sum(int(word.replace(",", "")) for word in words if "," in word and word[0].isdigit()) >= 9600
    # Long values are printed in full, on lines of their own.
    squeezed = "".join(said.split())
    rows = [json.loads(line) for line in run_engine(config, "status").stdout.splitlines()]
    streams = [row for row in rows if "position" in row]
    assert len(streams) == 2
    for row in streams:
        assert row["position"].replace(" ", "") in squeezed
        assert row["collections"].replace(" ", "") in squeezed
        assert row["cluster_time"] in words
    assert f"{config.name}.orders" in words


@pytest.mark.parametrize("command", [["status"], ["check"], ["backfill"], ["--help"], ["status", "--help"]])
def test_a_closed_pipe_ends_a_command_quietly(mongo: Client, config: EngineConfig, command: list[str]) -> None:
    mongo[config.name].orders.insert_one({"n": 1})
    catch_up(config)
    theirs, ours = os.pipe()
    os.close(theirs)
    where = [] if "--help" in command else ["--config", str(config.path)]
    with subprocess.Popen(
        [sys.executable, "-m", "engine", *command, *where],
        stdout=ours,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    ) as process:
        os.close(ours)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


# --- a machine without a place for temporary files -------------------------------------------------------

_READ_ONLY = """
set -e
for each in /tmp /var/tmp /usr/tmp; do
    [ ! -d $each ] || { mount --bind $each $each && mount -o remount,bind,ro $each; }
done
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && cd "$1"
shift
exec "$@"
"""


@pytest.mark.parametrize("command", ["run", "backfill"])
def test_without_a_temporary_directory_the_error_says_what_to_set(config: EngineConfig, command: str) -> None:
    """Read-only mounts, because permissions do not restrict root."""
    script = ["unshare", "--mount", "sh", "-c", _READ_ONLY, "sh", str(config.directory)]
    if subprocess.run([*script, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    done = subprocess.run(
        [*script, sys.executable, "-m", "engine", command, "--config", str(config.path)],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name not in ("TMPDIR", "TMP", "TEMP")},
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = json.loads(done.stderr.splitlines()[-1])
    assert "no usable temporary directory" in last["cause"]
    assert "Set TMPDIR" in last["remedy"]


def test_a_temporary_directory_whose_path_is_too_long_for_a_socket(config: EngineConfig, tmp_path: Path) -> None:
    long = tmp_path / ("d" * 100)
    long.mkdir()
    with Engine(config, environment={"TMPDIR": str(long)}) as engine:
        assert engine.end() == 2
    assert "too long" in engine.log()
    assert "Set TMPDIR" in engine.log()
    assert "Traceback" not in engine.log()


# --- the last line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_format", ["json", "auto", "text"])
def test_the_final_error_has_the_format_of_the_log(config: EngineConfig, log_format: str) -> None:
    """For errors in the configuration as well, if the rest of it has the format."""
    config.set("telemetry", log_format=log_format)
    config.set("sink", url="s3://no-such-bucket/x")
    config.set("sink.s3", secret_key="wrong/s3cret")
    bad_keys = run_engine(config, "run").stderr.splitlines()
    config.set("source", strat="now", uri="mongodb://u:pa55word@h/?x=pa55word")
    bad_configuration = run_engine(config, "status").stderr.splitlines()
    for lines in (bad_keys, bad_configuration):
        assert "s3cret" not in str(lines)
        assert "pa55word" not in str(lines)
        if log_format == "text":
            assert any(line.startswith("headrace: ") for line in lines)
            continue
        last = [json.loads(line) for line in lines][-1]
        assert (last["level"], last["process"], last["exit_code"]) == ("error", "supervisor", 2)
        assert last["error"].startswith(f"{last['operation']}: ")
        assert last["cause"]
    if log_format != "text":
        assert json.loads(bad_keys[-1])["remedy"]


def test_a_bug_is_logged_in_the_configured_format_and_without_secrets(config: EngineConfig) -> None:
    script = (
        "import sys, engine.commands.check\nfrom engine.cli import main\n"
        "def fail(config, *_, **__): raise RuntimeError(config.sink.s3.secret_key)\n"
        f"engine.commands.check.check = fail\nsys.exit(main(['check', '--config', {str(config.path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert "RuntimeError: ***" in line["traceback"]
    assert config.stack.s3.secret_key not in done.stderr


# --- signals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["run", "backfill"])
def test_a_signal_before_anything_is_running(config: EngineConfig, command: str, number: signal.Signals) -> None:
    with Engine(config, command=command) as engine:
        wait_until(lambda: bool(engine.children()), "a first child")
        children = engine.children()
        os.killpg(engine.process.pid, number)
        assert engine.end(20) == 0, engine.log()
    assert "Traceback" not in engine.log()
    wait_until(lambda: not any(map(is_alive, children)), "the end of its children")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_module_executes_text(tmp_path: Path, number: signal.Signals) -> None:
    """As dataclasses do. The interpreter does not forget a KeyboardInterrupt that was raised there and caught."""
    (tmp_path / "started.py").write_text(
        "import sys\nimport engine.cli\n"
        f"text = 'import os\\nos.kill(os.getpid(), {int(number)})\\nwhile True: pass'\n"
        "engine.cli.load = lambda _: exec(text)\nsys.exit(engine.cli.main(['run', '--config', 'any.toml']))\n"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-m", "started"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths}
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_nohup_is_respected(mongo: Client, config: EngineConfig) -> None:
    mongo[config.name].create_collection("orders")
    with Engine(config, ignored=[signal.SIGHUP]) as engine:
        engine.wait_reading()
        os.killpg(engine.process.pid, signal.SIGHUP)
        mongo[config.name].orders.insert_one({"n": 1})
        engine.wait_for(lambda status: status["streams"][0]["events_committed"] == 1, "all events")
        assert not (engine.status() or {})["draining"]
        assert engine.terminate() == 0
    assert '"level":"warning"' not in engine.log()


def test_closing_the_terminal_ends_a_backfill_in_order(mongo: Client, config: EngineConfig, lake: Lake) -> None:
    """Progress bars can no longer be written, and that must not abort the drain."""
    mongo[config.name].orders.insert_many([{"_id": n, "n": n, "text": "x" * 500} for n in range(5000)])
    config.set("backfill", max_documents_per_s=500, readers=1)
    ours, theirs = pty.openpty()

    process = subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-m", "engine", "backfill", "--config", str(config.path)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    deadline = time.monotonic() + 60
    os.set_blocking(ours, False)
    while not lake.object_keys():
        assert time.monotonic() < deadline, "nothing landed"
        assert process.poll() is None
        with suppress(BlockingIOError):
            os.read(ours, 65536)
        time.sleep(0.05)
    os.close(ours)
    assert process.wait(60) == 0
    (shown,) = [json.loads(line) for line in run_engine(config, "status").stdout.splitlines()]
    assert 0 < shown["documents"] < 5000
    assert shown["documents"] == len(lake.rows())


@pytest.mark.parametrize("condition", [out_of_memory, as_a_replica])
def test_check_reports_a_read_only_state_store(config: EngineConfig, server: Valkey, condition: Any) -> None:
    config.set("state", url=server.url)
    with condition(server):
        done = run_engine(config, "check")
    assert done.returncode == 1, done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("failed")]
    assert "state store" in line
    with client_of(server) as client, set_to(client, maxmemory_policy="allkeys-lru"):
        done = run_engine(config, "check")
        assert client.keys("*") == []
    assert (done.returncode, "doubt" in done.stdout) == (0, True)
