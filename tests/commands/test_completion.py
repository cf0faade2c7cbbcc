"""The scripts for shells, in those that are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from engine import cli


def script_for(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["completion", shell]) == 0
    return capsys.readouterr().out


def run(shell: str, *arguments: str, cwd: Path | None = None) -> str:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, *arguments], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_can_parse_its_script(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "script").write_text(script_for(shell, capsys))
    run(shell, "-n", str(tmp_path / "script"))


def test_bash_completes_commands_options_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "script").write_text(script_for("bash", capsys))
    (tmp_path / "prod.toml").touch()

    def completed(*words: str) -> set[str]:
        line = " ".join(f"'{each}'" for each in ("headrace", *words))
        call = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_headrace headrace '{words[-1]}'"
        return set(run("bash", "-c", f'. ./script; {call}; echo "${{COMPREPLY[@]}}"', cwd=tmp_path).split())

    assert completed("stat") == {"status", "state"}
    assert completed("state", "re") == {"rewind", "rebuild"}
    assert {"--config", "--env-file", "--for"} <= completed("check", "--")
    assert completed("check", "--config", "pr") == {"prod.toml"}


def test_fish_completes_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "script").write_text(script_for("fish", capsys))
    found = run("fish", "-c", "source script; complete -C 'headrace stat'", cwd=tmp_path)
    assert {line.partition("\t")[0] for line in found.splitlines()} >= {"status", "state"}
