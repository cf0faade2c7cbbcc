"""Commands that are sent before a stream is read."""

from __future__ import annotations

import pytest
from bson.timestamp import Timestamp

from engine.core.position import split_time
from engine.errors import TransientError
from engine.source.session import Members, server_time, starting_position, survey
from tests.failing import Client, failing


def test_survey(client: Client) -> None:
    found = survey(client)
    assert found.deployment == "rs0"
    assert found.server_version == "6.0.5"
    assert found.server_time == server_time(client)


def test_a_transient_error_is_not_taken_for_missing_rights(client: Client) -> None:
    """There are two ways to find the oldest event, and both may fail for a while."""
    interrupted = {"appName": "headrace", "errorCode": 11601}
    with failing(client, "find", 1, **interrupted):
        assert starting_position(client, "earliest").time
    data = {"failCommands": ["find", "serverStatus"]} | interrupted
    client.admin.command("configureFailPoint", "failCommand", mode={"times": 2}, data=data)
    with pytest.raises(TransientError, match="11601"):
        starting_position(client, "earliest")


def test_starting_positions(client: Client) -> None:
    now = starting_position(client, "now")
    assert now.time == server_time(client) + 1
    oldest = client.local["oplog.rs"].find_one(sort=[("$natural", 1)])
    assert oldest is not None
    assert Timestamp(*split_time(starting_position(client, "earliest").time)) == oldest["ts"]
    assert split_time(starting_position(client, "2026-05-01T09:00:59+02:00").time) == (1777618859, 0)


def test_options_of_the_uri_apply_to_a_member_that_is_read_directly(client: Client) -> None:
    uri = "mongodb://a,b/?replicaSet=rs0&serverSelectionTimeoutMS=5000&tls=true"
    with Members(client, uri, "secondary")._connect("127.0.0.1", 1) as member:
        assert member.options.server_selection_timeout == 5.0
        assert member.options.pool_options.socket_timeout == 60.0
        assert member.options.pool_options._ssl_context is not None
