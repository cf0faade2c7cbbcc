"""Files, environment, errors, and the reference that is made from the same structs."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import Config, Duration, Secret, Size, format_duration, format_size, load
from engine.errors import ConfigError

MINIMAL = '[source]\nuri = "mongodb://h"\ndatabase = "d"\ncollections = ["c"]\n[sink]\nurl = "file:///lake"\n'


def written(directory: Path, text: str) -> Path:
    path = directory / "config.toml"
    path.write_text(text)
    return path


def problems(path: Path | None, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]]


def test_defaults(tmp_path: Path) -> None:
    config = load(written(tmp_path, MINIMAL), {})
    assert config.batch.bytes == 128 * 2**20
    assert format_duration(config.lease.ttl) == "30s"
    assert config.state.url == "sqlite:///headrace-state.db"


def test_everything_from_the_environment() -> None:
    config = load(
        None,
        {
            "MONGODB_URI": "mongodb://u:p@h/",
            "MONGODB_DATABASE": "shop",
            "MONGODB_COLLECTIONS": "users, orders",
            "BATCH_SIZE": "5000",
            "S3_BUCKET": "lake",
            "S3_PREFIX": "/cdc/",
            "AWS_REGION": "eu-central-1",
            "REDIS_URL": "redis://r",
        },
    )
    assert config.source.collections == ["users", "orders"]
    assert (config.batch.rows, config.sink.url, config.sink.s3.region) == (5000, "s3://lake/cdc", "eu-central-1")
    assert config.state.url == "redis://r"


def test_what_the_file_says_wins_over_well_known_variables(tmp_path: Path) -> None:
    config = load(written(tmp_path, MINIMAL), {"MONGODB_URI": "mongodb://other", "S3_BUCKET": "b"})
    assert (config.source.uri, config.sink.url) == ("mongodb://h", "file:///lake")


def test_overrides_win_over_everything(tmp_path: Path) -> None:
    environ = {
        "HEADRACE_SOURCE__URI": "mongodb://override",
        "HEADRACE_SINK__S3__REGION": "x",
        "HEADRACE_BATCH__INTERVAL": "250ms",
        "HEADRACE_SOURCE__SPLIT": "{c = 3}",
        "HEADRACE_SOURCE__EXPANDED_EVENTS": "true",
        "HEADRACE_FAILPOINT": "is no key",
    }
    config = load(written(tmp_path, MINIMAL), environ)
    assert config.source.uri == "mongodb://override"
    assert config.sink.s3.region == "x"
    assert config.batch.interval == 0.25
    assert config.source.split == {"c": 3}
    assert config.source.expanded_events is True


def test_variables_are_expanded_with_defaults(tmp_path: Path) -> None:
    text = (
        MINIMAL.replace("mongodb://h", "mongodb://${USER_NAME}:${PASS:-none}@h")
        + '[writers]\nprocesses = "${N:-3}"\n'
    )
    config = load(written(tmp_path, text), {"USER_NAME": "u"})
    assert config.source.uri == "mongodb://u:none@h"
    assert config.writers.processes == 3


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    text = MINIMAL.replace("database", "databse").replace('["c"]', '"c"') + (
        '[batch]\nrows = 0\nbytes = "1 parsec"\ninterval = "1ms"\n'
        "[writers]\nprocesses = 65\n[lease]\nttl = true\n[tls]\nx = 1\n"
        '[retry]\nmax_attempts = "${ATTEMPTS}"\n'
    )
    assert sorted(problems(written(tmp_path, text))) == [
        "batch.bytes: got '1 parsec'; expected a size such as \"64MiB\", at least 1KiB",
        'batch.interval: got \'1ms\'; expected a time such as "30s" or "5m", at least 50ms',
        "batch.rows: got 0; expected an integer of at least 1",
        'lease.ttl: got True; expected a time such as "30s" or "5m", at least 1s',
        "retry.max_attempts: ${ATTEMPTS} is not set; export ATTEMPTS, or write ${ATTEMPTS:-default}",
        "retry.max_attempts: got ''; expected an integer of at least 1",
        "source.collections: got 'c'; expected a list of texts",
        "source.databse: unknown key; did you mean 'database'?",
        "tls: unknown key; known here: source, sink, schema, backfill, batch, memory, writers, state, lease, "
        "retry, telemetry, shutdown, supervision",
        "writers.processes: got 65; expected an integer from 1 to 64",
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("mongodb://h", "http://h"), "source.uri: expected mongodb:// or mongodb+srv://"),
        (('database = "d"\n', ""), 'source.database: missing; needed for watch = "collections"'),
        (('collections = ["c"]\n', ""), "source.collections: missing"),
        (('["c"]', '["c", "c"]'), "source.collections: a name stands there twice"),
        (('["c"]\n', '["c"]\nsplit = {d = 2}\n'), "source.split: d is not in source.collections"),
        (('["c"]\n', '["c"]\nsplit = {c = 0}\n'), "source.split.c: expected an integer of at least 1"),
        (('["c"]\n', '["c"]\nwatch = "database"\n'), "not used with watch"),
        (('["c"]\n', '["c"]\nstart = "2026-05-01T00:00:00"\n'), "source.start: got '2026-05-01T00:00:00'"),
        (("file:///lake", "/lake"), "sink.url: expected a URL"),
        (('"file:///lake"', '"file:///x"\ncompression = "gzip"\ncompression_level = 12'), "gzip takes 1 to 9"),
    ],
)
def test_contradictions(tmp_path: Path, change: tuple[str, str], problem: str) -> None:
    (found,) = problems(written(tmp_path, MINIMAL.replace(*change)))
    assert problem in found


def test_no_secret_in_any_repr_or_message(tmp_path: Path) -> None:
    text = MINIMAL.replace("mongodb://h", "mongodb://u:s3cret@h") + '[sink.s3]\nsecret_key = "s3cret"\n'
    config = load(written(tmp_path, text), {})
    assert "s3cret" not in repr(config)
    assert config.redactor()("mongodb://u:s3cret@h") == "mongodb://u:***@h"
    found = problems(written(tmp_path, text.replace('"mongodb://u:s3cret@h"', '["s3cret"]')))
    assert "s3cret" not in str(found)


@pytest.mark.parametrize(
    ("url", "leaked"),
    [
        ("mongodb://u:p%40ss@h/", "p@ss"),
        ("mongodb://u:p%40ss@a:1,b:2/?replicaSet=r", "p%40ss"),
        ("mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:tok3n", "tok3n"),
        ("mongodb://h/?tlsCertificateKeyFilePassword=k3y", "k3y"),
    ],
)
def test_secrets_are_found_wherever_a_uri_has_them(tmp_path: Path, url: str, leaked: str) -> None:
    redact = load(written(tmp_path, MINIMAL.replace("mongodb://h", url)), {}).redactor()
    assert redact(f"it says {leaked}, AWS_SESSION_TOKEN:{leaked}") == "it says ***, AWS_SESSION_TOKEN:***"


def test_not_toml_and_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(written(tmp_path, "[source"), {})
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "nowhere.toml", {})


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (2**20, "1MiB"), (3 * 2**29, "1536MiB"), (1500, "1.5KiB"), (2**30, "1GiB")]
)
def test_sizes(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(14 * 86400, "14d"), (90, "90s"), (0.25, "250ms"), (1.5, "1.5s")])
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_the_types_are_plain_to_everybody_else() -> None:
    assert isinstance(Size(1), int)
    assert isinstance(Duration(1), float)
    assert repr(Secret("x")) == "'***'"
    assert Config.__struct_fields__[0] == "source"
