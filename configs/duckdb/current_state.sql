-- A collection as it stands, out of a lake of change events and backfilled documents, for DuckDB.
-- Made by `python -m engine.fold`; the rule and its reasons stand in engine/fold.py.
--
-- Run this file once, then make a view for each collection, by the files of that collection alone:
--
--   CREATE VIEW orders AS
--   FROM current_state('s3://lake/prefix/*database=shop/*collection=orders/**/*.parquet');
--
-- One view per collection, because one name may be a struct here and a text there. The stars stand for the
-- `cdc_` that directories have had since version 0.2; with sink.prefix_shards there is one more directory, `*/`,
-- in front. With partition_by = "none" the files of a collection have its name, and so may others:
--
--   FROM current_state('s3://lake/prefix/*shop.orders[-~]*.parquet') WHERE _cdc_collection = 'orders';
--
-- `_cdc_pending` is null but for documents of which updates came without the document: it lists what they said.

-- All rows of some files, with the columns of all of them.
CREATE OR REPLACE MACRO events(files) AS TABLE
SELECT * FROM read_parquet(files, union_by_name = true, hive_partitioning = false);

CREATE OR REPLACE MACRO current_state(files) AS TABLE
WITH _cdc_rows AS (
    SELECT * FROM read_parquet(files, union_by_name = true, hive_partitioning = false)
    UNION ALL BY NAME
    SELECT NULL::VARCHAR AS _cdc_id, NULL::BIGINT AS _cdc_timestamp, NULL::BOOLEAN AS _cdc_has_document
    WHERE false
),
_cdc_placed AS (
    SELECT
        *,
        coalesce(_cdc_id, CAST(json_extract(_cdc_key, '$._id') AS VARCHAR)) AS _cdc_fold_id,
        coalesce(
            _cdc_timestamp,
            CASE WHEN _cdc_token LIKE '82%' THEN CAST('0x' || substr(_cdc_token, 3, 16) AS BIGINT) END,
            epoch_ms(_cdc_cluster_time) // 1000 * 4294967296
        ) AS _cdc_fold_time,
        CASE WHEN _cdc_op = 'read' THEN 1 ELSE 0 END AS _cdc_fold_read,
        CASE WHEN _cdc_op = 'update' AND NOT coalesce(_cdc_has_document, true) THEN 0 ELSE 1 END AS _cdc_fold_whole
    FROM _cdc_rows
),
_cdc_ends AS (
    SELECT _cdc_database, _cdc_collection, max(_cdc_fold_time) AS _cdc_fold_end
    FROM _cdc_placed
    WHERE _cdc_op IN ('drop', 'rename', 'loaded')
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
        sum(_cdc_fold_whole) OVER _cdc_backwards AS _cdc_fold_so_far,
        sum(_cdc_fold_whole) OVER _cdc_whole AS _cdc_fold_in_all
    FROM _cdc_living
    WINDOW
        _cdc_whole AS (PARTITION BY _cdc_database, _cdc_collection, _cdc_fold_id),
        _cdc_backwards AS (
            PARTITION BY _cdc_database, _cdc_collection, _cdc_fold_id
            ORDER BY _cdc_fold_time DESC, _cdc_fold_read DESC, _cdc_token DESC NULLS LAST
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        )
),
_cdc_updates AS (
    SELECT
        _cdc_database, _cdc_collection, _cdc_fold_id,
        list(_cdc_update ORDER BY _cdc_fold_time, _cdc_token) AS _cdc_pending
    FROM _cdc_counted
    WHERE _cdc_fold_so_far = 0
    GROUP BY _cdc_database, _cdc_collection, _cdc_fold_id
)
SELECT * EXCLUDE (_cdc_fold_id, _cdc_fold_time, _cdc_fold_read, _cdc_fold_whole, _cdc_fold_end, _cdc_fold_row, _cdc_fold_so_far, _cdc_fold_in_all)
FROM _cdc_counted
LEFT JOIN _cdc_updates USING (_cdc_database, _cdc_collection, _cdc_fold_id)
WHERE _cdc_op <> 'delete'
    AND (
        (_cdc_fold_so_far = 1 AND _cdc_fold_whole = 1)
        OR (_cdc_fold_in_all = 0 AND _cdc_fold_row = 1)
    );
