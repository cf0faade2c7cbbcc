-- The collections as they are now, out of a lake of change events and backfilled documents.
--
-- The rule: for each _id in _cdc_key (where the events of a sharded collection have the shard key as well), the row
-- with the latest _cdc_cluster_time. In the same second an event counts more than a row that a backfill read, and of
-- events the one with the greatest _cdc_token. An _id whose last row is a delete is gone; so is what lies before the
-- drop of its collection.
--
-- Why it holds: a read row has the time at which its split was begun, and shows at least what was known then.
-- A change that is later than that has an event of its own in the stream, which began before.
--
-- It takes full documents: source.full_document = "update_lookup" (the default), "when_available" or "required".
-- Fill in the URL of the lake and run it with DuckDB; SELECT * FROM current_state WHERE _cdc_collection = 'orders'.
CREATE OR REPLACE VIEW events AS
SELECT * FROM read_parquet('{{url}}/**/*.parquet', union_by_name = true, hive_partitioning = false);

CREATE OR REPLACE VIEW current_state AS
WITH drops AS (
    SELECT _cdc_database, _cdc_collection, max(_cdc_cluster_time) AS dropped_at, max(_cdc_token) AS dropped
    FROM events
    WHERE _cdc_op IN ('drop', 'rename')
    GROUP BY ALL
),
numbered AS (
    SELECT
        events.*,
        row_number() OVER (
            PARTITION BY _cdc_database, _cdc_collection, json_extract(_cdc_key, '$._id')
            ORDER BY _cdc_cluster_time DESC, _cdc_token DESC NULLS LAST
        ) AS newest
    FROM events
    LEFT JOIN drops USING (_cdc_database, _cdc_collection)
    WHERE _cdc_key IS NOT NULL
        AND (dropped IS NULL OR _cdc_token > dropped OR (_cdc_op = 'read' AND _cdc_cluster_time > dropped_at))
)
SELECT * EXCLUDE (newest) FROM numbered WHERE newest = 1 AND _cdc_op <> 'delete';
