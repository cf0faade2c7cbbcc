"""The warnings and errors that are kept: the last ones, bounded, without secrets."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from engine.errors import Redactor
from engine.supervisor.recent import KEPT, LONGEST_TEXT, LoggedError, RecentErrors

SECRET = "pl4nted-s3cret"


def kept(*records: tuple[int, str, Mapping[str, object]]) -> tuple[LoggedError, ...]:
    logger = logging.Logger("test")
    handler = RecentErrors(Redactor([SECRET]))
    logger.addHandler(handler)
    for level, message, fields in records:
        logger.log(level, message, extra={"fields": fields})
    return handler.latest()


def test_the_latest_come_first_and_information_is_not_kept() -> None:
    found = kept(
        (logging.WARNING, "slow", {"stream": "shop.orders", "lag_s": 3}),
        (logging.INFO, "segment committed", {}),
        (logging.ERROR, "stream failed", {}),
    )
    assert [(each.level, each.message, each.details) for each in found] == [
        ("error", "stream failed", ""),
        ("warning", "slow", "stream=shop.orders lag_s=3"),
    ]


def test_only_so_many_are_kept() -> None:
    found = kept(*((logging.ERROR, f"number {n}", {}) for n in range(KEPT + 10)))
    assert [each.message for each in found] == [f"number {n}" for n in range(KEPT + 9, 9, -1)]


def test_the_same_again_is_counted_and_is_the_latest() -> None:
    once, twice = (logging.WARNING, "away", {"what": "S3"}), (logging.WARNING, "away", {"what": "MongoDB"})
    assert [(each.details, each.times) for each in kept(twice, once, twice)] == [
        ("what=MongoDB", 2),
        ("what=S3", 1),
    ]


def test_no_part_of_a_secret_is_left_where_a_text_is_cut() -> None:
    """Wherever in the secret the limit lies."""
    for shift in range(len(SECRET) + 1):
        padding = "x" * (LONGEST_TEXT - len("cause=") - shift)
        (found,) = kept((logging.ERROR, "failed", {"cause": padding + SECRET + "y" * 10_000}))
        assert len(found.details) <= LONGEST_TEXT
        assert SECRET[:4] not in found.details
    nested = {"causes": [f"a {SECRET}"], "more": {"deep": SECRET}}
    assert SECRET not in str(kept((logging.ERROR, f"with {SECRET}", nested)))


def test_an_exception_is_named() -> None:
    logger = logging.Logger("test")
    handler = RecentErrors(Redactor([SECRET]))
    logger.addHandler(handler)
    try:
        raise ValueError(f"no {SECRET} here")
    except ValueError:
        logger.exception("a bug")
    (found,) = handler.latest()
    assert found.details == "cause=ValueError('no *** here')"
