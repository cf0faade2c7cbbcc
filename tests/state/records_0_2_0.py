"""The state that version 0.2.0 kept, as literals for ``test_upgrade``."""

from __future__ import annotations

from typing import Any

from engine.core.backfill import Plan, Selection
from engine.core.handover import Handover
from engine.core.messages import Intent, ObjectName, Replaced
from engine.core.position import Position
from engine.core.records import StreamRecord
from engine.core.schema import CollectionSchema, DataType, Field
from engine.core.specs import Spec, SplitSpec, StreamSpec

SINK = "s3://lake/shop partition_by=hour prefix_shards=0"
HANDED_OVER = "6-d08fef05c2c849d1844f4d27c8b4db64"
SCANNED_AT = 7712933945540608008
CUT_AT = 7712933932655709112
READ = "shop.customers~readd32a0dcb-"
# Places in the collection: BSON of {"_id": "c2325"} and the like.
BOUNDS = (
    "14000000025f6964000600000063323332350000",
    "14000000025f6964000600000063323537340000",
    "14000000025f6964000600000063323736320000",
)


def spec(stream: str, level: Any, collections: tuple[str, ...], **others: Any) -> StreamSpec:
    """With all fields of that version, independent of today's defaults."""
    fields: dict[str, Any] = {"part": 0, "parts": 1, "carries_database": False, "full_document": "update_lookup"}
    fields |= {"full_document_before_change": "off", "expanded_events": False, "pipeline": "[]"}
    return StreamSpec(stream=stream, level=level, database="shop", collections=collections, **(fields | others))


def split(number: int, lower: str | None, upper: str | None) -> SplitSpec:
    stream = f"{READ}{number:06d}"
    return SplitSpec(stream, "shop", "customers", lower, upper, filter=None, order="_id", whole=False)


def position(token: str, time: int) -> Position:
    return Position(token=token, time=time, after_invalidate=False, exact=True)


def intent(
    stream: str, seq: int, first: str, end: Position, rows: int, collection: str, *replaced: Replaced
) -> Intent:
    directory = f"cdc_database=shop/cdc_collection={collection}/cdc_date=2026-11-27/cdc_hour=19"
    key = f"{directory}/{stream}-{seq}.parquet"
    objects = (ObjectName(key=key, database="shop", collection=collection, dead_letter=False),)
    return Intent(seq=seq, first_token=first, end=end, objects=objects, rows=rows, replaced=replaced)


def scanned(number: int, seq: int, first: tuple[int, str], last: tuple[int, str]) -> Intent:
    """A segment of a split: the numbers of its first and last document, and their ids in hexadecimal."""
    places = [f"{count:016d}:14000000025f69640006000000{key}0000" for count, key in (first, last)]
    end = position(places[1], SCANNED_AT)
    return intent(f"{READ}{number:06d}", seq, places[0], end, last[0] - first[0] + 1, "customers")


def record(spec: Spec, at: Position, seq: int, rows: int, updated: float, **others: Any) -> StreamRecord:
    fields: dict[str, Any] = {
        "format": 1,
        "deployment": None,
        "closed": False,
        "handover": None,
        "intents": (),
        "schemas": {},
        "replaced": {},
    }
    fields |= {"sink": SINK, "spec": spec, "position": at, "seq": seq, "rows": rows, "updated": updated}
    return StreamRecord(**(fields | others))


ORDERS_0 = spec("shop.orders~0of2", "collection", ("orders",), part=0, parts=2)
ORDERS_1 = spec("shop.orders~1of2", "collection", ("orders",), part=1, parts=2)
SHARED = spec("shop~1da542035d9d", "database", ("customers", "items"), carries_database=True)
OWN = [spec(f"shop.{name}", "collection", (name,)) for name in ("customers", "items", "orders")]
CLOSED: dict[str, Any] = {"deployment": "rs0", "closed": True, "handover": HANDED_OVER}
OPENED: dict[str, Any] = {"deployment": None, "closed": False, "handover": HANDED_OVER}
SPLIT: dict[str, Any] = {"deployment": "rs0", "schemas": {"schema:shop.customers": 2}}
BETWEEN = "826B09D88C00000BB82B0229296E04"  # a token between events

