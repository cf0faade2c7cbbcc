"""How a schema grows: which fields get a column, and how it is named."""

from __future__ import annotations

import itertools
import random
import unicodedata

import msgspec
import pytest

from engine.core.naming import PARTITION_NAMES
from engine.core.schema import CollectionSchema, DataType, Field, folded, grow

INT = DataType("int64")


def names(schema: CollectionSchema) -> dict[str, str]:
    return {field.name: field.column or field.name for field in schema.fields}


def grown(*fields: str, onto: CollectionSchema | None = None) -> CollectionSchema:
    return grow(onto or CollectionSchema(), tuple(Field(name, INT) for name in fields), 1000)


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        (["Name", "name"], ["Name", "name__2"]),
        (["name", "NAME", "Name"], ["name", "NAME__2", "Name__3"]),
        (["a", "A", "A__2"], ["a", "A__2", "A__2__2"]),
        (["A__2", "a", "A"], ["A__2", "a", "A__3"]),
        (["a", "a__2", "A"], ["a", "a__2", "A__3"]),
        (["_ID", "_id"], ["_ID__2", "_id"]),
        (["_id", "_Id"], ["_id", "_Id__2"]),
        (["_CDC_KEY", "_Cdc_new"], ["_CDC_KEY__2", "_Cdc_new__2"]),
        (["cdc_date", "CDC_Date", "cdc_dates"], ["cdc_date__2", "CDC_Date__3", "cdc_dates"]),
        (["stra\u00dfe", "STRASSE", "stra\u1e9ee"], ["stra\u00dfe", "STRASSE__2", "stra\u1e9ee__3"]),
        (["\u0130d", "id", "\u0131D"], ["\u0130d", "id__2", "\u0131D__3"]),
        (["\u00e9", "e\u0301", "e"], ["\u00e9", "e\u0301__2", "e"]),
    ],
    ids="-".join,
)
def test_names_that_a_reader_could_confuse(fields: list[str], columns: list[str]) -> None:
    assert list(names(grown(*fields)).values()) == columns
    one_by_one = CollectionSchema()
    for field in fields:
        one_by_one = grown(field, onto=one_by_one)
    assert list(names(one_by_one).values()) == columns


def test_every_directory_of_the_lake_is_reserved() -> None:
    for name in PARTITION_NAMES:
        assert names(grown(name.upper())) == {name.upper(): f"{name.upper()}__2"}
        inner = grow(CollectionSchema(), (Field("s", DataType("struct", (Field(name, INT),))),), 9)
        assert inner.fields[0].type.fields[0].column == ""


def test_names_inside_structs_and_lists_at_every_depth() -> None:
    def fields(*found: str) -> DataType:
        return DataType("struct", tuple(Field(name, INT) for name in found))

    first = (Field("s", fields("x", "X")), Field("l", DataType("list", item=fields("y", "Y"))))
    schema = grow(CollectionSchema(), first, 99)
    later = (Field("s", fields("X", "x", "X__2")), Field("l", DataType("list", item=fields("\u00ff", "\u0178"))))
    struct, list_ = grow(schema, later, 99).fields
    assert list_.type.item is not None
    assert [field.column or field.name for field in struct.type.fields] == ["x", "X__2", "X__2__2"]
    assert [field.column or field.name for field in list_.type.item.fields] == [
        "y", "Y__2", "\u00ff", "\u0178__2",
    ]  # fmt: skip


def test_a_dropped_field_takes_no_name() -> None:
    schema = grow(CollectionSchema(), (Field("A", DataType("drop")), Field("a", INT)), 9)
    assert names(schema) == {"A": "A", "a": "a"}


def test_columns_never_share_a_name_and_never_change_theirs() -> None:
    rng = random.Random(3)
    pool = ["".join(each) for each in itertools.product("aA\u00e4\u00c4", ("", "_", "__2", "__3"), ("", "__2"))]
    for _ in range(200):
        schema, before = CollectionSchema(), dict[str, str]()
        for _ in range(6):
            schema = grown(*rng.sample(pool, 4), onto=schema)
            now = names(schema)
            assert now | before == now
            assert len({name.casefold() for name in now.values()}) == len(now)
            before = now
            schema = msgspec.json.decode(msgspec.json.encode(schema), type=CollectionSchema)  # a restart


def test_a_record_that_has_both_names_keeps_them() -> None:
    """There are files with both names; a new name must differ from both."""
    fields = '{"name":"Name","type":{"kind":"int64"},"since":1},{"name":"name","type":{"kind":"string"}}'
    text = f'{{"version":3,"fields":[{fields}]}}'
    schema = msgspec.json.decode(text, type=CollectionSchema)
    assert grown("Name", "name", onto=schema) is schema
    assert names(grown("NAME", onto=schema)) == {"Name": "Name", "name": "name", "NAME": "NAME__2"}


def test_all_forms_of_a_character_fold_to_one_key() -> None:
    """Lower case, upper case, title case, case folding, and the normal forms."""
    for code in itertools.chain(range(0xD800), range(0xE000, 0x1F000)):
        character = chr(code)
        forms = {character.lower(), character.upper(), character.casefold(), character.title()}
        if len(forms) == 1 and unicodedata.normalize("NFKD", character) == character:
            continue
        forms |= {unicodedata.normalize(form, character) for form in ("NFC", "NFD", "NFKC", "NFKD")}
        keys = {folded(each) for form in forms for each in (form, form.lower(), form.upper())}
        assert keys == {folded(character)}, hex(code)


def test_new_fields_join_and_known_ones_stay() -> None:
    first = grow(CollectionSchema(), (Field("a", DataType("int64")),), 10)
    second = grow(first, (Field("a", DataType("string")), Field("b", DataType("bool"))), 10)
    assert second == CollectionSchema(2, (Field("a", DataType("int64"), 1), Field("b", DataType("bool"), 2)))
    assert grow(second, (Field("b", DataType("json")),), 10) is second


def test_structs_and_lists_grow_inside() -> None:
    def nested(*names: str) -> tuple[Field, ...]:
        struct = DataType("struct", tuple(Field(name, DataType("string")) for name in names))
        return (Field("s", struct), Field("l", DataType("list", item=struct)))

    grown = grow(grow(CollectionSchema(), nested("x"), 10), nested("y"), 10)
    for field in grown.fields:
        struct = field.type if field.name == "s" else field.type.item
        assert struct is not None
        assert [(each.name, each.since) for each in struct.fields] == [("x", 1), ("y", 2)]
        assert field.since == 1
