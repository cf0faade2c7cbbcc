-- The collections as they are now, out of a lake of change events and backfilled documents.
--
-- The rule: for each _cdc_key, the row of its last event, by _cdc_token; without any event, the row that a
-- backfill read (of several, the one read last). A key whose last event is a delete is gone, and so is what lies
-- before the drop of its collection. A read row comes before every event, whenever it was read: the stream began
-- before the reading did, so it brings every change that the reading may have missed.
--
-- It takes full documents: source.full_document = "update_lookup" (the default), "when_available" or "required".
-- Fill in the URL of the lake and run it with DuckDB; SELECT * FROM current_state WHERE _cdc_collection = 'orders'.
CREATE OR REPLACE VIEW events AS
SELECT * FROM read_parquet('{{url}}/**/*.parquet', union_by_name = true, hive_partitioning = false);

CREATE OR REPLACE VIEW current_state AS
WITH drops AS (
    SELECT _cdc_database, _cdc_collection, max(_cdc_token) AS dropped, max(_cdc_cluster_time) AS dropped_at
    FROM events
    WHERE _cdc_op IN ('drop', 'rename')
    GROUP BY ALL
),
numbered AS (
    SELECT
        events.*,
        row_number() OVER (
            PARTITION BY _cdc_database, _cdc_collection, _cdc_key
            ORDER BY _cdc_token DESC NULLS LAST, _cdc_cluster_time DESC
        ) AS newest
    FROM events
    LEFT JOIN drops USING (_cdc_database, _cdc_collection)
    WHERE _cdc_key IS NOT NULL
        AND (dropped IS NULL OR _cdc_token > dropped OR (_cdc_op = 'read' AND _cdc_cluster_time > dropped_at))
)
SELECT * EXCLUDE (newest) FROM numbered WHERE newest = 1 AND _cdc_op <> 'delete';
