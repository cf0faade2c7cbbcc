"""Protected fields: what is planted in them lands nowhere, and everything else stays as it was."""

from __future__ import annotations

import base64
import hmac
import re
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import bson
import pytest
from bson.binary import Binary
from bson.code import Code
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.objectid import ObjectId
from bson.regex import Regex
from bson.timestamp import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bench.decode import Schemas
from engine.config.tree import SinkConfig
from engine.decode.decoder import Decoder
from engine.decode.protect import Protection
from engine.decode.protect_rows import Rows, Rule
from engine.decode.schema import SchemaOptions
from engine.encode.formats import open_file, suffix_of
from engine.errors import ConfigError
from tests.decode import values
from tests.decode.lake import elements_of
from tests.encode.test_formats import Collected

pytestmark = pytest.mark.usefixtures("inner_loops")

KEY = "k" * 16
STRENGTHS = ["hash", "mask", "drop"]
Document = dict[str, Any]
Paths = dict[str, str]


def documents(protection: Protection, found: list[bytes]) -> list[bytes]:
    """Documents of the collection c as they are after protection."""
    return each_of(*protection.documents(*values.as_array(found), "c"))


def events(protection: Protection, found: list[bytes]) -> list[bytes]:
    return each_of(*protection.events(*values.as_array(found)))


def each_of(data: bytes, offsets: Any) -> list[bytes]:
    return [data[at : at + struct.unpack_from("<i", data, at)[0]] for at in offsets[:-1].tolist()]


# --- the definition, a second time -------------------------------------------------------------------------


def protected(data: bytes, rules: Paths, above: set[str], *, is_array: bool = False) -> bytes:
    """A document with its fields protected, where ``above`` are the paths that it may be at.

    Hashes are written as 64 times ``#``.
    """
    found: list[bytes] = []
    for kind, name, value in elements_of(data):
        action, hidden, paths = action_for(rules, above, name, skips=is_array)
        if hidden and action:
            new = values.element(0x02, hidden, values.sized(b"***"))
            found += [new] if action != "drop" and new not in found else []
        elif action and kind not in (0x06, 0x0A):
            text = b"***" if action == "mask" else b"#" * 64
            new = values.element(0x02, name, values.sized(text))
            found += [new] if action != "drop" else [values.element(0x0A, name, b"")] if is_array else []
        elif not action and kind in (0x03, 0x04):
            found.append(values.element(kind, name, protected(value, rules, paths, is_array=kind == 0x04)))
        else:
            found.append(values.element(kind, name, value))
    return values.document(found)


def action_for(rules: Paths, above: set[str], name: bytes, *, skips: bool) -> tuple[str, bytes, set[str]]:
    """What happens to a field; its name if it is inside of a protected one; its own paths."""
    parts = name.split(b".")
    for number, part in enumerate(parts, 1):
        text = part.decode("latin-1")
        here = {f"{each}/{text}" for each in above}
        if found := [rules[each] for each in here if each in rules]:
            hidden = b".".join([*parts[:number], b"***"]) if number < len(parts) else b""
            return max(found, key=STRENGTHS.index), hidden, set()
        above = here | (above if skips and part.isdigit() else set())
    return "", b"", above


_paths = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "0", "1", "_ID", "näme"]), min_size=1, max_size=3)
rules_strategy = st.dictionaries(_paths.map(".".join), st.sampled_from(STRENGTHS), min_size=1, max_size=4)


@given(found=values.batches(), paths=rules_strategy)
@settings(max_examples=100)
def test_documents_of_every_type_and_shape(found: list[bytes], paths: Paths) -> None:
    rules = {"/" + path.replace(".", "/").encode().decode("latin-1"): action for path, action in paths.items()}
    protection = Protection({f"c.{path}": action for path, action in paths.items()}, KEY)
    for _ in range(2):  # the second time with the headers of the first
        for before, after in zip(found, documents(protection, found), strict=True):
            assert re.sub(rb"[0-9a-f]{64}", b"#" * 64, after) == protected(before, rules, {""})


# --- events ------------------------------------------------------------------------------------------------

TOKEN = values.document([values.element(0x02, b"_data", values.sized(b"8263"))])
PLAIN = {
    "_id": bson.decode(TOKEN),
    "clusterTime": Timestamp(1_777_593_600, 1),
    "wallTime": datetime(2026, 5, 1),
}


