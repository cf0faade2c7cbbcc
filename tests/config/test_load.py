"""The configuration from file and environment, and every mistake in it reported at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import format_duration, load
from engine.errors import ConfigError
from tests.config.files import MINIMAL, problems, written


def test_defaults(tmp_path: Path) -> None:
    config = load(written(tmp_path, MINIMAL), {})
    assert config.batch.bytes == 128 * 2**20
    assert format_duration(config.lease.ttl) == "30s"
    assert config.state.url == "lake"


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


def test_the_file_takes_precedence_over_well_known_variables(tmp_path: Path) -> None:
    config = load(written(tmp_path, MINIMAL), {"MONGODB_URI": "mongodb://other", "S3_BUCKET": "b"})
    assert (config.source.uri, config.sink.url) == ("mongodb://h", "file:///lake")


def test_overrides_take_precedence_over_everything(tmp_path: Path) -> None:
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
        'batch.interval: got \'1ms\'; expected a duration such as "30s" or "5m", at least 50ms',
        "batch.rows: got 0; expected an integer of at least 1",
        'lease.ttl: got True; expected a duration such as "30s" or "5m", at least 1s',
        "retry.max_attempts: ${ATTEMPTS} is not set; export ATTEMPTS, or write ${ATTEMPTS:-default}",
        "source.collections: got 'c'; expected a list of strings",
        "source.databse: unknown key; did you mean 'database'?",
        "tls: unknown key; known here: source, sink, table, mirror, maintenance, schema, backfill, batch, "
        "memory, writers, state, lease, fleet, retry, telemetry, shutdown, supervision",
        "writers.processes: got 65; expected an integer from 1 to 64",
    ]


def test_all_kinds_of_problems_are_in_one_report(tmp_path: Path) -> None:
    """Unknown keys, types, values, missing keys, variables and contradictions are all reported at once."""
    text = (
        '[source]\nuri = "${MONGODB_URL}"\ncollections = ["c", "c"]\nsplit = {d = 2}\nstrat = "now"\n'
        '[schema]\noverrides = {price = "decimals"}\n'
        '[sink]\ncompression = "gzip"\ncompression_level = 12\n'
        '[batch]\nrows = "many"\n[state]\nprefix = ["${NOWHERE}"]\n[telemetry]\nlisten = "8080"\n'
    )
    environ = {"HEADRACE_BATCH_BYTES": "1MiB", "REDIS_URLS": "redis://r", "MONGODB_URI": "mongodb://h"}
    found = [each.partition("; use one of")[0] for each in problems(written(tmp_path, text), environ)]
    assert sorted(found) == [
        "HEADRACE_BATCH_BYTES: no such key; did you mean HEADRACE_BATCH__BYTES?",
        "REDIS_URLS: not read; did you mean REDIS_URL?",
        "batch.rows: got 'many'; expected an integer of at least 1",
        "schema.overrides.'price': 'decimals' is not a type",
        "schema.overrides.'price': expected <collection>.<field>",
        "sink.compression_level: gzip takes 1 to 9",
        "sink.url: missing; expected a string",
        "source.collections: duplicate name",
        'source.database: missing; needed for watch = "collections"',
        "source.split: d is not in source.collections",
        "source.strat: unknown key; did you mean 'start'?",
        "source.uri: ${MONGODB_URL} is not set; did you mean MONGODB_URI, which is?",
        "state.prefix[0]: ${NOWHERE} is not set; export NOWHERE, or write ${NOWHERE:-default}",
        'telemetry.listen: expected "host:port", or "" for none',
    ]


def test_too_many_parts_are_reported_with_the_rest(tmp_path: Path) -> None:
    text = MINIMAL.replace('["c"]\n', '["c"]\nsplit = {c = 9}\n') + "[batch]\nrows = 0\n"
    found = problems(written(tmp_path, text))
    assert len(found) == 2
    assert "source.split needs 9 readers" in str(found)


def test_an_unreadable_file_does_not_hide_mistakes_in_the_environment(tmp_path: Path) -> None:
    found = problems(tmp_path / "nowhere.toml", {"HEADRACE_BATCH_ROWS": "1"})
    assert "No such file" in found[0]
    assert "HEADRACE_BATCH__ROWS" in found[1]


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


def test_an_invalid_file_and_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(written(tmp_path, "[source"), {})
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "nowhere.toml", {})
