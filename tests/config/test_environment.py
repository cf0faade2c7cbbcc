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