def raw_event(**images: bytes) -> bytes:
    """An update of the collection c with these documents."""
    known = {"operationType": "update", "ns": {"db": "db", "coll": "c"}, "documentKey": {"_id": 1}}
    head = bson.encode(PLAIN | known)[4:-1]
    return values.document([head] + [values.element(0x03, name.encode(), each) for name, each in images.items()])


@given(found=values.batches(), changes=values.batches(), paths=rules_strategy)
@settings(max_examples=60)
def test_images_and_updates_of_all_rows_at_once_change_as_single_ones(
    found: list[bytes], changes: list[bytes], paths: Paths
) -> None:
    protection = Protection({f"c.{path}": action for path, action in paths.items()}, KEY)
    rule = Rule()
    for path, action in paths.items():
        rule.add(path, action)
    made = []
    for number, image in enumerate(found):
        change = changes[number % len(changes)]
        description = values.document([values.element(0x03, b"updatedFields", change)])
        made.append(raw_event(fullDocument=image, fullDocumentBeforeChange=change, updateDescription=description))
    for before, inner, after in zip(made, documents(protection, found), events(protection, made), strict=True):
        assert after == (Rows(KEY.encode()).event(before, 0, (rule,)) or before)
        assert {name: value for _, name, value in elements_of(after)}[b"fullDocument"] == inner


def one(event: Document, paths: Paths) -> Document:
    """An event after protection."""
    (after,) = events(Protection(paths, KEY), [bson.encode(event)])
    return bson.decode(after)


def update(**description: Any) -> Document:
    whole = {"updatedFields": {}, "removedFields": [], "truncatedArrays": []} | description
    names = {"operationType": "update", "ns": {"db": "db", "coll": "c"}, "documentKey": {"_id": 1}}
    return PLAIN | names | {"updateDescription": whole}


PATHS = {"c.customer.email": "mask", "c.items.card": "hash", "c.by_mail": "mask", "c.secret": "drop"}
CARD = hmac.digest(KEY.encode(), b'"4111"', "sha256").hex()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"customer.email": "x", "total": 5}, {"customer.email": "***", "total": 5}),
        ({"customer": {"email": "x", "name": "y"}}, {"customer": {"email": "***", "name": "y"}}),
        ({"customer.email": None}, {"customer.email": None}),
        ({"items.3.card": "4111", "items.3.sku": "s"}, {"items.3.card": CARD, "items.3.sku": "s"}),
        ({"items.3": {"card": "4111"}}, {"items.3": {"card": CARD}}),
        ({"items": [{"card": "4111"}, [{"card": "4111"}], 7]}, {"items": [{"card": CARD}, [{"card": CARD}], 7]}),
        ({"by_mail.x@y.n": 1, "by_mail.z": 2, "n": 3}, {"by_mail.***": "***", "n": 3}),
        ({"secret.x": 1, "secret": 2, "n": 3}, {"n": 3}),
        ({"secrets": 1, "customer.emails": 2, "card": 3}, {"secrets": 1, "customer.emails": 2, "card": 3}),
    ],
)
def test_updated_fields(before: Document, after: Document) -> None:
    assert one(update(updatedFields=before), PATHS) == update(updatedFields=after)


def test_names_of_removed_and_truncated_fields() -> None:
    def description(*names: str) -> Document:
        return {
            "removedFields": list(names),
            "truncatedArrays": [{"field": name, "newSize": 2} for name in names],
            "disambiguatedPaths": {name: name.split(".") for name in names if "***" not in name},
        }

    before = description("customer.email", "by_mail.x@y.n", "by_mail.z", "secret.x", "items.1.card", "secret", "n")
    after = description("customer.email", "by_mail.***", "items.1.card", "n")
    assert one(update(**before), PATHS) == update(**after)


def test_equal_values_have_equal_hashes() -> None:
    """Whatever their numeric type, and wherever they are."""
    numbers = (1, 1.0, Int64(1), Decimal128("1.0"))
    found = [bson.encode({"a": number, "list": [{"a": number}]}) for number in numbers]
    after = [bson.decode(each) for each in documents(Protection({"*.a": "hash", "c.list.a": "hash"}, KEY), found)]
    expected = hmac.digest(KEY.encode(), b"1", "sha256").hex()
    assert after == [{"a": expected, "list": [{"a": expected}]}] * 4
    (other,) = documents(Protection({"c.a": "hash"}, KEY + "x"), found[:1])
    assert bson.decode(other)["a"] != expected


