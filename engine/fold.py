"""The fold: from the rows of a collection in the lake to its current documents.

This is the only place where the rule is defined:

- The rows of one ``_cdc_id`` are ordered by ``_cdc_timestamp``. A ``read`` row comes after the events of its own
  timestamp and before all later ones, because it includes at least their effects; events with the same timestamp
  (of one transaction) are ordered by their tokens. The last row counts; if it is a delete, there is no document.
- An update without its document (looked up too late, over 16 MiB, or not requested) never counts as that
  row, because its columns are null. Its changes are in ``_cdc_pending``: the ``_cdc_update`` of such updates after
  the row that counts, in order; null if there are none.
- After a rewind one event has several rows, with the same token. One with a document comes after one without; then
  the greater ``_cdc_seq`` decides, because that one was read later.
- ``drop``, ``rename`` and ``loaded`` void everything before them in the collection, whichever stream they are
  in: a drop is an event of only one part of a split collection. ``loaded`` is the mark of a backfill that has read
  the whole collection (``core.backfill``): what it did not see was gone when it started.

The rule is expressed in SQL, for engines that can sort more than fits into memory. ``fold_sql`` gives the
statement, and the files in ``configs`` are generated from it (``python -m engine.fold``; a test checks that they
are current).

Rows of earlier versions lack some columns. Their ``_id`` is taken from ``_cdc_key``, so that ``1`` and ``1.0`` are
different; an event's time is taken from its token, and a read row's time is exact to the second only; and an
update without a document cannot be distinguished from one whose document has only its key.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

ENDINGS = ("drop", "rename", "loaded")
_CONFIGS = Path(__file__).parents[1] / "configs"


class Dialect(NamedTuple):
    """The engine-specific parts of the SQL; ``{}`` stands for a column's name or an expression.

    Attributes:
        older: an empty set of rows with the columns that a lake of an earlier version does not have at all.
        key: the ``_id`` in ``_cdc_key``, as JSON.
        token_time: the first 8 bytes of a token, which are its cluster time.
        seconds: the cluster time in seconds since 1970.
        without: excludes these columns.
        updates: the ``_cdc_update`` of a group of rows, in order.
    """

    older: str
    key: str
    token_time: str
    seconds: str
    without: str
    updates: str


DUCKDB = Dialect(
    older="""
    UNION ALL BY NAME
    SELECT NULL::VARCHAR AS _cdc_id, NULL::BIGINT AS _cdc_timestamp, NULL::BOOLEAN AS _cdc_has_document,
        NULL::BIGINT AS _cdc_seq
    WHERE false""",
    key="CAST(json_extract(_cdc_key, '$._id') AS VARCHAR)",
    token_time="CAST('0x' || substr(_cdc_token, 3, 16) AS BIGINT)",
    seconds="epoch_ms(_cdc_cluster_time) // 1000",
    without="EXCLUDE ({})",
    updates="list(_cdc_update ORDER BY _cdc_fold_time, _cdc_token)",
)
SPARK = Dialect(
    older="",
    key="substr(_cdc_key, 8, length(_cdc_key) - 8)",
    token_time="CAST(conv(substr(_cdc_token, 3, 16), 16, 10) AS BIGINT)",
    seconds="unix_seconds(_cdc_cluster_time)",
    without="EXCEPT ({})",
    updates="""transform(
            array_sort(collect_list(struct(_cdc_fold_time, _cdc_token, _cdc_update))),
            each -> each._cdc_update
        )""",
)

_FOLD = """\
WITH _cdc_rows AS (
    SELECT * FROM {rows}{older}
),
_cdc_placed AS (
    SELECT
        *,
        coalesce(_cdc_id, {key}) AS _cdc_fold_id,
        coalesce(
            _cdc_timestamp,
            CASE WHEN _cdc_token LIKE '82%' THEN {token_time} END,
            {seconds} * 4294967296
        ) AS _cdc_fold_time,
        CASE WHEN _cdc_op = 'read' THEN 1 ELSE 0 END AS _cdc_fold_read,
        CASE WHEN _cdc_op = 'update' AND NOT coalesce(_cdc_has_document, true) THEN 0 ELSE 1 END AS _cdc_fold_whole
    FROM _cdc_rows
),
_cdc_ends AS (
    SELECT _cdc_database, _cdc_collection, max(_cdc_fold_time) AS _cdc_fold_end
    FROM _cdc_placed
    WHERE _cdc_op IN ({endings})
    GROUP BY _cdc_database, _cdc_collection
),
_cdc_living AS (
    SELECT *
    FROM _cdc_placed
    LEFT JOIN _cdc_ends USING (_cdc_database, _cdc_collection)
    WHERE _cdc_fold_id IS NOT NULL
        AND (
            _cdc_fold_end IS NULL
            OR _cdc_fold_time > _cdc_fold_end
            OR (_cdc_fold_time = _cdc_fold_end AND _cdc_fold_read = 1)
        )
),
_cdc_counted AS (
    SELECT
        *,
        row_number() OVER _cdc_backwards AS _cdc_fold_row,
        lag(_cdc_token) OVER (
            PARTITION BY _cdc_database, _cdc_collection, _cdc_fold_id
            ORDER BY {order}
        ) AS _cdc_fold_later,
        sum(_cdc_fold_whole) OVER _cdc_backwards AS _cdc_fold_so_far,
        sum(_cdc_fold_whole) OVER _cdc_whole AS _cdc_fold_in_all
    FROM _cdc_living
    WINDOW
        _cdc_whole AS (PARTITION BY _cdc_database, _cdc_collection, _cdc_fold_id),
        _cdc_backwards AS (
            PARTITION BY _cdc_database, _cdc_collection, _cdc_fold_id
            ORDER BY {order}
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        )
),
_cdc_updates AS (
    SELECT
        _cdc_database, _cdc_collection, _cdc_fold_id,
        {updates} AS _cdc_pending
    FROM _cdc_counted
    WHERE _cdc_fold_so_far = 0 AND _cdc_token IS DISTINCT FROM _cdc_fold_later
    GROUP BY _cdc_database, _cdc_collection, _cdc_fold_id
)
SELECT * {without}
FROM _cdc_counted
LEFT JOIN _cdc_updates USING (_cdc_database, _cdc_collection, _cdc_fold_id)
WHERE _cdc_op <> 'delete'
    AND (
        (_cdc_fold_so_far = 1 AND _cdc_fold_whole = 1)
        OR (_cdc_fold_in_all = 0 AND _cdc_fold_row = 1)
    )"""
_ORDER = """_cdc_fold_time DESC, _cdc_fold_read DESC, _cdc_token DESC NULLS LAST,
                _cdc_fold_whole DESC, _cdc_seq DESC NULLS LAST"""
_HELPERS = ("id", "time", "read", "whole", "end", "row", "later", "so_far", "in_all")


def fold_sql(rows: str, dialect: Dialect) -> str:
    """The statement that selects the current documents, one row each, with ``_cdc_pending``.

    Args:
        rows: a table, or a table function, of all rows of one or several collections.
    """
    helpers = ", ".join(f"_cdc_fold_{each}" for each in _HELPERS)
    parts = dialect._replace(without=dialect.without.format(helpers))
    endings = ", ".join(f"'{each}'" for each in ENDINGS)
    return _FOLD.format(rows=rows, endings=endings, order=_ORDER, **parts._asdict())


_DUCKDB_FILE = """\
-- The current documents of a collection, from a lake of change events and backfilled documents, for DuckDB.
-- Generated by `python -m engine.fold`; see engine/fold.py for the rule and its reasons.
--
-- Run this file once, then create a view for each collection, from the files of that collection only:
--
--   CREATE VIEW orders AS
--   FROM current_state('s3://lake/prefix/*database=shop/*collection=orders/**/*.parquet');
--
-- One view per collection, because the same name may be a struct in one and a string in another. The stars stand
-- for the `cdc_` that directories have had since version 0.2; with sink.prefix_shards there is one more directory,
-- `*/`, in front. With partition_by = "none" the files of a collection have its name, and so may others:
--
--   FROM current_state('s3://lake/prefix/*shop.orders[-~]*.parquet') WHERE _cdc_collection = 'orders';
--
-- `_cdc_pending` is null except for documents with updates that came without the document: it lists those updates.