# With the complete token as BSON after the colon, because the document key is a long.
ITEMS_TOKEN = (
    "826B09D88C00000BB82B022C0100296E5A1004F61C4D9C605B4FFBBC23C6AE067A4D8C461E5F69640032200000000000176E0004:"
    "8b000000025f6461746100690000003832364230394438384330303030304242383242303232433031303032393645354131303034"
    "46363143344439433630354234464642424332334336414530363741344438433436314535463639363430303332323030303030"
    "303030303030313736453030303400055f7479706542697473000200000000818000"
)
IN_ORDERS = "2B022C0100296E5A10041CB741846B71436DBE3993942457D4D6461E5F6964002C4E"
IN_CUSTOMERS = "2B022C0100296E5A100459B316FF81244225AD4A3492B47934DF"

KILLED = {
    "shop.customers": record(
        OWN[0],
        position(BETWEEN, CUT_AT),
        179580736623,
        1023,
        1795807374.418,
        schemas={"schema:shop.customers": 2},
        replaced={"shop.customers": 7712933928360738829},
        **CLOSED,
    ),
    "shop.customers~readd32a0dcb-000000": record(
        split(0, None, BOUNDS[0]),
        position("0000000000000200:14000000025f6964000600000063323139380000", SCANNED_AT),
        179580737504,
        200,
        1795807380.747,
        intents=(
            scanned(0, 179580737505, (201, "6332313939"), (250, "6332323438")),
            scanned(0, 179580737506, (251, "6332323439"), (300, "6332323938")),
            scanned(0, 179580737507, (301, "6332323939"), (326, "6332333234")),
        ),
        **SPLIT,
    ),
    "shop.customers~readd32a0dcb-000001": record(
        split(1, BOUNDS[0], BOUNDS[1]),
        position("", SCANNED_AT),
        179580737500,
        0,
        1795807380.754,
        intents=(
            scanned(1, 179580737501, (1, "6332333235"), (50, "6332333734")),
            scanned(1, 179580737502, (51, "6332333735"), (100, "6332343234")),
            scanned(1, 179580737503, (101, "6332343235"), (150, "6332343734")),
            scanned(1, 179580737504, (151, "6332343735"), (200, "6332353234")),
        ),
        **SPLIT,
    ),
    "shop.customers~readd32a0dcb-000002": record(
        split(2, BOUNDS[1], BOUNDS[2]),
        position("", SCANNED_AT),
        179580737500,
        0,
        1795807380.730,
        deployment="rs0",
    ),
    "shop.customers~readd32a0dcb-000003": record(
        split(3, BOUNDS[2], None), position("~", SCANNED_AT), 179580737505, 243, 1795807380.761, **SPLIT
    ),
    "shop.items": record(
        OWN[1],
        position(ITEMS_TOKEN, CUT_AT),
        179580736621,
        1020,
        1795807374.437,
        schemas={"schema:shop.items": 1},
        **CLOSED,
    ),
    "shop.orders": record(
        OWN[2],
        position(BETWEEN, CUT_AT),
        179580736621,
        1020,
        1795807374.433,
        schemas={"schema:shop.orders": 1},
        **CLOSED,
    ),
    "shop.orders~0of2": record(
        ORDERS_0,
        position("826B09D88F000000082B0229296E04", SCANNED_AT),
        179580737200,
        0,
        1795807384.278,
        intents=(
            intent(
                "shop.orders~0of2",
                179580737201,
                f"826B09D89700000008{IN_ORDERS}200004",
                position(f"826B09D8970000006A{IN_ORDERS}E40004", 7712933979900346474),
                50,
                "orders",
            ),
        ),
        schemas={"schema:shop.orders": 2},
        **OPENED,
    ),
    "shop.orders~1of2": record(
        ORDERS_1,
        position("826B09D88F000000082B0229296E04", SCANNED_AT),
        179580737200,
        0,
        1795807384.277,
        intents=(
            intent(
                "shop.orders~1of2",
                179580737201,
                f"826B09D89700000009{IN_ORDERS}220004",
                position(f"826B09D8970000006B{IN_ORDERS}E60004", 7712933979900346475),
                50,
                "orders",
            ),
        ),
        schemas={"schema:shop.orders": 2},
        **OPENED,
    ),
    "shop~1da542035d9d": record(
        SHARED,
        position(
            "826B09D88F000000082B022C0100296E5A1004FB3E5D9B2FEF482886A0C0079D86B723461E5F6964002B0A0004",
            SCANNED_AT,
        ),
        179580737201,
        2,
        1795807384.281,
        intents=(
            intent(
                "shop~1da542035d9d",
                179580737202,
                f"826B09D89700000007{IN_CUSTOMERS}04",
                position(f"826B09D897000000B0{IN_CUSTOMERS}463C5F6964003C6C6174653438000004", 7712933979900346544),
                50,
                "customers",
                Replaced(namespace="shop.customers", time=7712933979900346375),
            ),
        ),
        schemas={"schema:shop.customers": 2, "schema:shop.items": 1},
        replaced={"shop.items": 7712933945540608007},
        **OPENED,
    ),
}
ENDED_AT = 7712933979900346555
BEFORE_HANDOVER = KILLED | {
    "shop.orders~0of2": record(
        ORDERS_0,
        position("826B09D897000000BB2B0229296E04", ENDED_AT),
        179580737202,
        59,
        1795807387.950,
        schemas={"schema:shop.orders": 2},
        **OPENED,
    ),
    "shop.orders~1of2": record(
        ORDERS_1,
        position("826B09D897000000BB2B0229296E04", ENDED_AT),
        179580737202,
        61,
        1795807387.958,
        schemas={"schema:shop.orders": 2},
        **OPENED,
    ),
    "shop~1da542035d9d": record(
        SHARED,
        position(f"826B09D897000000BB{IN_CUSTOMERS}463C5F6964003C6C6174653539000004", ENDED_AT),
        179580737203,
        63,
        1795807388.005,
        schemas={"schema:shop.customers": 2, "schema:shop.items": 1},
        replaced={"shop.customers": 7712933979900346375, "shop.items": 7712933945540608007},
        **OPENED,
    ),
}


