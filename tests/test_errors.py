"""Errors, as they are sent from one process to another."""

from __future__ import annotations

from engine.errors import ConfigError, error_of_kind


def test_errors_survive_a_round_trip_by_their_fields() -> None:
    error = ConfigError("open", "no", "do this")
    assert str(error_of_kind(error.kind, error.operation, error.cause, error.remedy)) == "open: no. do this"
    assert isinstance(error_of_kind("config", "", "", ""), ConfigError)
