"""Which rights a command needs on MongoDB, and which of them the user lacks.

The server lists a user's privileges, so every missing one is named at once, before anything has been tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from engine.config.streams import named_collections
from engine.config.tree import Config
from engine.core.specs import StreamSpec
from engine.errors import ConfigError
from engine.source.failures import translated
from engine.source.session import Client


class Need(NamedTuple):
    """Actions on a collection; on all of a database if the collection is empty, or on all databases.

    Attributes:
        cluster: the actions are on the cluster instead.
    """

    database: str
    collection: str
    actions: tuple[str, ...]
    cluster: bool = False

    def __str__(self) -> str:
        if self.cluster:
            return "the cluster"
        if not self.database:
            return "all databases"
        return f"{self.database}.{self.collection}" if self.collection else f"the database {self.database}"


def needs_of_streams(specs: Sequence[StreamSpec]) -> Iterator[Need]:
    """What opening change streams takes."""
    found = dict.fromkeys(
        (spec.database, spec.collections[0] if spec.level == "collection" else "") for spec in specs
    )
    for database, collection in found:
        yield Need(database, collection, ("find", "changeStream"))


def needs_of_loading(config: Config) -> Iterator[Need]:
    """What a backfill takes."""
    yield from _on_each(config, ("find", "collStats"))
    if config.backfill.max_lag:
        yield Need("", "", ("replSetGetStatus",), cluster=True)


def needs_of_comparing(config: Config) -> Iterator[Need]:
    """What comparing the lake with the collections takes."""
    yield from _on_each(config, ("find",))


def _on_each(config: Config, actions: tuple[str, ...]) -> Iterator[Need]:
    source = config.source
    names = named_collections(source)
    database = "" if source.watch == "deployment" else source.database
    for collection in names if len(names) == len(set(source.collections)) > 0 else [""]:
        yield Need(database, collection, actions)


def missing(client: Client, needs: Sequence[Need]) -> list[ConfigError]:
    """An error for each need that the user's privileges do not cover; none where access is not controlled.

    Raises:
        HeadraceError: the server did not say.
    """
    with translated("read the user's rights"):
        found = client.admin.command("connectionStatus", showPrivileges=True)["authInfo"]
    if not (users := found["authenticatedUsers"]):
        return []
    name = f"{users[0]['user']}@{users[0]['db']}"
    privileges = found["authenticatedUserPrivileges"]
    errors = []
    for need in needs:
        if lacking := [action for action in need.actions if not _is_granted(privileges, need, action)]:
            cause = f"the user {name} lacks {' and '.join(lacking)} on {need}"
            errors.append(ConfigError("check the rights on MongoDB", cause, _remedy(need, lacking)))
    return errors


def _is_granted(privileges: Sequence[Mapping[str, Any]], need: Need, action: str) -> bool:
    return any(
        (action in each["actions"] or "anyAction" in each["actions"]) and _covers(each["resource"], need)
        for each in privileges
    )


def _covers(resource: Mapping[str, Any], need: Need) -> bool:
    """Whether what a privilege is on includes what is needed."""
    if resource.get("anyResource"):
        return True
    if need.cluster or "db" not in resource:
        return need.cluster and bool(resource.get("cluster"))
    wide = resource["db"], resource["collection"]
    return all(
        not each or each == wanted for each, wanted in zip(wide, (need.database, need.collection), strict=True)
    )


def _remedy(need: Need, lacking: Sequence[str]) -> str:
    actions = ", ".join(f'"{action}"' for action in lacking)
    if need.cluster:
        return f"Grant it the role clusterMonitor, or {{resource: {{cluster: true}}, actions: [{actions}]}}."
    role = f"read on {need.database}" if need.database else "readAnyDatabase on admin"
    on = f'{{db: "{need.database}", collection: "{need.collection}"}}'
    return f"Grant it the role {role}, or only {{resource: {on}, actions: [{actions}]}}."
