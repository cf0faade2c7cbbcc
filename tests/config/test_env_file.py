"""Files of environment variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import load, read_env_files
from engine.errors import ConfigError
from tests.config.files import MINIMAL, written

TEXT = """\
# A comment, and an empty line.

MONGODB_URI=mongodb://h/?a=1#b
export HEADRACE_BATCH__ROWS="5"
HEADRACE_STATE__PREFIX='with # and ${HOME}'
EMPTY=
GIVEN
"""


def test_variables_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "env").write_text(TEXT)
    found = read_env_files([tmp_path / "env"], {"GIVEN": "by the environment"})
    assert found == {
        "MONGODB_URI": "mongodb://h/?a=1#b",
        "HEADRACE_BATCH__ROWS": "5",
        "HEADRACE_STATE__PREFIX": "with # and ${HOME}",
        "EMPTY": "",
    }
    config = load(written(tmp_path, MINIMAL), found | {"HOME": "x"})
    assert (config.batch.rows, config.state.prefix) == (5, "with # and ${HOME}")


def test_the_environment_counts_before_files_and_later_files_before_former(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("A=1\nB=1\nC=1\n")
    (tmp_path / "two").write_text("B=2\nC=2\n")
    assert read_env_files([tmp_path / "one", tmp_path / "two"], {"C": "3"}) == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("A=1\n\n\nthis is s3cret\n", "line 4 cannot be parsed"),
        ("A='it''s s3cret'\n", "line 1 cannot be parsed"),
        ('A=1\nB="s3cret\nC=2\n', "line 2 cannot be parsed"),
        ("A=1\n1B=s3cret\n", "line 2 cannot be parsed"),
        ("A=1\nNEITHER\n", "line 2 gives NEITHER no value, and it is not in the environment"),
        (b"A=s3cret\xff\n", "the file is not text in UTF-8"),
        (None, "No such file or directory"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_line_and_not_shown(
    tmp_path: Path, text: str | bytes | None, cause: str
) -> None:
    path = tmp_path / "env"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        read_env_files([path], {})
    assert caught.value.cause == cause
    assert str(path) in str(caught.value)
    assert caught.value.remedy
    assert "s3cret" not in str(caught.value)
