"""All peers, as they are measured, and the variants of them that are killed."""

from __future__ import annotations

from bench.peers import Peer
from bench.peers.debezium import Debezium
from bench.peers.dlt import Dlt
from bench.peers.headrace import Headrace
from bench.peers.mq_bridge import MqBridge
from bench.peers.rigatoni import Rigatoni
from bench.peers.rivet import Rivet


def everyone(memory: str = "512MiB") -> list[Peer]:
    """With the settings for throughput; ``memory`` is the engine's."""
    return [Headrace(memory), Rigatoni(), Rivet(), MqBridge(), Dlt(), Debezium("files"), Debezium("null")]


def variants_to_kill(memory: str = "512MiB") -> list[Peer]:
    """Those that write, with the settings that matter for what is lost or repeated."""
    return [
        Headrace(memory),
        Rigatoni("database"),
        Rigatoni("collection"),
        Rivet(),
        MqBridge(),
        Dlt(),
        Debezium("files"),
        Debezium("files", flush_ms=0),
    ]
