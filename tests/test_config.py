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
        'batch.interval: got \'1ms\'; expected a duration such as "30s" or "5m", at least 50ms',
        "batch.rows: got 0; expected an integer of at least 1",
        'lease.ttl: got True; expected a duration such as "30s" or "5m", at least 1s',
        "retry.max_attempts: ${ATTEMPTS} is not set; export ATTEMPTS, or write ${ATTEMPTS:-default}",
        "source.collections: got 'c'; expected a list of strings",
        "source.databse: unknown key; did you mean 'database'?",
        "tls: unknown key; known here: source, sink, schema, backfill, batch, memory, writers, state, lease, "
        "retry, telemetry, shutdown, supervision",
        "writers.processes: got 65; expected an integer from 1 to 64",
    ]


def test_all_kinds_of_problems_are_in_one_report(tmp_path: Path) -> None:
    """Unknown keys, types, values, missing keys, variables, and what is wrong between keys: nothing waits."""
    text = (
        '[source]\nuri = "${MONGODB_URL}"\ncollections = ["c", "c"]\nsplit = {d = 2}\nstrat = "now"\n'
        '[schema]\noverrides = {price = "decimals"}\n'
        '[sink]\ncompression = "gzip"\ncompression_level = 12\n'
        '[batch]\nrows = "many"\n[state]\nprefix = ["${NOWHERE}"]\n[telemetry]\nlisten = "8080"\n'
    )
    environ = {"HEADRACE_BATCH_BYTES": "1MiB", "REDIS_URLS": "redis://r", "MONGODB_URI": "mongodb://h"}
    found = [each.partition("; there are")[0] for each in problems(written(tmp_path, text), environ)]
    assert sorted(found) == [
        "HEADRACE_BATCH_BYTES: no such key; did you mean HEADRACE_BATCH__BYTES?",
        "REDIS_URLS: not read; did you mean REDIS_URL?",
        "batch.rows: got 'many'; expected an integer of at least 1",
        "schema.overrides.'price': 'decimals' is no type",
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


def test_too_many_parts_are_told_with_the_rest(tmp_path: Path) -> None:
    text = MINIMAL.replace('["c"]\n', '["c"]\nsplit = {c = 9}\n') + "[batch]\nrows = 0\n"
    found = problems(written(tmp_path, text))
    assert len(found) == 2
    assert "source.split needs 9 readers" in str(found)


def test_a_file_that_cannot_be_read_does_not_hide_the_environments_mistakes(tmp_path: Path) -> None:
    found = problems(tmp_path / "nowhere.toml", {"HEADRACE_BATCH_ROWS": "1"})
    assert "No such file" in found[0]
    assert "HEADRACE_BATCH__ROWS" in found[1]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("HEADRACE_BATCH_ROWS", "HEADRACE_BATCH__ROWS"),
        ("HEADRACE_SOURCE__URL", "HEADRACE_SOURCE__URI"),
        ("HEADRACE__SOURCE__URI", "HEADRACE_SOURCE__URI"),
        ("HEADRACE_SINK_S3_REGION", "HEADRACE_SINK__S3__REGION"),
        ("HEADRACE_TELEMETRY__LOGFORMAT", "HEADRACE_TELEMETRY__LOG_FORMAT"),
        ("headrace_batch__rows", "HEADRACE_BATCH__ROWS"),
        ("HEADRACE_NONSENSE", "HEADRACE_SECTION__KEY"),
        ("HEADRACE_PORT", "HEADRACE_SECTION__KEY"),
        ("REDIS_URLS", "REDIS_URL"),
        ("REDISURL", "REDIS_URL"),
        ("REDIS_URI", "REDIS_URL"),
        ("BATCHSIZE", "BATCH_SIZE"),
        ("BATCH_SIZES", "BATCH_SIZE"),
        ("BATHC_SIZE", "BATCH_SIZE"),
    ],
)
def test_a_misspelled_variable_is_refused_with_what_was_meant(tmp_path: Path, name: str, meant: str) -> None:
    (found,) = problems(written(tmp_path, MINIMAL), {name: "5"})
    assert found.startswith(f"{name}: ")
    assert meant in found


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MONGO_URI", "MONGODB_URI"),
        ("MONGODB_URL", "MONGODB_URI"),
        ("MONGO_DATABASE", "MONGODB_DATABASE"),
        ("MONGODB_COLLECTION", "MONGODB_COLLECTIONS"),
        ("MONGODB_COLECTION", "MONGODB_COLLECTIONS"),
        ("S3_BUCKETS", "S3_BUCKET"),
        ("S3_PREFIXES", "S3_PREFIX"),
    ],
)
def test_a_misspelled_variable_is_refused_where_the_right_one_would_count(
    tmp_path: Path, name: str, meant: str
) -> None:
    """And only there: with the key in the file, it has no effect under either name."""
    environ = {"S3_BUCKET": "b", name: "x"} if meant == "S3_PREFIX" else {name: "x"}
    assert f"{name}: not read; did you mean {meant}?" in problems(None, environ)
    load(written(tmp_path, MINIMAL), environ)


@pytest.mark.parametrize(
    "name",
    [
        "REDIS_HOST REDIS_PORT REDIS_PASSWORD REDIS_TLS_URL REDIS_URL_2 REDISCLOUD_URL REDIS_USER",
        "MONGODB_USER MONGODB_PASSWORD MONGODB_PORT MONGO_INITDB_DATABASE MONGODB_VERSION MONGODB_HOST",
        "S3_ENDPOINT S3_REGION S3_BUCKET_NAME S3_BUCKET2 S3_KEY S3_SUFFIX S3_PREFIX",
        "AWS_DEFAULT_REGION AWS_REGIONS AWS_PROFILE",
        "PATCH_SIZE BATCH BATCH_SIZE_BYTES PAGE_SIZE MAX_BATCH_SIZE",
        "HEADRACE_VENV HEADRACE_FAILPOINT _HEADRACE_X MY_HEADRACE_BATCH_ROWS",
    ],
)
def test_variables_of_other_programs_and_of_ours_are_let_be(tmp_path: Path, name: str) -> None:
    text = '[source]\nuri = "mongodb://h"\nwatch = "deployment"\n[sink]\nurl = "file:///lake"\n'
    load(written(tmp_path, text), dict.fromkeys(name.split(), "x"))
    complaints = problems(None, dict.fromkeys(name.split(), "x"))
    assert not [each for each in complaints if "did you mean" in each]


def test_what_kubernetes_makes_of_a_service_with_our_name_is_let_be(tmp_path: Path) -> None:
    environ = {
        "HEADRACE_METRICS_SERVICE_HOST": "10.0.0.1",
        "HEADRACE_METRICS_SERVICE_PORT": "8080",
        "HEADRACE_METRICS_SERVICE_PORT_HTTP": "8080",
        "HEADRACE_METRICS_PORT": "tcp://10.0.0.1:8080",
        "HEADRACE_METRICS_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    load(written(tmp_path, MINIMAL), environ)


def test_the_right_variable_beside_the_wrong_one_is_no_mistake(tmp_path: Path) -> None:
    environ = {"REDIS_URL": "redis://r", "REDIS_URI": "redis://of-another-program"}
    assert load(written(tmp_path, MINIMAL), environ).state.url == "redis://r"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("mongodb://h", "http://h"), "source.uri: expected mongodb:// or mongodb+srv://"),
        (('database = "d"\n', ""), 'source.database: missing; needed for watch = "collections"'),
        (('collections = ["c"]\n', ""), "source.collections: missing"),
        (('["c"]', '["c", "c"]'), "source.collections: duplicate name"),
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
