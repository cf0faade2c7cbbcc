"""Made-up replies of a server."""

from __future__ import annotations

from typing import Any

import bson

from engine.source.reply import Reply


def reply_of(events: list[dict[str, Any]], token: str = "", **cursor: Any) -> Reply:
    body: dict[str, Any] = {"nextBatch": events, "id": bson.Int64(7), "ns": "d.c"} | cursor
    if token:
        body["postBatchResumeToken"] = {"_data": token}
    return Reply.parse(bson.encode({"cursor": body, "ok": 1.0}))


def event(token: str, **fields: Any) -> dict[str, Any]:
    return {"_id": {"_data": token}, "operationType": "insert", **fields}