def plan(id_: str, collection: str, bounds: tuple[str, ...], **others: Any) -> Plan:
    fields: dict[str, Any] = {
        "selection": Selection(filter=None, since=None, until=None),
        "lower": None,
        "upper": None,
    }
    fields |= {"order": "_id", "whole": False, "begun": SCANNED_AT, "since": SCANNED_AT}
    return Plan(id=id_, database="shop", collection=collection, bounds=bounds, **(fields | others))


PLANS = {
    "shop.customers": plan(
        "d32a0dcb",
        "customers",
        BOUNDS,
        documents=1006,
        size=399155,
        made=1795807380.5213625,
        finished=None,
        read=0,
        schema=None,
    ),
    "shop.items": plan(
        "fa01511b",
        "items",
        (),
        selection=Selection(filter='{"n": {"$gt": 2}}', since=None, until=None),
        documents=6,
        size=141,
        made=1795807379.4721644,
        finished=1795807379.5861154,
        read=2,
        schema=1,
        since=None,
    ),
    "shop.orders": plan(
        "c7d75628",
        "orders",
        ("0e000000105f6964003c09000000", "0e000000105f6964003e0a000000", "0e000000105f696400320b000000"),
        documents=1020,
        size=400860,
        made=1795807378.2498589,
        finished=1795807378.599485,
        read=1020,
        schema=1,
    ),
}
HANDOVER = Handover(
    id="6-fc74645606e94484aa176a98b4bb1f95",
    time=ENDED_AT,
    close={"shop.orders~0of2": 179580737202, "shop.orders~1of2": 179580737202, "shop~1da542035d9d": 179580737203},
    open=tuple(OWN),
)


def column(name: str, type_: Any, since: int) -> Field:
    type_ = type_ if isinstance(type_, DataType) else DataType(type_)
    return Field(name=name, type=type_, since=since, column="")


def schema(version: int, id_: Any, *new: Field) -> CollectionSchema:
    tags = DataType("list", item=DataType("string"))
    place = DataType("struct", (column("city", "string", 1), column("tags", tags, 1)))
    kinds: dict[str, Any] = {"_id": id_, "n": "int64", "total": "float64", "at": place, "note": "string"}
    fields = (*(column(name, kind, 1) for name, kind in kinds.items()), *new)
    return CollectionSchema(version=version, fields=fields)


SCHEMAS = {
    "shop.customers": schema(2, "string", column("vip", "bool", 2)),
    "shop.items": schema(1, "int64"),
    "shop.orders": schema(2, "int64", column("late", "bool", 2)),
}