@pytest.mark.parametrize(
    ("namespace", "is_protected"),
    [
        ({"db": "db", "coll": "c"}, True),
        ({"db": "other", "coll": "c"}, True),
        ({"db": "db", "coll": "d"}, False),
        ({"db": "db", "coll": "tmp.agg_out.9ce5cd2a-5f2e-4ae0-a1b8-7fb1ed15aa7c"}, True),
        ({"db": "db"}, True),
        (None, True),
    ],
)
def test_the_collection_decides_and_an_unknown_one_is_protected_by_every_rule(
    namespace: Document | None, is_protected: bool
) -> None:
    made = PLAIN | {"operationType": "insert", "fullDocument": {"_id": 1, "a": "x"}}
    made |= {} if namespace is None else {"ns": namespace}
    (after, before) = each_of(
        *Protection({"c.a": "mask"}, KEY).events(*values.as_array([bson.encode(made), bson.encode(made)]))
    )
    assert after == before
    assert bson.decode(after)["fullDocument"]["a"] == ("***" if is_protected else "x")


def test_a_collection_can_be_a_pattern_and_have_dots() -> None:
    protection = Protection({"c*.a": "mask", "fs.files.a": "mask", "x\\*y.a": "mask"}, KEY)
    found = {}
    for name in ("c", "cars", "d", "fs.files", "fs", "x*y", "xzy"):
        (after,) = each_of(*protection.documents(*values.as_array([bson.encode({"a": 1})]), name))
        found[name] = bson.decode(after)["a"]
    protected = {"c", "cars", "fs.files", "x*y"}
    assert found == {name: "***" if name in protected else 1 for name in found}


def test_events_of_several_collections_follow_their_own_rules() -> None:
    made = []
    for number in range(60):
        namespace = {"db": "db", "coll": "cde"[number % 3]}
        image = {"a": 1, "b": {"x": "y"}}
        made.append(bson.encode(PLAIN | {"operationType": "insert", "ns": namespace, "fullDocument": image}))
    protection = Protection({"c.a": "mask", "d.b.x": "drop"}, KEY)
    after = [bson.decode(each)["fullDocument"] for each in events(protection, made)]
    assert after == [{"a": "***", "b": {"x": "y"}}, {"a": 1, "b": {}}, {"a": 1, "b": {"x": "y"}}] * 20


@pytest.mark.parametrize("key", [{"region": "x"}, {"at": {"region": "x"}}, {"at.region": "x"}])
def test_a_shard_key_cannot_be_protected(key: Document) -> None:
    made = update() | {"documentKey": key | {"_id": 1}}
    protection = Protection({"c.region": "mask", "c.at.region": "hash"}, KEY)
    with pytest.raises(ConfigError, match="part of the document key"):
        events(protection, [bson.encode(made)])
    assert events(protection, [bson.encode(made | {"ns": {"db": "db", "coll": "d"}})])


def test_the_field_by_which_a_collection_is_read_cannot_be_protected() -> None:
    data = values.as_array([bson.encode({"at": 1})])
    with pytest.raises(ConfigError, match="in the order of at"):
        Protection({"c.at": "drop"}, KEY).documents(*data, "c", "at")


# --- what lands --------------------------------------------------------------------------------------------

