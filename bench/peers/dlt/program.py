"""dlt as a program: ``program.py URI DATABASE COLLECTION BUCKET PREFIX DIRECTORY``.

A pipeline from pages of a collection, as Arrow tables of pymongoarrow, to Parquet on S3; credentials come from the
environment. It prints ``written DOCUMENTS`` after each page.
"""

import sys
from collections.abc import Iterator
from typing import Any

import dlt
import pyarrow as pa
from dlt.destinations import filesystem
from pymongo import MongoClient
from pymongoarrow.api import find_arrow_all

PAGE = 100_000


def pages(uri: str, database: str, collection: str) -> Iterator[pa.Table]:
    """The documents by ascending ``_id``, whose ObjectIds become bytes: dlt does not know pymongoarrow's type."""
    query: dict[str, Any] = {}
    seen = 0
    with MongoClient[dict[str, Any]](uri) as client:
        while True:
            table = find_arrow_all(client[database][collection], query, sort=[("_id", 1)], limit=PAGE)
            if not len(table):
                return
            query = {"_id": {"$gt": table.column("_id")[-1].as_py()}}
            ids = table.column("_id").cast(pa.binary(12)).cast(pa.binary())
            yield table.set_column(table.column_names.index("_id"), "_id", ids)
            seen += len(table)
            print(f"written {seen} 0", flush=True)


def main() -> None:
    """Run the pipeline."""
    uri, database, collection, bucket, prefix, directory = sys.argv[1:]
    pipeline = dlt.pipeline(
        "peer",
        pipelines_dir=directory,
        destination=filesystem(bucket_url=f"s3://{bucket}/{prefix}"),
        dataset_name="lake",
    )
    resource = dlt.resource(pages(uri, database, collection), name=collection, write_disposition="replace")
    pipeline.run(resource, loader_file_format="parquet").raise_on_failed_jobs()


if __name__ == "__main__":
    main()
