"""The unit of times in files.

The files of tables have microseconds, as Iceberg and Delta define their times: a reader that takes what it finds
for that (Iceberg's, in Spark) would misread others. The engine itself has milliseconds, as BSON does, and of all
dates those that microseconds can represent; others are rescued.
"""

from __future__ import annotations

import pyarrow as pa

from engine.decode.schema import MILLISECONDS


def in_milliseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with all times as the engine has them, at any depth.

    Raises:
        pyarrow.ArrowInvalid: a time is not whole milliseconds.
    """
    return batch.cast(schema_in_milliseconds(batch.schema))


def schema_in_milliseconds(schema: pa.Schema) -> pa.Schema:
    """The schema of the same columns with times as the engine has them."""
    return pa.schema([_field(each) for each in schema], schema.metadata)


def _field(field: pa.Field) -> pa.Field:
    return field.with_type(_type(field.type))


def _type(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(type_):
        return MILLISECONDS
    if pa.types.is_struct(type_):
        return pa.struct([_field(each) for each in type_])
    if pa.types.is_list(type_):
        return pa.list_(_field(type_.value_field))
    return type_
