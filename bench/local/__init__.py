"""Real servers on this machine, from wheels: a MongoDB replica set, an S3 server, a Redis-protocol server.

The tests, the benchmarks and the quickstart use them. They come with the optional extra ``headrace[local]``, which
an engine with real servers does not need.
"""

from bench.local.servers import LocalStack, Mongo, Process, S3Server, Valkey

__all__ = ["LocalStack", "Mongo", "Process", "S3Server", "Valkey"]
