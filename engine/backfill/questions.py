"""What the planner's process is asked about MongoDB and the lake, before a backfill and between runs.

The supervisor imports this module to name the functions, so the module itself loads nothing; each function loads
the driver, or the lake's file system, where it runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.config import Config
from engine.config.renewal import renewed
from engine.config.streams import streams_of
from engine.config.tree import SinkConfig
from engine.core.backfill import Plan, Selection

Namespace = tuple[str, str]


def make_plans(
    config: Config, wanted: Sequence[Namespace], selection: Selection, present_only: bool
) -> list[Plan]:
    """Plans for these collections.

    Args:
        present_only: leave out views and collections that do not exist (yet), instead of raising.

    Raises:
        ConfigError: a collection does not exist or cannot be read, or the selection does not apply to it.
        TransientError: no server answered.
    """
    from engine.backfill.planning import COMMAND_MS, CollectionPlanner, parse_filter
    from engine.source.session import connect

    with connect(renewed(config.source.uri), socket_timeout_ms=2 * COMMAND_MS) as client:
        query = parse_filter(selection.filter)
        planners = [CollectionPlanner(client, config, namespace, selection, query) for namespace in wanted]
        return [planner.plan() for planner in planners if not present_only or planner.is_present()]


def get_server_time(config: Config) -> str:
    """The server's cluster time, in the form that ``starting_position`` takes."""
    from engine.source.session import connect, server_time

    with connect(renewed(config.source.uri)) as client:
        return str(server_time(client))


def find_absentees(config: Config) -> list[str]:
    """A sentence for each name of the configuration that cannot be loaded: it does not exist, or is a view."""
    from engine.source.presence import absent
    from engine.source.session import connect

    with connect(renewed(config.source.uri)) as client:
        return absent(client, config.source, to_load=True)


def list_collections(config: Config) -> list[Namespace]:
    """The existing collections that the configuration captures, without views and system collections."""
    from engine.backfill.planning import collection_entries
    from engine.source.failures import translated
    from engine.source.session import connect

    source = config.source
    specs = streams_of(source)
    with connect(renewed(config.source.uri)) as client, translated("list the collections"):
        databases = [source.database]
        if source.watch == "deployment":
            databases = [each for each in client.list_database_names() if each not in ("admin", "local", "config")]
        return [
            (database, entry["name"])
            for database in databases
            for entry in sorted(collection_entries(client, database), key=lambda entry: str(entry["name"]))
            if entry["type"] != "view" and not entry["name"].startswith("system.")
            if any(spec.covers(database, entry["name"]) for spec in specs)
        ]


def find_newest_of_splits(
    config: SinkConfig, database: str, collection: str, plan: str | None, since: int | None
) -> dict[str, str]:
    """See ``sink.lake.newest_of_splits``."""
    from engine.sink import lake

    return lake.newest_of_splits(config, database, collection, plan, since)
