"""Misspelled environment variables are refused; those of other programs are ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import load
from tests.config.files import MINIMAL, problems, written


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
def test_a_misspelled_variable_is_refused_with_a_suggestion(tmp_path: Path, name: str, meant: str) -> None:
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
def test_a_misspelled_variable_is_refused_where_the_correct_one_would_apply(
    tmp_path: Path, name: str, meant: str
) -> None:
    """And only there: if the file has the key, the variable has no effect under either name."""
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
def test_unrelated_variables_are_ignored(tmp_path: Path, name: str) -> None:
    text = '[source]\nuri = "mongodb://h"\nwatch = "deployment"\n[sink]\nurl = "file:///lake"\n'
    load(written(tmp_path, text), dict.fromkeys(name.split(), "x"))
    complaints = problems(None, dict.fromkeys(name.split(), "x"))
    assert not [each for each in complaints if "did you mean" in each]


def test_service_variables_of_kubernetes_are_ignored(tmp_path: Path) -> None:
    environ = {
        "HEADRACE_METRICS_SERVICE_HOST": "10.0.0.1",
        "HEADRACE_METRICS_SERVICE_PORT": "8080",
        "HEADRACE_METRICS_SERVICE_PORT_HTTP": "8080",
        "HEADRACE_METRICS_PORT": "tcp://10.0.0.1:8080",
        "HEADRACE_METRICS_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    load(written(tmp_path, MINIMAL), environ)


def test_a_near_miss_beside_the_correct_variable_is_ignored(tmp_path: Path) -> None:
    environ = {"REDIS_URL": "redis://r", "REDIS_URI": "redis://of-another-program"}
    assert load(written(tmp_path, MINIMAL), environ).state.url == "redis://r"


def test_a_variable_can_be_in_a_file(tmp_path: Path) -> None:
    """``NAME_FILE`` beside ``NAME``: of well-known variables, of keys, and where the file refers to one."""
    for name, text in {"uri": "mongodb://u:f1le@h\n", "key": "k3y\n", "bucket": "b\n", "rows": "7\n"}.items():
        (tmp_path / name).write_text(text)
    environ = {
        "MONGODB_URI_FILE": f"{tmp_path}/uri",
        "S3_BUCKET_FILE": f"{tmp_path}/bucket",
        "S3_PREFIX": "p",
        "HEADRACE_SINK__S3__SECRET_KEY_FILE": f"{tmp_path}/key",
        "HEADRACE_SINK__S3__CA_FILE": "",  # a key whose own name ends like that
        "HEADRACE_BATCH__ROWS_FILE": f"{tmp_path}/rows",
        "PREFIX_FILE": f"{tmp_path}/key",
    }
    text = '[source]\ndatabase = "d"\ncollections = ["c"]\n[state]\nprefix = "x${PREFIX}"\n'
    config = load(written(tmp_path, text), environ)
    assert config.source.uri == "mongodb://u:f1le@h"
    assert (config.sink.url, config.sink.s3.secret_key, config.sink.s3.ca_file) == ("s3://b/p", "k3y", "")
    assert (config.batch.rows, config.state.prefix) == (7, "xk3y")
    assert config.redactor()("mongodb://u:f1le@h xk3y") == "*** x***"


def test_a_variable_that_is_also_in_a_file_is_refused(tmp_path: Path) -> None:
    names = ("MONGODB_URI", "HEADRACE_SOURCE__DATABASE", "PREFIX")
    environ = {name: "mongodb://h" for each in names for name in (each, f"{each}_FILE")}
    text = (
        '[source]\ndatabase = "d"\ncollections = ["c"]\n[sink]\nurl = "file:///x"\n[state]\nprefix = "${PREFIX}"\n'
    )
    found = problems(written(tmp_path, text), environ)
    keys = {"source.uri": names[0], "source.database": names[1], "state.prefix": names[2]}
    assert set(found) == {
        f"{key}: both {name} and {name}_FILE are set; unset one of them" for key, name in keys.items()
    }
    empty = {"MONGODB_URI": "", "MONGODB_URI_FILE": f"{tmp_path}/nothing"}
    (missing,) = problems(written(tmp_path, text.replace("${PREFIX}", "p")), empty)
    assert missing == f"source.uri: ${{file:{tmp_path}/nothing}}: no such file. Is the secret mounted there?"