-- All rows of some files, with the columns of all of them.
CREATE OR REPLACE MACRO events(files) AS TABLE
SELECT * FROM read_parquet(files, union_by_name = true, hive_partitioning = false);

CREATE OR REPLACE MACRO current_state(files) AS TABLE
{fold};
"""
_SPARK_FILE = """\
-- The current documents of a collection, from a lake of change events and backfilled documents, for Spark SQL 4.
-- Generated by `python -m engine.fold`; see engine/fold.py for the rule and its reasons.
--
-- Fill in {{{{name}}}}, and as {{{{path}}}} the directory of one collection, because the same name may be a struct
-- in one and a string in another: s3a://lake/prefix/cdc_database=shop/cdc_collection=orders. (In a lake written by
-- version 0.1, at least one file must be from a later version.)
--
-- `_cdc_pending` is null except for documents with updates that came without the document: it lists those updates.

CREATE OR REPLACE TEMPORARY VIEW {{{{name}}}}_events
USING parquet
OPTIONS (path '{{{{path}}}}', mergeSchema 'true', recursiveFileLookup 'true');

CREATE OR REPLACE TEMPORARY VIEW {{{{name}}}} AS
{fold};
"""


def files() -> dict[Path, str]:
    """The files generated from the fold, and their contents."""
    reader = "read_parquet(files, union_by_name = true, hive_partitioning = false)"
    return {
        _CONFIGS / "duckdb" / "current_state.sql": _DUCKDB_FILE.format(fold=fold_sql(reader, DUCKDB)),
        _CONFIGS / "spark" / "current_state.sql": _SPARK_FILE.format(fold=fold_sql("{{name}}_events", SPARK)),
    }


def main() -> int:
    """Write the files."""
    for path, content in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
