"""Documents as a report shows them."""

from __future__ import annotations

from bson import json_util
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

from engine.lake.documents import elements as el

_LENGTH = 300
_LENIENT: CodecOptions[RawBSONDocument] = CodecOptions(
    document_class=RawBSONDocument,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="replace",
)


def extended_json(document: bytes) -> str:
    """A document as Extended JSON, cut short."""
    try:
        text = json_util.dumps(RawBSONDocument(document, _LENIENT), json_options=json_util.RELAXED_JSON_OPTIONS)
    except (BSONError, ValueError, OverflowError, TypeError):
        text = document.hex()
    return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 3]}..."


def id_of(key: bytes) -> str:
    """The ``_id`` in a document that has only that, as Extended JSON."""
    text = extended_json(key)
    return text.removeprefix('{"_id": ').removesuffix("}") if text.startswith('{"_id": ') else text


def differing(one: bytes, other: bytes) -> tuple[list[str], bytes, bytes]:
    """The names of the top-level fields that differ, and each document with these alone."""
    mine, yours = dict(el.fields(one)), dict(el.fields(other))
    names = [name for name in {**mine, **yours} if mine.get(name) != yours.get(name)]
    parts = [el.framed(el.element(name, each[name]) for name in names if name in each) for each in (mine, yours)]
    return [name.decode(errors="replace") for name in names], parts[0], parts[1]
