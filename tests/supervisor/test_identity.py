"""The first line of the log."""

from __future__ import annotations

import os

import msgspec

from engine import __version__
from engine.config import Config, Secret, SinkConfig, SourceConfig
from engine.config.tree import BatchConfig, S3Config
from engine.quantities import Duration, Size
from engine.supervisor.identity import first_line


def test_it_says_what_is_set_and_no_secret() -> None:
    config = Config(
        SourceConfig(
            Secret("mongodb://user:pass@db.example/?tlsCertificateKeyFilePassword=word"), collections=["a"]
        ),
        SinkConfig("s3://lake/x", s3=S3Config(access_key=Secret("AKIA"), secret_key=Secret("hidden"))),
        batch=BatchConfig(interval=Duration(5), bytes=Size(2**20)),
        fetched=(Secret("fetched"),),
    )
    line = first_line(config)
    assert line["version"] == __version__
    assert line["pid"] == os.getpid()
    assert line["host"] == line["engine"].partition("/")[0]
    assert line["config"]["batch"] == {"bytes": "1MiB", "interval": "5s"}
    assert line["config"]["source"]["collections"] == ["a"]
    assert line["servers"]["mongodb"].startswith("mongodb://user:***@db.example/")
    assert "state" not in line["config"]
    text = msgspec.json.encode(line).decode()
    assert not [
        each for each in ("pass@", "word", "hidden", "AKIA", "fetched") if each in text.replace("Password", "")
    ]