NUMBER = 7_304_918_273_645_546_372
DATE = datetime(2031, 7, 13, 7, 13, 31, tzinfo=UTC)
PLANTED: list[Any] = [
    "planted-string", NUMBER, float(NUMBER), Decimal128("7304918.273645546372"),
    ObjectId("706c616e7465642d6f696421"),
    DATE, Binary(b"planted-binary"), Binary(b"planted-is-uuid!", 4),
    Regex("planted-regex"), Code("planted-code"), Code("planted-scoped", {"x": "planted-scope"}),
    Timestamp(1_918_273_645, 1_918_273), {"planted_name": "planted-nested"},
    ["planted-item", {"x": "planted-deep"}],
    True, "planted-\u00fc\n",
]  # fmt: skip
# How any of them may appear: as it is, and as texts and bytes of each format show it.
_TEXTS = [
    "planted",
    str(NUMBER),
    "7304918",
    "2031-07-13",
    str(int(DATE.timestamp())),
    "1918273645",
    "706c616e7465642d",
]
TRACES = [
    *(each.encode() for each in _TEXTS),
    *(base64.b64encode(b"\0" * shift + b"planted-")[-(-(8 * shift) // 6) : 10].rstrip(b"=") for shift in range(3)),
    struct.pack("<q", NUMBER), struct.pack("<d", NUMBER), struct.pack("<q", int(DATE.timestamp()) * 1000),
    struct.pack("<I", 1_918_273_645), bytes.fromhex("706c616e7465642d"),
]  # fmt: skip


def shapes(value: Any) -> Iterator[Document]:
    """Documents with a value at protected paths."""
    yield {"secret": value, "n": 1}
    yield {"n": 1, "customer": {"email": value, "name": "y"}}
    yield {"items": [{"card": value, "sku": 1}, {"sku": 2}, [{"card": value}]]}
    yield {"items": {"card": value}, "secret": [value], "customer": [{"email": [value, value]}]}
    yield {"customer.email": value, "a": {"b": [1, "x"]}}


def planted_events() -> Iterator[bytes]:
    for value in PLANTED:
        for shape in shapes(value):
            names = {"ns": {"db": "db", "coll": "c"}, "documentKey": {"_id": 1}}
            image = {"_id": 1, **shape}
            yield bson.encode(PLAIN | names | {"operationType": "insert", "fullDocument": image})
            dotted = {
                "customer.email": value,
                "items.3.card": value,
                "items.3": {"card": value},
                "by_mail.planted": 1,
            }
            changed = {"updatedFields": dotted | shape, "removedFields": ["by_mail.planted", "secret.planted"]}
            both = {"fullDocument": image, "fullDocumentBeforeChange": image}
            yield bson.encode(PLAIN | names | {"operationType": "update", "updateDescription": changed} | both)


def landed(found: list[bytes], paths: Paths, format_: str, *, of_events: bool) -> tuple[bytes, list[bytes]]:
    """The bytes of a file with these events or documents, and the dead letters."""
    options = SchemaOptions(raw=True)
    schemas = Schemas()
    protection = Protection(paths, KEY)
    decoder = Decoder(schemas, options, ("db", "c"))
    data, offsets = values.as_array(found)
    if of_events:
        result = decoder.decode(*protection.events(data, offsets))
    else:
        result = decoder.decode_documents(*protection.documents(data, offsets, "c"))
    config = replace(SinkConfig(url="file:///"), format=format_, compression="none")
    file = Collected()
    encoder = open_file(f"x{suffix_of(config)}", file, schemas.get("db", "c"), config, raw=True)
    encoder.write([each.batch for each in result.batches])
    encoder.close({})
    return file.data, result.dead_letters


@pytest.mark.parametrize("format_", ["parquet", "json", "csv", "avro", "bson"])
@pytest.mark.parametrize("action", STRENGTHS)
def test_what_is_planted_lands_in_no_byte(format_: str, action: str) -> None:
    paths = {f"c.{path}": action for path in ("customer.email", "items.card", "by_mail", "secret")}
    documents_ = [bson.encode({"_id": 1, **shape}) for value in PLANTED for shape in shapes(value)]
    for found, of_events in ((list(planted_events()), True), (documents_, False)):
        data, dead = landed(found, paths, format_, of_events=of_events)
        assert not dead
        assert [trace for trace in TRACES if trace in data] == []
        bare, _ = landed(found, {"other.x": action}, format_, of_events=of_events)
        assert len([trace for trace in TRACES if trace in bare]) > 4, "the traces are those of this format"


def broken(data: bytes) -> Iterator[bytes]:
    """Events that cannot be read: cut off, with a wrong size, with an unknown type, or without an end."""
    image = data.index(b"fullDocument\0") + len(b"fullDocument\0")
    yield data[:image] + struct.pack("<i", 2**30) + data[image + 4 :]
    yield data[:image] + struct.pack("<i", 3) + data[image + 4 :]
    yield data[: image - 14] + b"!" + data[image - 13 :]
    yield data[: image + 4] + b"!" + data[image + 5 :]
    yield data[:-1] + b""
    yield struct.pack("<i", len(data) + 9) + data[4:]
    yield data[: image + 30]


def test_an_event_that_cannot_be_read_lands_without_its_values() -> None:
    paths = {f"c.{path}": "mask" for path in ("customer.email", "items.card", "by_mail", "secret")}
    found = [each for whole in planted_events() for each in broken(whole)]
    _, dead = landed(found, paths, "json", of_events=True)
    assert len(dead) == len(found)
    assert sum(TOKEN in each for each in dead) > len(found) / 2, "of those that end where they say"
    assert [trace for trace in TRACES if trace in b"".join(dead)] == []
    found = [bson.encode({"_id": 1, "secret": "planted-string"})[:-1] + b""] * 3
    _, dead = landed(found, paths, "json", of_events=False)
    assert len(dead) == 3
    assert b"planted" not in b"".join(dead)
