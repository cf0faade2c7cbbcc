"""Secrets from files and from AWS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.config import load
from tests.aws import secrets_manager
from tests.config.files import MINIMAL, problems, written


def text_with(reference: str) -> str:
    return MINIMAL + f'[schema]\nprotect_key = "{reference}"\n'


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    values = {"plain": "pl4in", "json": '{"user": "u", "password": "p4ss"}', "empty": ""}
    with secrets_manager(values) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield


def test_a_file_is_read_without_its_last_newline_and_redacted_everywhere(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("f1le\n")
    text = MINIMAL.replace("mongodb://h", f"mongodb://u:${{file:{tmp_path}/password}}@${{HOST}}")
    text += f'[state]\nprefix = "p-${{file:{tmp_path}/password}}"\n'
    environ = {"HOST": "h", "REDIS_URL": f"redis://:${{file:{tmp_path}/password}}@h"}
    config = load(written(tmp_path, text), environ)
    assert (config.source.uri, config.state.url, config.state.prefix) == (
        "mongodb://u:f1le@h",
        "redis://:f1le@h",
        "p-f1le",
    )
    assert config.redactor()("so p-f1le, f1le") == "so p-***, ***"
    assert "f1le" not in repr(config.fetched)


def test_a_file_named_by_a_variable(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("f1le")
    environ = {"HEADRACE_SCHEMA__PROTECT_KEY": f"${{file:{tmp_path}/key}}", "WHERE": str(tmp_path)}
    assert load(written(tmp_path, MINIMAL), environ).schema.protect_key == "f1le"
    assert load(written(tmp_path, text_with("${file:${WHERE}/key}")), environ).schema.protect_key == "f1le"


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "no such file. Is the secret mounted there?"),
        (lambda path: path.write_text("\n\n"), "the file is empty. Write the secret into it."),
        (lambda path: path.write_bytes(b"s3cret\xff"), "the file is not text in UTF-8. Write the secret as text."),
        (
            lambda path: path.write_bytes(b"s" * 70_000),
            "the file is larger than 64 KiB. Name the file of",
        ),
        (lambda path: path.mkdir(), "the file cannot be read (Is a directory). Let the engine's user read it."),
    ],
)
def test_a_file_that_gives_no_secret(tmp_path: Path, make: Callable[[Path], object], problem: str) -> None:
    path = tmp_path / "secret"
    make(path)
    (found,) = problems(written(tmp_path, text_with(f"${{file:{path}}}")))
    assert found.startswith(f"schema.protect_key: ${{file:{path}}}: {problem}")
    assert "s3cret" not in found


@pytest.mark.usefixtures("aws")
def test_secrets_of_aws(tmp_path: Path) -> None:
    for reference, value in (("plain", "pl4in"), ("json#password", "p4ss"), ("json#user", "u")):
        config = load(written(tmp_path, text_with(f"${{aws:{reference}}}")), {})
        assert config.schema.protect_key == value
        assert config.redactor()(f"<{value}>") == "<***>"


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("nowhere", "AWS refuses it (ResourceNotFoundException). Check the secret's id, and the region"),
        ("denied", "AWS refuses it (AccessDeniedException). Grant secretsmanager:GetSecretValue"),
        ("empty", "the secret is empty. Give it a value."),
        ("plain#password", "the secret is not a JSON object. Leave out #password"),
        ("json#pass", "the secret has no key 'pass'. It has password, user."),
    ],
)
def test_a_secret_of_aws_that_cannot_be_had(tmp_path: Path, reference: str, problem: str) -> None:
    (found,) = problems(written(tmp_path, text_with(f"${{aws:{reference}}}")))
    assert found.startswith(f"schema.protect_key: ${{aws:{reference}}}: {problem}")
    assert "p4ss" not in found


def test_aws_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s3cret", "AWS_REGION": "r"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    (found,) = problems(written(tmp_path, text_with("${aws:x}")))
    assert "Is AWS Secrets Manager reachable" in found
    assert "s3cret" not in found
