"""Keys that contradict one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.files import MINIMAL, problems, written


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
        (('["c"]\n', '["c"]\nwatch = "deployment"\n'), "got 'c'; expected <database>.<collection>"),
        (('["c"]\n', '["a.b"]\nwatch = "deployment"\nexclude = ["b."]\n'), "source.exclude: got 'b.'"),
        (('["c"]\n', '["a.b"]\nwatch = "deployment"\nsplit = {c = 2}\n'), "source.split: not used with watch"),
        (('["c"]\n', '["c"]\nexclude = ["d"]\n'), "source.exclude: there is no pattern"),
        (('["c"]\n', '["c", "*"]\nexclude = ["c*"]\n'), "source.exclude: it excludes 'c', which"),
        (('["c"]\n', '["*"]\nsplit = {c = 2}\n'), "source.split: c is not in source.collections"),
        (('["c"]\n', '["c"]\nstart = "2026-05-01T00:00:00"\n'), "source.start: got '2026-05-01T00:00:00'"),
        (
            ('"file:///lake"', '"s3://x"\n[sink.s3]\naccelerate = true\naddressing = "path"'),
            "sink.s3.accelerate: has",
        ),
        (
            ('"file:///lake"', '"s3://x"\n[sink.s3]\naccelerate = true\nendpoint_url = "x"'),
            "sink.s3.accelerate: has",
        ),
        (("file:///lake", "/lake"), "sink.url: expected a URL"),
        (("file:///lake", "gs://lake"), 'state.url: "lake" needs a sink at s3:// or file://'),
        (
            ('"file:///lake"', '"file:///x"\npartition_by = "day"\n[table]\nformat = "delta"'),
            "sink.partition_by: leave",
        ),
        (
            ('"file:///lake"', '"file:///x"\nprefix_shards = 2\n[table]\nformat = "delta"'),
            "sink.prefix_shards: leave",
        ),
        (
            ('"file:///lake"', '"file:///x"\nformat = "json"\n[table]\nformat = "delta"'),
            "sink.format: leave it out",
        ),
        (('"file:///lake"', '"file:///x"\n[table]\nformat = "iceberg"'), "table.catalog: Iceberg needs a catalog"),
        (
            ('"file:///lake"', '"file:///x"\n[table]\nformat = "delta"\ncatalog = {a = "b"}'),
            "table.catalog: Delta",
        ),
        (('"file:///lake"', '"file:///x"\ncompression = "gzip"\ncompression_level = 12'), "gzip takes 1 to 9"),
    ],
)
def test_contradictions(tmp_path: Path, change: tuple[str, str], problem: str) -> None:
    (found,) = problems(written(tmp_path, MINIMAL.replace(*change)))
    assert problem in found
