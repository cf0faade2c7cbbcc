"""What of a document may be shown."""

from __future__ import annotations

from pathlib import Path

import bson
import pytest

from engine.config.tree import RetryConfig, SchemaConfig, SinkConfig
from engine.lake.against_source.shown import differing, extended_json
from engine.lake.against_source.sides import Sides
from engine.lake.audit.findings import Findings
from engine.lake.documents.normal import normal_of
from engine.lake.objects import Objects

SECRET = b"a protected value"


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    normal = normal_of(SchemaConfig(protect={"orders.email": "mask"}), "orders")
    objects = Objects(SinkConfig(url=f"file://{tmp_path}"))
    members: object = None  # nothing is read
    return Sides(objects, members, ("shop", "orders"), lambda: None, normal, RetryConfig(), Findings(5))  # type: ignore[arg-type]


def test_of_malformed_documents_nothing_is_shown(sides: Sides) -> None:
    """They can only be told apart: what is protected in them is not known."""
    whole = bson.encode({"_id": 1, "email": SECRET.decode(), "n": 1})
    malformed = [whole.replace(b"\x10n\0", b"\x77n\0"), whole[:-2] + b"\x02\0", whole + b"\0"]
    forms = [sides.normal(each) for each in malformed]
    assert len({*forms, sides.normal(whole)}) == 4
    assert forms == [sides.normal(each) for each in malformed]
    for form in forms:
        names, one, other = differing(form, sides.normal(whole))
        text = "".join([*names, extended_json(form), extended_json(one), extended_json(other)])
        assert SECRET.decode() not in text
        assert SECRET.hex() not in text
