"""The tables of the configured format."""

from __future__ import annotations

from engine.config.tree import Config
from engine.tables.follower import Tables


def tables_of(config: Config) -> Tables:
    """The tables of ``table.format``, whose library is an extra of its own.

    Raises:
        HeadraceError: of the catalog.
    """
    if config.table.format == "iceberg":
        from engine.tables.iceberg import IcebergTables

        return IcebergTables(config)
    from engine.tables.delta import DeltaTables

    return DeltaTables(config)
