"""Headrace: MongoDB change streams and whole collections, landed as Parquet on S3, exactly once."""

__version__ = "0.2.0"
